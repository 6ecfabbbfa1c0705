package server

import (
	"strings"
	"testing"
)

// Each refused origin is logged once a minute, with the key to set.
func TestRefusedOriginsAreLogged(t *testing.T) {
	s, log := startLogged(t, Options{Endpoints: []Endpoint{{Path: "/ws", Mode: ModeTopics}}})
	for _, origin := range []string{"https://shop.example", "https://shop.example", "https://blog.example"} {
		for _, head := range []string{upgradeHead("/ws?token=secret", "Origin: "+origin), requestHead("GET /ws?topic=a HTTP/1.1", "Accept: text/event-stream", "Origin: "+origin)} {
			c := dialRaw(t, s)
			c.write([]byte(head))
			c.wantRefusal(403, "origin")
		}
	}
	got := log.String()
	for _, words := range []string{"level=INFO", "origin=https://shop.example path=/ws host=example.com remote=127.0.0.1:", "endpoints[].origins", "public_url"} {
		if !strings.Contains(got, words) {
			t.Errorf("%q is not in\n%s", words, got)
		}
	}
	if shop, blog := strings.Count(got, "origin=https://shop.example"), strings.Count(got, "origin=https://blog.example"); shop != 1 || blog != 1 {
		t.Errorf("%d and %d lines:\n%s", shop, blog, got)
	}
	if strings.Contains(got, "secret") {
		t.Errorf("the token is in the log:\n%s", got)
	}
}
