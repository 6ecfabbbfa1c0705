package tlstable

import (
	"testing"
	"time"

	"carillon/server/internal/limit"
)

// An address is suspect until a handshake of it succeeds or its time is over, and only so many are.
func TestSuspects(t *testing.T) {
	var s suspects
	s.add(1, 0)
	s.add(2, time.Second)
	s.add(1, 2*time.Second) // once more
	s.remove(3)
	if !s.has(1, 3*time.Second) || !s.has(2, 3*time.Second) || s.has(3, 3*time.Second) {
		t.Error("one and two are suspect, three is not")
	}
	if s.has(2, time.Second+suspectFor) || !s.has(1, time.Second+suspectFor) {
		t.Error("the time of two is over, and that of one is not")
	}
	s.remove(1)
	if s.has(1, 3*time.Second) || s.order.Len() != 0 {
		t.Error("none is left")
	}
	for i := range 2 * maxSuspects {
		s.add(limit.Key(i), 0)
	}
	if len(s.at) != maxSuspects || s.order.Len() != maxSuspects || s.has(0, 0) || !s.has(2*maxSuspects-1, 0) {
		t.Errorf("%d are kept, and those are to be the last", len(s.at))
	}
}
