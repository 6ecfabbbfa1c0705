package server

import (
	"fmt"
	"strings"
	"testing"
	"time"
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

func TestOriginLog(t *testing.T) {
	var l originLog
	take := func(origin string, now time.Duration) string { return fmt.Sprint(l.take(origin, now)) }
	for i := range mostOrigins {
		if got := take(fmt.Sprint(i), time.Second); got != "true 0" {
			t.Errorf("origin %d: %s", i, got)
		}
	}
	for _, row := range []struct {
		origin string
		now    time.Duration
		want   string
	}{
		{"0", 2 * time.Second, "false 0"},
		{"new", 59 * time.Second, "false 0"},
		{"newer", 59 * time.Second, "false 0"},
		{"0", time.Minute, "true 2"},
		{"1", time.Minute, "true 0"},
		{"0", 3 * time.Minute, "true 0"},
	} {
		if got := take(row.origin, row.now); got != row.want {
			t.Errorf("%s at %v: %s, want %s", row.origin, row.now, got, row.want)
		}
	}
	if n := l.omitted.Load(); n != 2 {
		t.Errorf("%d lines were omitted", n)
	}
}
