package server

import (
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
