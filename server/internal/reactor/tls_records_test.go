package reactor

import (
	"fmt"
	"testing"
)

// The records of a stream are found however it is cut, and are handed out one by one.
func TestTLSRecords(t *testing.T) {
	var stream []byte
	sizes := []int{0, 1, 17, 0, 300, 16 << 10, 5}
	for _, n := range sizes {
		stream = append(stream, 23, 3, 3, byte(n>>8), byte(n))
		stream = append(stream, make([]byte, n)...)
	}
	for _, piece := range []int{1, 2, 5, 6, 100, len(stream)} {
		t.Run(fmt.Sprintf("in pieces of %d", piece), func(t *testing.T) {
			var r records
			var in []byte
			rest, taken := stream, 0
			for len(rest) > 0 || len(in) > 0 {
				n := min(piece, len(rest))
				in, rest = append(in, rest[:n]...), rest[n:]
				whole := r.isWhole(in)
				before := r.Count
				b := in[:r.limit(in)]
				r.advance(b)
				taken += len(b)
				in = in[len(b):]
				if got := r.Count - before; whole && got != 1 || !whole && got != 0 {
					t.Fatalf("after %d bytes: whole is %v, and %d records have come to their end", taken, whole, got)
				}
			}
			if int(r.Count) != len(sizes) || taken != len(stream) {
				t.Errorf("%d records of %d bytes, want %d of %d", r.Count, taken, len(sizes), len(stream))
			}
		})
	}
	if huge := []byte{23, 3, 3, 0xff, 0xff}; !(&records{}).isWhole(huge) {
		t.Error("a record that is too large is waited for")
	}
}
