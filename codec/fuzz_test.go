package codec

import (
	"strings"
	"testing"
)

// FuzzFrames: whatever the bytes and however they are split, the outcome is that of the reference.
func FuzzFrames(f *testing.F) {
	const hello = "\xf2\x48\xcd\xc9\xc9\x07\x00"
	for _, s := range []string{
		client(fin|1, "Hello"), client(fin|2, "\xff") + client(fin|9, "ping") + client(fin|8, "\x03\xe8bye"),
		client(1, "Hel") + client(0, "\xce") + client(fin|10, "") + client(fin, "\xba"),
		client(fin|2, strings.Repeat("x", 200)), client(fin|1, "\xed\xa0"), "\x81\x00", "\x81\x05Hello",
		client(fin|rsv1|1, hello), client(rsv1|1, hello[:3]) + client(fin, hello[3:]), client(fin|rsv1|9, ""),
		header64(fin|2, 1<<63), header64(fin|2, 65536) + "abc", "\x82\xfe\x00\x05" + masked("Hello"),
		strings.Repeat(client(1, "a")+client(fin, "b"), 3), client(1, "") + client(0, "") + client(0, "") + client(0, "") + client(0, ""),
	} {
		f.Add([]byte(s), uint16(7), uint16(3), byte(0))
		f.Add([]byte(s), uint16(2), uint16(1), byte(0xFF))
	}
	f.Fuzz(func(t *testing.T, stream []byte, i, j uint16, limits byte) {
		if len(stream) > 4096 {
			return // the reference is slow
		}
		newDecoder := func() *Decoder {
			d := &Decoder{MaxMessage: 300, MaxFragments: 3}
			if limits&1 != 0 {
				d.Inflater = NewInflater()
			}
			if limits&2 != 0 {
				d.MaxMessage, d.MaxFragments = -1, -1
			}
			return d
		}
		s := string(stream)
		if newDecoder().Inflater != nil && newDecoder().MaxMessage < 0 {
			return // a bomb without a limit only tests the machine's memory
		}
		a := int(i) % (len(s) + 1)
		b := a + int(j)%(len(s)-a+1)
		want := reference(s, newDecoder())
		for how, chunks := range map[string][]string{
			"whole":        {s},
			"three pieces": {s[:a], s[a:b], s[b:]},
			"byte by byte": strings.Split(s, ""),
		} {
			if got := feed(t, newDecoder(), chunks...); got.String() != want.String() || got.err != want.err {
				t.Fatalf("%s, cut at %d and %d:\n     got %v\nreference %v", how, a, b, got, want)
			}
			budget := func() int { return a % 300 }
			if a%300 == 0 {
				budget = func() int { return 1 }
			}
			if got := feedSliced(t, newDecoder(), budget, chunks...); got.String() != want.String() || got.err != want.err {
				t.Fatalf("%s, cut at %d and %d, in slices of %d:\n     got %v\nreference %v", how, a, b, budget(), got, want)
			}
		}
	})
}
