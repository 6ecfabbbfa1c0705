package auth

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"carillon/codec"
)

// A proxy, or a server that is no HTTP server, has errors of its own. Neither they nor the log have the secrets of a
// URL.
func TestSecretsOfURLsAreNotShown(t *testing.T) {
	const secret = "http://user-sesame:password-sesame@127.0.0.1:1/x?token=query-sesame"
	var shown strings.Builder
	for _, broken := range []string{secret + "\x7f", strings.Replace(secret, "127.0.0.1:1", "[::1", 1), "https" + strings.TrimPrefix(secret, "http")} {
		j := newJWKS(broken, nil)
		_, err := j.fetch(context.Background())
		fmt.Fprintln(&shown, err)
		h := newHook(&Hook{URL: broken, Timeout: time.Second}, slog.New(slog.NewTextHandler(&shown, nil)))
		if _, err := h.decide(context.Background(), &codec.Request{}, "", ""); err == nil {
			t.Errorf("%s lets in", broken)
		}
	}
	if strings.Contains(shown.String(), "sesame") {
		t.Error(shown.String())
	}
	if n := strings.Count(shown.String(), "connect hook failing"); n != 3 {
		t.Errorf("%d lines about the hooks:\n%s", n, shown.String())
	}
}
