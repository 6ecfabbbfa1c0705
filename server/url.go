package server

import (
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"carillon/server/internal/auth"
	"carillon/server/internal/listen"
)

// URL is where clients find an endpoint with this path: below Options.PublicURL or, without that, at
// the first TCP address that the server listens on, with localhost for every address of the machine. Of a
// port that the kernel chooses it knows once the server has started. With unix sockets only it is
// ws://localhost, which a client has to be told how to reach.
// Where there is a request, [Server.URLFor] knows what its client calls the server.
func (s *Server) URL(path string) string {
	if s.opts().PublicURL != "" {
		base, _ := publicURL(s.opts().PublicURL)
		return base + path
	}
	host, port := "", ""
	scheme := "ws"
	for i, l := range s.engine.Listeners {
		text := l.Now().Address
		if _, ok := listen.UnixPath(text); ok {
			continue
		}
		if host, port, _ = net.SplitHostPort(text); l.Certs != nil {
			scheme = "wss"
		}
		if all := s.Addrs(); len(all) > 0 {
			port = strconv.Itoa(all[i].(*net.TCPAddr).Port)
		}
		break
	}
	if port == "" { // there are unix sockets only
		return "ws://localhost" + path
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + path
}

// URLFor is where the client of a request finds an endpoint with this path: at the host and port that the request was
// made for, with wss if it came over TLS. It is for handlers of Options.HTTP whose pages or answers name an endpoint,
// and may be called from any goroutine. Below Options.PublicURL, if that is set, it is what [Server.URL] returns, and
// also if the request names no host.
//
// A proxy of Options.TrustedProxies may say what the client has used: the scheme in X-Forwarded-Proto, the host in
// X-Forwarded-Host, or both in Forwarded where there is no X-Forwarded-For. Without X-Forwarded-Host the proxy must
// leave Host as it was, and one that does not write X-Forwarded-Host must remove it. Which pages may connect is still
// decided by Host: behind a proxy that changes it, list their origin in Endpoint.Origins, or set PublicURL.
//
// A client chooses its Host itself. So the URL must not be used for other clients, as in an e-mail or a shared cache.
func (s *Server) URLFor(r *http.Request, path string) string {
	if s.opts().PublicURL != "" {
		return s.URL(path)
	}
	scheme, host := s.originOf(r)
	if scheme == "" {
		scheme = "http"
		if r.TLS != nil {
			scheme = "https"
		}
	}
	for _, host := range []string{host, r.Host} {
		if o, ok := auth.ParseOrigin(scheme + "://" + host); ok {
			return webSocketURL(o) + path
		}
	}
	return s.URL(path)
}

// webSocketURL is the base of the URLs of WebSockets at this origin, which is one of http or https.
func webSocketURL(o auth.Origin) string {
	base := "ws" + strings.TrimPrefix(o.Scheme, "http") + "://" + o.Host
	if o.Port != "" {
		base += ":" + o.Port
	}
	return base
}

// publicURL is the base of the endpoints' URLs, or what is wrong with the option.
func publicURL(text string) (base, problem string) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" {
		return "", "is not a URL: expected one such as https://chat.example.com/base"
	}
	scheme, known := map[string]string{"http": "ws", "ws": "ws", "https": "wss", "wss": "wss"}[u.Scheme]
	if !known {
		return "", "has the wrong scheme: expected http, https, ws or wss"
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return "", "has no port from 1 to 65535"
		}
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", "has more than scheme, host and path, which a base URL cannot have"
	}
	return scheme + "://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"), ""
}
