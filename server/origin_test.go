package server

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

func TestOrigin(t *testing.T) {
	listed := []string{"https://app.example.com", "https://*.example.org", "http://dev.example.net:8080", "https://*.example.net:8443", "app://desktop"}
	proxies := []string{"127.0.0.1"}
	for _, test := range []struct {
		sentence string
		origins  []string
		public   string
		proxies  []string
		headers  string // besides those of a handshake, separated by "; "
		allowed  bool
	}{
		{"a program sends no origin", nil, "", nil, "Host: example.com", true},
		{"a page of this host may connect", nil, "", nil, "Host: example.com; Origin: https://example.com", true},
		{"also over plain HTTP", nil, "", nil, "Host: example.com; Origin: http://example.com", true},
		{"names are of any case", nil, "", nil, "Host: Example.COM; Origin: HTTPS://exAMPLE.com", true},
		{"a page on this host and port may connect", nil, "", nil, "Host: localhost:8080; Origin: http://localhost:8080", true},
		{"a page on another port may not", nil, "", nil, "Host: localhost:8080; Origin: http://localhost:3000", false},
		{"nor one on no port", nil, "", nil, "Host: localhost:8080; Origin: http://localhost", false},
		{"nor one on a port, when the host has none", nil, "", nil, "Host: localhost; Origin: http://localhost:8080", false},
		{"the port of the scheme may be named", nil, "", nil, "Host: example.com:443; Origin: https://example.com", true},
		{"but not that of the other scheme", nil, "", nil, "Host: example.com:80; Origin: https://example.com", false},
		{"the host may be an address", nil, "", nil, "Host: [2001:DB8::1]:80; Origin: http://[2001:db8:0::1]", true},
		{"another address is another host", nil, "", nil, "Host: [2001:db8::1]; Origin: http://[2001:db8::2]", false},
		{"a page of another host may not connect", nil, "", nil, "Host: example.com; Origin: https://evil.example", false},
		{"nor one of a host below this one", nil, "", nil, "Host: example.com; Origin: https://a.example.com", false},
		{"nor one of a host that only ends alike", nil, "", nil, "Host: example.com; Origin: https://evilexample.com", false},
		{"nor one of a host that only begins alike", nil, "", nil, "Host: example.com; Origin: https://example.com.evil.example", false},
		{"a sandboxed page may not", nil, "", nil, "Host: example.com; Origin: null", false},
		{"an empty origin is none that is allowed", nil, "", nil, "Host: example.com; Origin:", false},
		{"an origin has no path", nil, "", nil, "Host: example.com; Origin: https://example.com/", false},
		{"an origin has a scheme", nil, "", nil, "Host: example.com; Origin: example.com", false},
		{"there is one origin", nil, "", nil, "Host: example.com; Origin: https://example.com; Origin: https://evil.example", false},
		{"also when the names differ in case", nil, "", nil, "Host: example.com; Origin: https://example.com; oRIGIN: https://evil.example", false},
		{"another scheme is not a page of this host", nil, "", nil, "Host: example.com; Origin: ftp://example.com", false},

		{"a library that is no browser names the scheme of the WebSocket", nil, "", nil, "Host: localhost:8080; Origin: ws://localhost:8080", true},
		{"with TLS too", nil, "", nil, "Host: example.com; Origin: wss://example.com", true},
		{"and the port of that", nil, "", nil, "Host: example.com:443; Origin: wss://example.com", true},
		{"not that of another", nil, "", nil, "Host: example.com; Origin: wss://example.com:80", false},
		{"ws is no other host's either", nil, "", nil, "Host: example.com; Origin: ws://evil.example", false},
		{"wss is the public URL's", nil, "https://chat.example.com", nil, "Host: backend:8080; Origin: wss://chat.example.com", true},
		{"wss is https in the list", listed, "", nil, "Host: example.com; Origin: wss://app.example.com", true},
		{"and ws is not", listed, "", nil, "Host: example.com; Origin: ws://app.example.com", false},
		{"a list may have it", []string{"ws://old.example"}, "", nil, "Host: example.com; Origin: http://old.example", true},

		{"a proxy that is trusted tells the scheme", nil, "", proxies, "Host: example.com; X-Forwarded-Proto: https; Origin: https://example.com", true},
		{"then the page must have come over the same", nil, "", proxies, "Host: example.com; X-Forwarded-Proto: https; Origin: http://example.com", false},
		{"what a stranger tells is not believed", nil, "", nil, "Host: example.com; X-Forwarded-Proto: https; Origin: http://example.com", true},

		{"the public URL has the server's own origin", nil, "https://chat.example.com/base", nil, "Host: backend:8080; Origin: https://chat.example.com", true},
		{"also when it names WebSocket's scheme and the port", nil, "wss://chat.example.com:443", nil, "Host: backend:8080; Origin: https://chat.example.com", true},
		{"it has one scheme", nil, "https://chat.example.com", nil, "Host: backend:8080; Origin: http://chat.example.com", false},
		{"it has one port", nil, "https://chat.example.com:8443", nil, "Host: backend:8080; Origin: https://chat.example.com", false},

		{"a listed origin may connect", listed, "", nil, "Host: example.com; Origin: https://app.example.com", true},
		{"in any case", listed, "", nil, "Host: example.com; Origin: https://APP.example.com", true},
		{"with the port that it has anyway", listed, "", nil, "Host: example.com; Origin: https://app.example.com:443", true},
		{"over another scheme it may not", listed, "", nil, "Host: example.com; Origin: http://app.example.com", false},
		{"on another port it may not", listed, "", nil, "Host: example.com; Origin: https://app.example.com:8443", false},
		{"a port that is listed counts", listed, "", nil, "Host: example.com; Origin: http://dev.example.net:8080", true},
		{"a port that is listed is the only one", listed, "", nil, "Host: example.com; Origin: http://dev.example.net", false},
		{"a wildcard is for hosts below", listed, "", nil, "Host: example.com; Origin: https://a.example.org", true},
		{"however far below", listed, "", nil, "Host: example.com; Origin: https://a.b.c.EXAMPLE.org", true},
		{"not for the host itself", listed, "", nil, "Host: example.com; Origin: https://example.org", false},
		{"nor for one that ends alike", listed, "", nil, "Host: example.com; Origin: https://evilexample.org", false},
		{"nor for a name that is empty", listed, "", nil, "Host: example.com; Origin: https://.example.org", false},
		{"a wildcard has a scheme", listed, "", nil, "Host: example.com; Origin: http://a.example.org", false},
		{"a wildcard has a port", listed, "", nil, "Host: example.com; Origin: https://a.example.net:8443", true},
		{"and no other", listed, "", nil, "Host: example.com; Origin: https://a.example.net", false},
		{"an origin may be no page of the web", listed, "", nil, "Host: example.com; Origin: app://desktop", true},
		{"its own origin need not be listed", listed, "", nil, "Host: example.com; Origin: https://example.com", true},
		{"what is not listed may not connect", listed, "", nil, "Host: example.com; Origin: https://evil.example", false},
		{"null may be listed", []string{"null"}, "", nil, "Host: example.com; Origin: null", true},
		{"all may be", []string{"*"}, "", nil, "Host: example.com; Origin: https://evil.example", true},
		{"null is among all", []string{"*"}, "", nil, "Host: example.com; Origin: null", true},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			var asked atomic.Bool
			s := start(t, Options{PublicURL: test.public, TrustedProxies: test.proxies, Endpoints: []Endpoint{{
				Path: "/echo", Origins: test.origins,
				Handler: Handler{Upgrade: func(*Request) error { asked.Store(true); return nil }},
			}}})
			c := dialRaw(t, s)
			c.write([]byte(strings.Replace(upgradeHead("/echo"), hostLine, strings.ReplaceAll(test.headers, "; ", "\r\n")+"\r\n", 1)))
			if !test.allowed {
				c.wantRefusal(403, "origin")
				s.wantRefused(t, map[RefuseReason]uint64{}, RefuseOrigin)
			} else if resp := c.response(); resp.StatusCode != http.StatusSwitchingProtocols {
				t.Errorf("answered %s", resp.Status)
			}
			if asked.Load() != test.allowed {
				t.Errorf("the application has been asked: %v", asked.Load())
			}
		})
	}
}

// A page of another site cannot even ask for server-sent events: its user's cookies would come along.
func TestOriginOfEvents(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{
		{Path: "/ws", Mode: ModeTopics, Origins: []string{"https://*.example.org"}},
		{Path: "/open", Mode: ModeTopics, Origins: []string{"*", "https://app.example.org"}},
		{Path: "/null", Mode: ModeTopics, Origins: []string{"null"}},
	}})
	for _, test := range []struct {
		sentence, path, origin string
		status                 int
		cors                   string
		credentials            string
	}{
		{"a program has no origin", "/ws", "", 200, "", ""},
		{"a page of this host needs no leave to read", "/ws", "http://example.com", 200, "", ""},
		{"a listed origin gets it, with cookies", "/ws", "https://a.example.org", 200, "https://a.example.org", "true"},
		{"another one gets nothing", "/ws", "https://evil.example", 403, "", ""},
		{"where all may connect all may read, without cookies", "/open", "https://evil.example", 200, "https://evil.example", ""},
		{"an origin that is listed along with all gets both", "/open", "https://app.example.org", 200, "https://app.example.org", "true"},
		{"a sandboxed page may be listed, without cookies", "/null", "null", 200, "null", ""},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			headers := []string{"Accept: text/event-stream"}
			if test.origin != "" {
				headers = append(headers, "Origin: "+test.origin)
			}
			c := dialRaw(t, s)
			c.write([]byte(requestHead("GET "+test.path+"?topic=news HTTP/1.1", headers...)))
			resp := c.response()
			if got := resp.Header.Get("Access-Control-Allow-Origin"); resp.StatusCode != test.status || got != test.cors {
				t.Errorf("answered %s with leave for %q, want %d and %q", resp.Status, got, test.status, test.cors)
			}
			if got := resp.Header.Get("Access-Control-Allow-Credentials"); got != test.credentials {
				t.Errorf("credentials: %q, want %q", got, test.credentials)
			}
		})
	}
}

// Over TLS an http origin is a library's if nothing of the request can be a browser's.
func TestTLSOriginOfHTTP(t *testing.T) {
	a := newAuthority(t)
	asking := a.overTLS(Options{Endpoints: echoAndBroadcast()})
	asking.TLS.ClientAuth, asking.TLS.ClientCAFile = ClientAuthRequest, a.file()
	s, behind := start(t, asking), start(t, a.overTLS(Options{Endpoints: echoAndBroadcast(), TrustedProxies: []string{"127.0.0.1"}}))
	plain := "Host: example.com\r\nOrigin: http://example.com"
	for _, test := range []struct {
		headers string
		status  int
	}{
		{plain, 101},
		{"Host: example.com\r\nOrigin: https://example.com\r\nCookie: a=b", 101},
		{"Host: example.com\r\nOrigin: wss://example.com\r\nCookie: a=b", 101},
		{"Host: example.com:8443\r\nOrigin: http://example.com:8443", 101},
		{"Host: example.com\r\nOrigin: ws://example.com", 101},
		{"Host: example.com\r\nOrigin: http://evil.example", 403},
		{"Host: example.com\r\nOrigin: http://example.com\r\nCookie: a=b", 403},
		{"Host: example.com\r\nOrigin: ws://example.com\r\nCookie: a=b", 403},
		{"Host: example.com\r\nOrigin: http://example.com\r\nAuthorization: Basic YTpi", 403},
		{"Host: example.com\r\nOrigin: http://example.com\r\nAuthorization: Bearer abc", 101},
	} {
		wantOrigin(t, shakeTLS(t, s, a.client()), test.headers, test.status)
	}
	wantOrigin(t, shakeTLS(t, s, a.shows(a.client(), "alice")), plain, 403)
	wantOrigin(t, shakeTLS(t, behind, a.client()), plain, 403)
}

func wantOrigin(t *testing.T, c *client, headers string, status int) {
	t.Helper()
	c.write([]byte(strings.Replace(upgradeHead("/echo"), hostLine, headers+"\r\n", 1)))
	if resp := c.response(); resp.StatusCode != status {
		t.Errorf("%q: answered %s, want %d", headers, resp.Status, status)
	}
}
