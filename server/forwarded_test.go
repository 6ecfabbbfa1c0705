package server

import (
	"fmt"
	"net/http"
	"testing"
)

// What a request says about its way here counts when it comes from a trusted proxy, and only then.
func TestForwarded(t *testing.T) {
	seen := make(chan string, 1)
	endpoint := whoAmI()
	endpoint.Handler.Upgrade = func(r *Request) error {
		seen <- fmt.Sprintf("%v, secure %v", r.RemoteAddr, r.Secure)
		return nil
	}
	s := start(t, Options{Endpoints: []Endpoint{endpoint}, TrustedProxies: []string{"127.0.0.1", "10.0.0.0/8"}})
	for _, test := range []struct {
		sentence, source string
		headers          []string
		want             string // "" for its own address
		secure           bool
	}{
		{"a proxy tells the client", "127.0.0.1", []string{"X-Forwarded-For: 198.51.100.66, 192.0.2.1, 10.1.1.1", "X-Forwarded-Proto: https"}, "192.0.2.1:0", true},
		{"over plain HTTP it is not secure", "127.0.0.1", []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http"}, "192.0.2.1:0", false},
		{"the standard's header will do", "127.0.0.1", []string{`Forwarded: for="[2001:db8::1]:4711";proto=https`}, "[2001:db8::1]:4711", true},
		{"a proxy that says nothing is the client", "127.0.0.1", nil, "", false},
		{"a malformed element ends the walk", "127.0.0.1", []string{"X-Forwarded-For: 192.0.2.1, what"}, "", false},
		{"a stranger is not believed", "127.0.0.2", []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https"}, "", false},
		{"nor is his standard's header", "127.0.0.2", []string{"Forwarded: for=192.0.2.1;proto=https"}, "", false},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c := dialFrom(t, s, test.source)
			c.write([]byte(upgradeHead("/who", test.headers...)))
			if resp := c.response(); resp.StatusCode != 101 {
				t.Fatalf("answered %s", resp.Status)
			}
			want := test.want
			if want == "" {
				want = c.conn.LocalAddr().String()
			}
			c.want(want)
			if got := <-seen; got != fmt.Sprintf("%s, secure %v", want, test.secure) {
				t.Errorf("Upgrade saw %s", got)
			}
		})
	}
}

// A proxy keeps its connection and sends on it what its clients want: alice a page, bob a page, and then
// alice a WebSocket. Each is seen as the one who asked.
func TestForwardedForManyClientsOnOneConnection(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{whoAmI()}, HTTP: http.HandlerFunc(mirror), TrustedProxies: []string{"127.0.0.1"}})
	const alice, bob = "192.0.2.1", "192.0.2.2"
	c := dialRaw(t, s)
	for _, row := range []struct{ header, want string }{
		{"X-Forwarded-For: " + alice, alice + ":0"},
		{"X-Forwarded-For: " + bob, bob + ":0"},
		{"Forwarded: for=198.51.100.66, for=" + alice, alice + ":0"},
		{"X-Forwarded-For: nobody", c.conn.LocalAddr().String()},
		{"Accept: */*", c.conn.LocalAddr().String()},
	} {
		c.write([]byte(requestHead("GET / HTTP/1.1", row.header)))
		if got := c.wantPage("GET /").Header.Get("X-Remote"); got != row.want {
			t.Errorf("with %q the page is for %s, want %s", row.header, got, row.want)
		}
	}
	c.write([]byte(upgradeHead("/who", "X-Forwarded-For: "+alice)))
	if resp := c.response(); resp.StatusCode != 101 {
		t.Fatalf("answered %s", resp.Status)
	}
	c.want(alice + ":0")

	stranger := dialFrom(t, s, "127.0.0.2")
	stranger.write([]byte(requestHead("GET / HTTP/1.1", "X-Forwarded-For: "+alice)))
	if got := stranger.wantPage("GET /").Header.Get("X-Remote"); got != stranger.conn.LocalAddr().String() {
		t.Errorf("a stranger's page is for %s", got)
	}
}
