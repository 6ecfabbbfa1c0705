package option

import (
	"strings"
	"testing"
)

func TestSizeText(t *testing.T) {
	for _, row := range []struct {
		text string
		size Size
		back string // what String makes of it
	}{
		{"0", 0, "0"}, {"1", 1, "1B"}, {"512B", 512, "512B"}, {"1024", 1024, "1KiB"}, {"64KiB", 64 << 10, "64KiB"},
		{"64 KiB", 64 << 10, "64KiB"}, {"1536KiB", 1536 << 10, "1536KiB"}, {"2048KiB", 2 << 20, "2MiB"},
		{"3GiB", 3 << 30, "3GiB"}, {"off", -1, "off"}, {"8589934591GiB", 8589934591 << 30, "8589934591GiB"},
	} {
		var s Size
		if err := s.UnmarshalText([]byte(row.text)); err != nil || s != row.size || s.String() != row.back {
			t.Errorf("%q is %d and back %q, %v; want %d and %q", row.text, s, s, err, row.size, row.back)
		}
	}
	for _, text := range []string{"", "KiB", "-1", "1.5MiB", "1KB", "1k", "1 K iB", "one", "Off", "8589934592GiB", "9223372036854775808", "1KiBB"} {
		s := Size(7)
		if err := s.UnmarshalText([]byte(text)); err == nil || s != 7 || !strings.Contains(err.Error(), text) {
			t.Errorf("%q is %d, %v; want an error", text, s, err)
		}
	}
}

// Whatever can be read is written so that it reads the same.
func FuzzSize(f *testing.F) {
	for _, text := range []string{"0", "1", "off", "64KiB", "1 MiB", "8589934591GiB", "-1", "1e3", "+5", "00B"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s, again Size
		if s.UnmarshalText([]byte(text)) != nil {
			return
		}
		written, _ := s.MarshalText()
		if err := again.UnmarshalText(written); err != nil || again != s || s < 0 && text != "off" {
			t.Errorf("%q is %d, written %q, read as %d, %v", text, s, written, again, err)
		}
	})
}
