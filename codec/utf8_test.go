package codec

import (
	"testing"
	"unicode/utf8"
)

// checkInPieces writes p in one piece, in two at every place, and byte by byte; the verdict and, byte
// by byte, the place of the failure must be those of the standard library.
func checkInPieces(t *testing.T, p []byte) {
	t.Helper()
	want := utf8.Valid(p)
	for i := range len(p) + 1 {
		var c utf8Check
		if got := c.write(p[:i]) && c.write(p[i:]) && c.complete(); got != want {
			t.Fatalf("% x in two pieces, the first of %d bytes: got %v, want %v", p, i, got, want)
		}
	}
	var c utf8Check
	for i := range p {
		ok := c.write(p[i : i+1])
		if want := mayBecomeUTF8(p[:i+1]); ok != want {
			t.Fatalf("% x byte by byte, at byte %d: got %v, want %v", p, i, ok, want)
		}
		if !ok {
			return
		}
	}
	if c.complete() != want {
		t.Fatalf("% x is complete: %v, want %v", p, c.complete(), want)
	}
}

// Every byte that can make a difference, in every order, up to four of them and one on either side.
func TestUTF8AgainstTheStandardLibrary(t *testing.T) {
	edges := []byte{0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
		0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF}
	for a := range 256 {
		checkInPieces(t, []byte{byte(a)})
		for b := range 256 {
			checkInPieces(t, []byte{byte(a), byte(b)})
		}
	}
	if testing.Short() {
		t.Skip("three and four bytes take a second")
	}
	for _, a := range edges {
		for _, b := range edges {
			for _, c := range edges {
				checkInPieces(t, []byte{a, b, c})
				for _, d := range edges {
					checkInPieces(t, []byte{a, b, c, d})
				}
			}
		}
	}
}

func TestUTF8EveryRune(t *testing.T) {
	for r := rune(0); r <= utf8.MaxRune; r++ {
		if r >= 0xD800 && r <= 0xDFFF {
			continue
		}
		p := utf8.AppendRune(nil, r)
		var c utf8Check
		for i := range p {
			if !c.write(p[i:i+1]) || c.complete() != (i == len(p)-1) {
				t.Fatalf("%U: byte %d of % x", r, i, p)
			}
		}
	}
}

func TestUTF8FailsAtTheFirstImpossibleByte(t *testing.T) {
	tests := []struct {
		rule  string
		bytes string
		at    int // index of the byte that fails; len(bytes) when the end does
	}{
		{"a continuation byte cannot lead", "\x80", 0},
		{"C0 and C1 would be overlong", "\xc1\xbf", 0},
		{"F5 would be beyond Unicode", "\xf5\x80", 0},
		{"an overlong three-byte sequence fails at its second byte", "\xe0\x9f\xbf", 1},
		{"a surrogate fails at its second byte", "\xed\xa0\x80", 1},
		{"the last code point before the surrogates is fine", "\xed\x9f\xbf\xff", 3},
		{"an overlong four-byte sequence fails at its second byte", "\xf0\x8f\xbf\xbf", 1},
		{"beyond U+10FFFF fails at its second byte", "\xf4\x90\x80\x80", 1},
		{"U+10FFFF itself is fine", "\xf4\x8f\xbf\xbf\xff", 4},
		{"a sequence cut short by ASCII fails there", "\xe2\x82A", 2},
		{"a sequence cut short by the end fails there", "a\xe2\x82", 3},
		{"ASCII before it changes nothing", "0123456789abcdef\xed\xa0", 17},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			var c utf8Check
			at := len(tt.bytes)
			for i := range len(tt.bytes) {
				if !c.write([]byte(tt.bytes[i : i+1])) {
					at = i
					break
				}
			}
			if at != tt.at || at == len(tt.bytes) && c.complete() {
				t.Errorf("byte by byte it fails at %d, want %d", at, tt.at)
			}
			for i := range tt.at {
				var c utf8Check
				if !c.write([]byte(tt.bytes[:i+1])) {
					t.Errorf("the first %d bytes fail together", i+1)
				}
			}
			if tt.at < len(tt.bytes) {
				var c utf8Check
				if c.write([]byte(tt.bytes[:tt.at+1])) {
					t.Errorf("the first %d bytes pass together", tt.at+1)
				}
			}
		})
	}
}

func FuzzUTF8(f *testing.F) {
	for _, s := range []string{"", "Hello", "κόσμε", "🎉🎉", "\xf4\x90", "\xed\xa0\x80", "0123456789abcdef\xe2\x82\xac", "a\xe2\x82"} {
		f.Add([]byte(s), uint(3), uint(1))
	}
	f.Fuzz(func(t *testing.T, p []byte, i, j uint) {
		a := int(i % uint(len(p)+1))
		b := a + int(j%uint(len(p)-a+1))
		var c utf8Check
		got := true
		for _, piece := range [][]byte{p[:a], p[a:b], p[b:]} {
			got = got && c.write(piece)
		}
		if got = got && c.complete(); got != utf8.Valid(p) {
			t.Fatalf("pieces of %d, %d and %d bytes of % x: got %v", a, b-a, len(p)-b, p, got)
		}
		if len(p) < 64 {
			checkInPieces(t, p)
		}
	})
}
