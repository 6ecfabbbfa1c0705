package wsclient

import (
	"bytes"
	"testing"
)

func TestDeflateRoundTrip(t *testing.T) {
	var d Deflater
	for _, m := range [][]byte{nil, []byte("a"), bytes.Repeat([]byte("abc"), 50_000), {0, 0, 255, 255}} {
		for range 2 {
			compressed := bytes.Clone(d.Compress(m))
			if len(m) > 100 && len(compressed) > len(m)/10 {
				t.Errorf("%d bytes were compressed to %d", len(m), len(compressed))
			}
			if got, err := d.Decompress(compressed); err != nil || !bytes.Equal(got, m) {
				t.Errorf("%d bytes came back as %d: %v", len(m), len(got), err)
			}
		}
	}
	if _, err := d.Decompress([]byte{0xff, 0xff}); err == nil {
		t.Error("nonsense can be decompressed")
	}
	if got, err := d.Decompress(d.Compress([]byte("still works"))); err != nil || string(got) != "still works" {
		t.Errorf("after nonsense: %q, %v", got, err)
	}
}
