package main

import (
	"testing"
	"time"
)

func TestSeriesStaysSmall(t *testing.T) {
	var s series
	s.start(monotonic(), time.Millisecond)
	h := newHistogram()
	for range 10 * maxPoints {
		s.point(counters{}, h, nil)
	}
	if len(s.points) > maxPoints || len(s.points) < maxPoints/4 {
		t.Errorf("%d points", len(s.points))
	}
}
