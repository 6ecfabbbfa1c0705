package main

import (
	"testing"
	"time"

	"carillon/loadtest/internal/generator"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

func TestSeriesStaysSmall(t *testing.T) {
	var s series
	s.start(generator.Monotonic(), time.Millisecond)
	h := hdr.New(1, 1000, 3)
	for range 10 * maxPoints {
		s.point(generator.Counters{}, h, nil)
	}
	if len(s.points) > maxPoints || len(s.points) < maxPoints/4 {
		t.Errorf("%d points", len(s.points))
	}
}
