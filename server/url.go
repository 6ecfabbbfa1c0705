package server

import (
	"net"
	"net/url"
	"strconv"
	"strings"
)

// URL is where clients find an endpoint with this path: below Options.PublicURL or, without that, at
// the address that the server listens on, with localhost for every address of the machine. Of a port
// that the kernel chooses it knows once the server has started.
func (s *Server) URL(path string) string {
	if s.opts().PublicURL != "" {
		base, _ := publicURL(s.opts().PublicURL)
		return base + path
	}
	host, port, _ := net.SplitHostPort(s.opts().Listen)
	if addr, ok := s.Addr().(*net.TCPAddr); ok {
		port = strconv.Itoa(addr.Port)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "ws://" + net.JoinHostPort(host, port) + path
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
