package auth

import (
	"fmt"
	"testing"
	"time"
)

func TestOriginLog(t *testing.T) {
	var l OriginLog
	take := func(origin string, now time.Duration) string { return fmt.Sprint(l.Take(origin, now)) }
	for i := range maxOrigins {
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
	if n := l.Omitted(); n != 2 {
		t.Errorf("%d lines were omitted", n)
	}
}
