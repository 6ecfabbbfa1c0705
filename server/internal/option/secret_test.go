package option

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// A token is in no text that might be seen.
func TestSecret(t *testing.T) {
	in := struct{ Token Secret }{"hush-hush-hush-hush"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", in.Token, "options", in)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", in.Token, "options", in)
	marshalled, _ := in.Token.MarshalText()
	for _, text := range []string{fmt.Sprintf("%v %s %q %+v %#v %x", in.Token, in.Token, in.Token, in, in, in.Token), log.String(), string(marshalled)} {
		if strings.Contains(text, "hush") || strings.Contains(text, fmt.Sprintf("%x", "hush")) {
			t.Error(text)
		}
	}
	var s Secret
	for _, text := range []string{"hu sh", "hush\n", "hüsh", "\x00"} {
		if err := s.UnmarshalText([]byte(text)); err == nil || strings.Contains(err.Error(), "hu") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := s.UnmarshalText([]byte("a-Z~9+/=")); err != nil || s != "a-Z~9+/=" {
		t.Error(s == "", err)
	}
}
