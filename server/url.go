package server

import (
	"net"
	"net/url"
	"strconv"
	"strings"
)

// URL is where clients find an endpoint with this path: below Options.PublicURL or, without that, at
// the first TCP address that the server listens on, with localhost for every address of the machine. Of a
// port that the kernel chooses it knows once the server has started. With unix sockets only it is
// ws://localhost, which a client has to be told how to reach.
func (s *Server) URL(path string) string {
	if s.opts().PublicURL != "" {
		base, _ := publicURL(s.opts().PublicURL)
		return base + path
	}
	host, port := "", ""
	scheme := "ws"
	for i, l := range s.listeners {
		text, _ := l.address()
		if _, ok := unixPath(text); ok {
			continue
		}
		if host, port, _ = net.SplitHostPort(text); l.secure != nil {
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
		return "", "has more than scheme, host and path, which a base for other URLs cannot have"
	}
	return scheme + "://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"), ""
}
