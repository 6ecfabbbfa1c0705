package hub

import (
	"testing"

	"carillon/codec"
)

// A history goes out in pieces of so many messages and bytes.
func TestPiecesOfHistory(t *testing.T) {
	list := func(n, size int) (list []*Message) {
		for range n {
			list = append(list, new(Message).WithRaw(codec.NewFrame(codec.OpText, make([]byte, size))))
		}
		return list
	}
	for _, test := range []struct{ n, size, want int }{
		{0, 0, 0}, {1, 10, 1}, {ReplayPiece, 10, ReplayPiece}, {ReplayPiece + 1, 10, ReplayPiece}, {1, 2 * ReplayBytes, 1}, {2, 2 * ReplayBytes, 1}, {8, ReplayBytes / 4, 4},
	} {
		if got := pieceOf(list(test.n, test.size)); got != test.want {
			t.Errorf("the first piece of %d messages of %d bytes has %d", test.n, test.size, got)
		}
	}
}
