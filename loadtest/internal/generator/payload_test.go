package generator

import (
	"bytes"
	"testing"
	"unicode/utf8"
)

func TestPayloadCarriesItsStamp(t *testing.T) {
	for _, text := range []bool{false, true} {
		for _, size := range []int{MinSize(text), MinSize(text) + 1, 128, 65536} {
			p := newPayloads(0xfeedface12345678, text, size)
			want := stamp{sender: 7, sequence: 4_000_000_000, due: 123_456_789_012_345}
			b := p.blank()
			p.put(b, want)
			if len(b) != size {
				t.Errorf("text %v: a payload of %d bytes has %d", text, size, len(b))
			}
			if text && !utf8.Valid(b) {
				t.Errorf("text of %d bytes is not UTF-8: %q", size, b)
			}
			if got, ok := newPayloads(p.run, text, size).read(b); !ok || got != want {
				t.Errorf("text %v, %d bytes: read %+v, %v, want %+v", text, size, got, ok, want)
			}
		}
	}
}

func TestDamagedPayloadIsForeign(t *testing.T) {
	for _, text := range []bool{false, true} {
		p := newPayloads(1, text, 100)
		b := p.blank()
		p.put(b, stamp{1, 2, 3})
		for i := range b {
			for bit := range 8 {
				damaged := bytes.Clone(b)
				damaged[i] ^= 1 << bit
				// An upper-case digit is the same digit.
				if s, ok := p.read(damaged); ok && !bytes.Equal(bytes.ToLower(damaged), b) {
					t.Errorf("text %v: bit %d of byte %d flipped, and read as %+v", text, bit, i, s)
				}
			}
		}
		for _, other := range [][]byte{nil, b[:99], append(bytes.Clone(b), 'x'), []byte("hello")} {
			if _, ok := p.read(other); ok {
				t.Errorf("text %v: %q passes for ours", text, other)
			}
		}
		if _, ok := newPayloads(2, text, 100).read(b); ok {
			t.Errorf("text %v: a message of another run passes for ours", text)
		}
	}
}

func FuzzPayload(f *testing.F) {
	binary, text := newPayloads(1, false, 64), newPayloads(1, true, 64)
	for _, p := range []*payloads{binary, text} {
		b := p.blank()
		p.put(b, stamp{1, 2, 3})
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range []*payloads{binary, text} {
			s, ok := p.read(b)
			if !ok {
				continue
			}
			again := p.blank()
			p.put(again, s)
			if !bytes.EqualFold(again, b) {
				t.Errorf("%x is read as %+v, which is written as %x", b, s, again)
			}
		}
	})
}
