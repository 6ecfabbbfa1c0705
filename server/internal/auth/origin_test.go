package auth

import (
	"strings"
	"testing"

	"carillon/codec"
)

// FuzzOrigin: what is taken for an origin is written in one way only, and nothing that is not listed is
// found in a list.
func FuzzOrigin(f *testing.F) {
	for _, text := range []string{"https://example.com", "http://[::1]:80", "null", "https://a.b:0", "://", "https://*.x"} {
		f.Add(text)
	}
	list := NewOrigins([]string{"https://example.com", "https://*.example.org:8443"}, "")
	f.Fuzz(func(t *testing.T, text string) {
		o, ok := ParseOrigin(text)
		if !ok {
			return
		}
		again := o.Scheme + "://" + o.Host
		if o.Port != "" {
			again += ":" + o.Port
		}
		if p, ok := ParseOrigin(again); !ok || p != o {
			t.Errorf("%q is %+v, and %q is %+v", text, o, again, p)
		}
		if list.listed([]byte(text)) && again != "https://example.com" && !strings.HasSuffix(again, ".example.org:8443") {
			t.Errorf("%q is in the list", text)
		}
	})
}

// Judging a request without an origin costs no memory.
func TestOriginOfAProgramAllocatesNothing(t *testing.T) {
	var r codec.Request
	if err := r.Parse([]byte("GET /echo HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	list := NewOrigins([]string{"https://example.org"}, "")
	if n := testing.AllocsPerRun(100, func() {
		if text, _ := list.Readable(&r); !list.Allow(&r, Transport{}) || text != "" {
			t.Error("refused")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
