package server

import (
	"fmt"
	"strings"
	"testing"
)

// A message may become a thousand times as long, but not one after the other.
func TestDecompressedBytesPerSecond(t *testing.T) {
	s := start(t, Options{Endpoints: compressing(), Limits: Limits{DecompressedBytesPerSecond: 128 << 10}})
	alice, bob := dial(t, s, "/echo", offerHeader), dial(t, s, "/echo", offerHeader)
	zeros := strings.Repeat("\x00", 1<<20)
	bomb := masked(0xc2, deflated(t, zeros))
	alice.write(bomb) // most of what ten seconds allow
	alice.wantDeflated(Binary, zeros)
	alice.write(bomb)
	alice.wantClose(1008, "limits.decompressed_bytes_per_second")
	bob.send("hello")
	bob.want("hello")
	if st := s.Stats(); st.Cuts[CutDecompressionRate] != 1 || st.Closes[1008] != 1 {
		t.Errorf("counted %d, closes %v", st.Cuts[CutDecompressionRate], st.Closes)
	}
}

// However little may be made of small messages, text that is as long as its size explains is not limited.
func TestOrdinaryCompressionIsNotLimited(t *testing.T) {
	s := start(t, Options{Endpoints: compressing(), Limits: Limits{DecompressedBytesPerSecond: 1}})
	alice := dial(t, s, "/echo", offerHeader)
	text := ""
	for i := range 300 {
		text += fmt.Sprintf(`{"id":%d,"symbol":"CAR%d","note":"carillon"},`, i, i%13)
	}
	zipped := deflated(t, text)
	if ratio := len(text) / len(zipped); ratio < 10 || ratio > 25 {
		t.Fatalf("the test's text becomes %d times as long", ratio)
	}
	for range 500 {
		alice.write(masked(0xc1, zipped))
		alice.wantDeflated(Text, text)
	}
}
