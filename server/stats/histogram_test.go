package stats

import (
	"math"
	"slices"
	"testing"
	"time"
)

// A time is counted in the bucket whose end it does not exceed, and the sum is exact.
func TestHistogram(t *testing.T) {
	for _, row := range []struct {
		us     uint32
		bucket int
	}{
		{0, 0}, {50, 0}, {51, 1}, {100, 1}, {1_000, 4}, {1_001, 5}, {10_000_000, Buckets - 2}, {10_000_001, Buckets - 1}, {math.MaxUint32, Buckets - 1},
	} {
		var h Histogram
		h.Observe(row.us)
		h.Publish()
		for i := range h.Counts {
			if n := h.Counts[i].Load(); (n == 1) != (i == row.bucket) || n > 1 {
				t.Errorf("%d us: bucket %d has %d", row.us, i, n)
			}
		}
		if h.Sum.Load() != uint64(row.us) {
			t.Errorf("%d us: the sum is %d", row.us, h.Sum.Load())
		}
	}
	if !slices.IsSorted(Bounds[:]) {
		t.Error("the bounds are in no order")
	}
	var h Histogram
	h.Since(2*time.Second, time.Second) // a clock that seems to go back
	h.Since(0, 100*time.Hour)
	if h.Publish(); h.Counts[0].Load() != 1 || h.Counts[Buckets-1].Load() != 1 || h.Sum.Load() != uint64(time.Hour/time.Microsecond) {
		t.Error("times that cannot be are not bounded")
	}
	var m Histograms
	m.Flushed = make([]Histogram, 3)
	if n := testing.AllocsPerRun(100, func() {
		m.Turn.Observe(70)
		m.Flushed[1].Observe(3_000)
		m.Publish()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
