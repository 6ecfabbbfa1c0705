package server

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestURLIsWhereTheServerListens(t *testing.T) {
	for listen, want := range map[string]string{
		":9000":            "ws://localhost:9000/a",
		"0.0.0.0:9000":     "ws://localhost:9000/a",
		"[::]:9000":        "ws://localhost:9000/a",
		"[::1]:9000":       "ws://[::1]:9000/a",
		"10.1.2.3:80":      "ws://10.1.2.3:80/a",
		"example.org:9000": "ws://example.org:9000/a",
	} {
		s, err := New(Options{Listen: listen})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.URL("/a"); got != want {
			t.Errorf("listening on %s is shown as %s, want %s", listen, got, want)
		}
	}
	s := start(t, Options{Listen: "localhost:0", Endpoints: echoAndBroadcast()})
	if got, want := s.URL("/echo"), "ws://localhost:"+port(s)+"/echo"; got != want {
		t.Errorf("the kernel has chosen a port, the URL is %s, want %s", got, want)
	}
}

func TestURLIsWhereAProxyListens(t *testing.T) {
	for public, want := range map[string]string{
		"https://chat.example.com/base":       "wss://chat.example.com/base/a",
		"https://chat.example.com/base/":      "wss://chat.example.com/base/a",
		"https://chat.example.com/caf%C3%A9/": "wss://chat.example.com/caf%C3%A9/a",
		"https://chat.example.com":            "wss://chat.example.com/a",
		"HTTPS://chat.example.com:8443/":      "wss://chat.example.com:8443/a",
		"http://[2001:db8::1]:8080":           "ws://[2001:db8::1]:8080/a",
		"wss://chat.example.com/x":            "wss://chat.example.com/x/a",
		"ws://chat":                           "ws://chat/a",
	} {
		s, err := New(Options{PublicURL: public})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.URL("/a"); got != want {
			t.Errorf("behind %s the URL is %s, want %s", public, got, want)
		}
	}
}

// A page's WebSocket is where the page is, as its client calls it; what a proxy says counts where the proxy is trusted.
func TestURLFor(t *testing.T) {
	if allOverTLS {
		t.Skip("the scheme is another one")
	}
	proxies := []string{"127.0.0.1", "10.0.0.0/8"}
	for _, row := range []struct {
		sentence string
		opts     Options
		headers  string // separated by "; "
		want     string
	}{
		{"the host is the client's name for the server", Options{}, "Host: phone.lan:8080", "ws://phone.lan:8080/ws"},
		{"it may have no port", Options{}, "Host: Chat.Example.com", "ws://chat.example.com/ws"},
		{"or that of the scheme", Options{}, "Host: chat.example.com:80", "ws://chat.example.com/ws"},
		{"it may be an address", Options{}, "Host: [2001:DB8::1]:8080", "ws://[2001:db8::1]:8080/ws"},
		{"with TLS it is wss", Options{TLS: TLS{Config: testTLS()}}, "Host: phone.lan:8443", "wss://phone.lan:8443/ws"},
		{"what a stranger forwards is not believed", Options{}, "Host: a.example; X-Forwarded-For: 192.0.2.1; X-Forwarded-Proto: https; X-Forwarded-Host: evil.example", "ws://a.example/ws"},
		{"nor in the standard's header", Options{}, "Host: a.example; Forwarded: for=192.0.2.1;proto=https;host=evil.example", "ws://a.example/ws"},
		{"a proxy tells the scheme", Options{TrustedProxies: proxies}, "Host: a.example; X-Forwarded-For: 192.0.2.1; X-Forwarded-Proto: https", "wss://a.example/ws"},
		{"and the host", Options{TrustedProxies: proxies}, "Host: backend:8080; X-Forwarded-For: 192.0.2.1; X-Forwarded-Proto: https; X-Forwarded-Host: a.example:8443", "wss://a.example:8443/ws"},
		{"also without a client", Options{TrustedProxies: proxies}, "Host: backend:8080; X-Forwarded-Host: a.example", "ws://a.example/ws"},
		{"the client of two proxies has used what the first says", Options{TrustedProxies: proxies}, "Host: backend; X-Forwarded-For: 192.0.2.1, 10.0.0.2; X-Forwarded-Proto: https, http; X-Forwarded-Host: a.example, inner.example", "wss://a.example/ws"},
		{"what the client has written before that counts for nothing", Options{TrustedProxies: proxies}, "Host: backend; X-Forwarded-For: 192.0.2.1; X-Forwarded-Host: evil.example, a.example", "ws://a.example/ws"},
		{"the standard's header has both", Options{TrustedProxies: proxies}, `Host: backend; Forwarded: for=192.0.2.1;proto=https;host="a.example:8443"`, "wss://a.example:8443/ws"},
		{"a host that is none is passed over", Options{TrustedProxies: proxies}, "Host: a.example; X-Forwarded-Host: evil.example/x?", "ws://a.example/ws"},
		{"the public URL goes before all", Options{PublicURL: "https://chat.example.com/base", TrustedProxies: proxies}, "Host: backend; X-Forwarded-Host: a.example", "wss://chat.example.com/base/ws"},
		{"a proxy with TLS to this server may tell that its client has none", Options{TrustedProxies: proxies, TLS: TLS{Config: testTLS()}}, "Host: a.example; X-Forwarded-Proto: http", "ws://a.example/ws"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			s := startPages(t, row.opts)
			c := dialRaw(t, s)
			if row.opts.TLS.enabled() {
				c = newClient(t, tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true}))
			}
			c.write([]byte("GET / HTTP/1.1\r\n" + strings.ReplaceAll(row.headers, "; ", "\r\n") + "\r\n\r\n"))
			body, err := io.ReadAll(c.response().Body)
			if err != nil || string(body) != row.want {
				t.Errorf("the page has %q, %v; want %q", body, err, row.want)
			}
		})
	}
}

// startPages runs a server whose pages name the endpoint /ws.
func startPages(t *testing.T, opts Options) *Server {
	t.Helper()
	var s *Server
	opts.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, s.URLFor(r, "/ws")) })
	started, _ := startChanged(t, opts, func(made *Server) { s = made })
	return started
}

// A request without a host gets what URL says, and one that another http.Server has is good, too.
func TestURLForOtherRequests(t *testing.T) {
	s := startPages(t, Options{TrustedProxies: []string{"192.0.2.0/24"}}) // where httptest's requests come from
	r := httptest.NewRequest("GET", "http://pages.example/", nil)
	if got := s.URLFor(r, "/ws"); got != "ws://pages.example/ws" {
		t.Errorf("got %s", got)
	}
	r.Header.Set("X-Forwarded-Host", "front.example")
	if got := s.URLFor(r, "/ws"); got != "ws://front.example/ws" {
		t.Errorf("behind a proxy: %s", got)
	}
	r.Header.Del("X-Forwarded-Host")
	for _, host := range []string{"", "a@b", `"><script>`} {
		r.Host = host
		if got, want := s.URLFor(r, "/ws"), s.URL("/ws"); got != want {
			t.Errorf("with the host %q: %s, want %s", host, got, want)
		}
	}
}
