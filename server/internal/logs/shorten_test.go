package logs

import (
	"strings"
	"testing"
)

func TestShorten(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"plain words", "plain words"},
		{"größe", "größe"},
		{strings.Repeat("a", 201), strings.Repeat("a", 200) + "..."},
		{strings.Repeat("ü", 101), strings.Repeat("ü", 100) + "..."},
		{"a" + strings.Repeat("ü", 100), "a" + strings.Repeat("ü", 99) + "..."},
	} {
		if got := Shorten(row.text); got != row.want {
			t.Errorf("%q became %q, want %q", row.text, got, row.want)
		}
	}
}
