package logs

import (
	"testing"
	"time"
)

// So many lines a second are written; the first of the next second says how many were not.
func TestSampler(t *testing.T) {
	s := NewSampler(3)
	for i := range 10 {
		ok, silent := s.Take(time.Duration(i) * time.Millisecond)
		if ok != (i < 3) || silent != 0 {
			t.Errorf("line %d: %v, %d", i, ok, silent)
		}
	}
	if ok, silent := s.Take(time.Second); !ok || silent != 7 {
		t.Errorf("in the next second: %v, %d", ok, silent)
	}
	if ok, silent := s.Take(time.Second); !ok || silent != 0 || s.Omitted() != 7 {
		t.Errorf("after that: %v, %d, %d in all", ok, silent, s.Omitted())
	}
}
