package codec

import (
	"net/netip"
	"strings"
	"testing"
)

// The proxies of these tests are in 10.0.0.0/8 and 2001:db8:10::/48, and the request comes from one.
var (
	proxyPeer = netip.MustParseAddrPort("10.0.0.1:4000")
	networks  = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:10::/48")}
)

func isProxy(a netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// via reads headers as a server does.
func via(t testing.TB, headers ...string) *Via {
	t.Helper()
	var r Request
	if err := r.Parse([]byte("GET / HTTP/1.1\r\nHost: h\r\n" + strings.Join(append(headers, "", ""), "\r\n"))); err != nil {
		t.Fatal(err)
	}
	v := &Via{}
	r.AppendVia(v)
	return v
}

func TestClientBehindProxies(t *testing.T) {
	const proxy = "10.0.0.1:4000"
	for _, test := range []struct {
		sentence string
		headers  []string
		client   string
		scheme   string
	}{
		{"a proxy that says nothing is the client", nil, proxy, ""},
		{"a proxy names its client", []string{"X-Forwarded-For: 192.0.2.1"}, "192.0.2.1:0", ""},
		{"header names are of any case", []string{"x-FORWARDED-for: 192.0.2.1", "X-forwarded-PROTO: HTTPS"}, "192.0.2.1:0", "https"},
		{"a port may be there", []string{"X-Forwarded-For: 192.0.2.1:5000"}, "192.0.2.1:5000", ""},
		{"IPv6 needs no brackets", []string{"X-Forwarded-For: 2001:db8::1"}, "[2001:db8::1]:0", ""},
		{"IPv6 may have them", []string{"X-Forwarded-For: [2001:db8::1]"}, "[2001:db8::1]:0", ""},
		{"with them it may have a port", []string{"X-Forwarded-For: [2001:db8::1]:5000"}, "[2001:db8::1]:5000", ""},
		{"IPv4 may be written as IPv6", []string{"X-Forwarded-For: ::ffff:192.0.2.1"}, "192.0.2.1:0", ""},
		{"what the client invented stands before and does not count", []string{"X-Forwarded-For: 198.51.100.66, 192.0.2.1"}, "192.0.2.1:0", ""},
		{"a chain of proxies is followed", []string{"X-Forwarded-For: 198.51.100.66, 192.0.2.1, 10.0.0.3, 10.0.0.2"}, "192.0.2.1:0", ""},
		{"so it is over several lines", []string{"X-Forwarded-For: 198.51.100.66, 192.0.2.1", "Accept: */*", "X-Forwarded-For: 10.0.0.2"}, "192.0.2.1:0", ""},
		{"and through networks of IPv6", []string{"X-Forwarded-For: 192.0.2.1, 2001:db8:10::5"}, "192.0.2.1:0", ""},
		{"when all are proxies the first one asks", []string{"X-Forwarded-For: 10.0.0.3, 10.0.0.2"}, "10.0.0.3:0", ""},
		{"an unknown client is behind the last that is known", []string{"X-Forwarded-For: 192.0.2.1, unknown, 10.0.0.2"}, "10.0.0.2:0", ""},
		{"a malformed element ends the walk", []string{"X-Forwarded-For: 192.0.2.1, 10.0.0.300, 10.0.0.2"}, "10.0.0.2:0", ""},
		{"an empty element does", []string{"X-Forwarded-For: 192.0.2.1,,10.0.0.2"}, "10.0.0.2:0", ""},
		{"an empty line does", []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-For:"}, proxy, ""},
		{"a name is no address", []string{"X-Forwarded-For: localhost"}, proxy, ""},
		{"an address has no zone", []string{"X-Forwarded-For: fe80::1%eth0"}, proxy, ""},
		{"an address has no leading zeros", []string{"X-Forwarded-For: 192.0.2.01"}, proxy, ""},
		{"a port is a number", []string{"X-Forwarded-For: 192.0.2.1:x"}, proxy, ""},
		{"a port is not empty", []string{"X-Forwarded-For: 192.0.2.1:"}, proxy, ""},
		{"a port has 16 bits", []string{"X-Forwarded-For: 192.0.2.1:65536"}, proxy, ""},
		{"brackets are for IPv6", []string{"X-Forwarded-For: [192.0.2.1]:80"}, proxy, ""},
		{"brackets are closed", []string{"X-Forwarded-For: [2001:db8::1"}, proxy, ""},
		{"behind brackets there is a port or nothing", []string{"X-Forwarded-For: [2001:db8::1]80"}, proxy, ""},
		{"quotes are not for this header", []string{`X-Forwarded-For: "192.0.2.1"`}, proxy, ""},
		{"the walk ends after 32 proxies", []string{"X-Forwarded-For: 192.0.2.1" + strings.Repeat(", 10.0.0.7", 40)}, "10.0.0.7:0", ""},

		{"the scheme is told", []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https"}, "192.0.2.1:0", "https"},
		{"the scheme may be WebSocket's", []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: wss"}, "192.0.2.1:0", "https"},
		{"the scheme may be told alone", []string{"X-Forwarded-Proto: http"}, proxy, "http"},
		{"another scheme says nothing", []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: gopher"}, "192.0.2.1:0", ""},
		{"one scheme is for all proxies", []string{"X-Forwarded-For: 192.0.2.1, 10.0.0.2", "X-Forwarded-Proto: https"}, "192.0.2.1:0", "https"},
		{"of several schemes the client's has the position of its address", []string{"X-Forwarded-For: 192.0.2.1, 10.0.0.2", "X-Forwarded-Proto: https, http"}, "192.0.2.1:0", "https"},
		{"a scheme that the client invented does not count", []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https, http"}, "192.0.2.1:0", "http"},

		{"the standard's header names the client", []string{"Forwarded: for=192.0.2.1"}, "192.0.2.1:0", ""},
		{"and more", []string{"Forwarded: by=10.0.0.1;for=192.0.2.1;proto=https;host=example.com"}, "192.0.2.1:0", "https"},
		{"its names are of any case", []string{"Forwarded: For=192.0.2.1;PROTO=HTTPS"}, "192.0.2.1:0", "https"},
		{"IPv6 stands in quotes and brackets", []string{`Forwarded: for="[2001:db8:cafe::17]:4711"`}, "[2001:db8:cafe::17]:4711", ""},
		{"IPv4 with a port stands in quotes", []string{`Forwarded: for="192.0.2.1:80"`}, "192.0.2.1:80", ""},
		{"a port may be hidden", []string{`Forwarded: for="192.0.2.1:_x"`}, "192.0.2.1:0", ""},
		{"spaces behind a semicolon are forgiven", []string{"Forwarded: for=192.0.2.1; proto=https"}, "192.0.2.1:0", "https"},
		{"a chain is followed here too", []string{"Forwarded: for=198.51.100.66, for=192.0.2.1;proto=https,for=10.0.0.2;proto=http"}, "192.0.2.1:0", "https"},
		{"so it is over lines", []string{"Forwarded: for=192.0.2.1", "Forwarded: for=10.0.0.2"}, "192.0.2.1:0", ""},
		{"a comma between quotes separates nothing", []string{`Forwarded: for=192.0.2.1;host="a, for=198.51.100.66"`}, "192.0.2.1:0", ""},
		{"a quote that never ends does not swallow what is appended", []string{`Forwarded: for="198.51.100.66, for=192.0.2.1`}, "192.0.2.1:0", ""},
		{"nor over lines", []string{`Forwarded: for="`, `Forwarded: for=192.0.2.1`}, "192.0.2.1:0", ""},
		{"a client may be unknown", []string{"Forwarded: for=198.51.100.66, for=unknown, for=10.0.0.2"}, "10.0.0.2:0", ""},
		{"a client may be hidden", []string{"Forwarded: for=_hidden;proto=https"}, proxy, "https"},
		{"an element without a client ends the walk", []string{"Forwarded: for=198.51.100.66, proto=https"}, proxy, "https"},
		{"IPv6 must be in quotes", []string{"Forwarded: for=[2001:db8::1]"}, proxy, ""},
		{"IPv6 must be in brackets", []string{`Forwarded: for="2001:db8::1"`}, proxy, ""},
		{"a client must not be named twice", []string{"Forwarded: for=192.0.2.1;for=192.0.2.2"}, proxy, ""},
		{"a scheme must not be named twice", []string{"Forwarded: for=192.0.2.1;proto=http;proto=https"}, proxy, ""},
		{"a backslash is not needed", []string{`Forwarded: for="192.0.2.\1"`}, proxy, ""},
		{"a pair has an equals sign", []string{"Forwarded: 192.0.2.1"}, proxy, ""},
		{"a pair has a value", []string{"Forwarded: for="}, proxy, ""},
		{"a name has no spaces", []string{"Forwarded: for =192.0.2.1"}, proxy, ""},
		{"behind quotes comes a semicolon", []string{`Forwarded: for="192.0.2.1"x`}, proxy, ""},

		{"X-Forwarded-For goes before Forwarded", []string{"Forwarded: for=198.51.100.66", "X-Forwarded-For: 192.0.2.1"}, "192.0.2.1:0", ""},
		{"also when it is malformed", []string{"Forwarded: for=198.51.100.66", "X-Forwarded-For: x"}, proxy, ""},
		{"with Forwarded, X-Forwarded-Proto alone means nothing", []string{"Forwarded: for=192.0.2.1", "X-Forwarded-Proto: https"}, "192.0.2.1:0", ""},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			v := via(t, test.headers...)
			for range 2 { // the headers stay as they are
				client, scheme := v.Client(proxyPeer, isProxy)
				if client.String() != test.client || scheme != test.scheme {
					t.Fatalf("got %v over %q, want %s over %q", client, scheme, test.client, test.scheme)
				}
			}
			stranger := netip.MustParseAddrPort("203.0.113.9:1")
			if client, scheme := v.Client(stranger, isProxy); client != stranger || scheme != "" {
				t.Errorf("a stranger is believed to be %v over %q", client, scheme)
			}
		})
	}
}

// The host is told as the scheme is. It is given as it stands.
func TestForwardedHost(t *testing.T) {
	for _, test := range []struct {
		sentence     string
		headers      []string
		scheme, host string
	}{
		{"no header tells it", []string{"X-Forwarded-For: 192.0.2.1"}, "", ""},
		{"it is told", []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "X-FORWARDED-HOST: a.example:8443"}, "https", "a.example:8443"},
		{"it may be told alone", []string{"X-Forwarded-Host: a.example"}, "", "a.example"},
		{"one is for all proxies", []string{"X-Forwarded-For: 192.0.2.1, 10.0.0.2", "X-Forwarded-Host: a.example"}, "", "a.example"},
		{"of several the client's has the position of its address", []string{"X-Forwarded-For: 192.0.2.1, 10.0.0.2", "X-Forwarded-Host: x, a.example, b.example"}, "", "a.example"},
		{"the standard's header has it", []string{"Forwarded: for=192.0.2.1;proto=https;host=a.example, for=10.0.0.2;host=b.example"}, "https", "a.example"},
		{"there it must not be named twice", []string{"Forwarded: for=192.0.2.1;host=a.example;host=b.example"}, "", ""},
		{"with Forwarded, X-Forwarded-Host alone means nothing", []string{"Forwarded: for=192.0.2.1", "X-Forwarded-Host: a.example"}, "", ""},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			v := via(t, test.headers...)
			if scheme, host := v.Origin(proxyPeer, isProxy); scheme != test.scheme || host != test.host {
				t.Errorf("got %q over %q, want %q over %q", host, scheme, test.host, test.scheme)
			}
			if scheme, host := v.Origin(netip.MustParseAddrPort("203.0.113.9:1"), isProxy); scheme != "" || host != "" {
				t.Errorf("a stranger is believed: %q over %q", host, scheme)
			}
			if v.Reset(); len(v.XForwardedHost) != 0 {
				t.Error("Reset leaves the host")
			}
		})
	}
}

// FuzzForwarded: what a proxy appends to a header counts, whatever the client had put there.
func FuzzForwarded(f *testing.F) {
	for _, text := range []string{"", "192.0.2.1", `for="`, `for="[::1]:80";proto=https`, `"`, `\"`, ",", "for=_x, by=1", "unknown"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var r Request
		head := "GET / HTTP/1.1\r\nHost: h\r\n"
		if strings.ContainsAny(text, "\r\n") || r.Parse([]byte(head+"X: "+text+"\r\n\r\n")) != nil {
			return // it is no header's value
		}
		const want = "192.0.2.7:0"
		for _, headers := range []string{
			"X-Forwarded-For: " + text + ", 192.0.2.7",
			"X-Forwarded-For: " + text + "\r\nX-Forwarded-For: 192.0.2.7",
			"X-Forwarded-For: " + text + ", 192.0.2.7, 10.0.0.2",
			"Forwarded: " + text + ", for=192.0.2.7",
			"Forwarded: " + text + "\r\nForwarded: for=192.0.2.7;proto=https",
			"Forwarded: " + text + ",for=192.0.2.7,for=\"10.0.0.2:80\"",
		} {
			if err := r.Parse([]byte(head + headers + "\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			var v Via
			r.AppendVia(&v)
			if client, _ := v.Client(proxyPeer, isProxy); client.String() != want {
				t.Fatalf("%q is from %v", headers, client)
			}
		}
		for _, headers := range []string{"X-Forwarded-For: " + text, "Forwarded: " + text + "\r\nX-Forwarded-Proto: " + text} {
			if err := r.Parse([]byte(head + headers + "\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			var v Via
			r.AppendVia(&v)
			client, scheme := v.Client(proxyPeer, isProxy)
			if !client.IsValid() || client.Addr().Zone() != "" || client.Addr().Is4In6() || scheme != "" && scheme != "http" && scheme != "https" {
				t.Fatalf("%q is from %v over %q", headers, client, scheme)
			}
		}
	})
}
