package generator

import (
	"math/rand/v2"
	"testing"
)

func TestHistogramsOfProcessesMerge(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	whole, merged := newHistogram(), newHistogram()
	for range 5 {
		part := newHistogram()
		for range 2000 {
			nanos := random.Int64N(1 << random.IntN(38))
			record(whole, nanos)
			record(part, nanos)
		}
		if err := unpack(merged, pack(part)); err != nil {
			t.Fatal(err)
		}
	}
	if !whole.Equals(merged) {
		t.Errorf("the merged histogram differs: %v, want %v", merged.CumulativeDistribution(), whole.CumulativeDistribution())
	}
}

func TestHistogramHoldsEveryLatency(t *testing.T) {
	for _, tt := range []struct {
		name        string
		nanos, want int64
	}{
		{"a clock that went backwards", -5, 0},
		{"nothing", 0, 0},
		{"under a microsecond", 999, 0},
		{"a microsecond", 1000, 1},
		{"a minute", 60e9, 60e6},
		{"an hour", 3600e9, maxLatency},
	} {
		h := newHistogram()
		record(h, tt.nanos)
		if got := h.Max(); h.TotalCount() != 1 || got < tt.want || float64(got) > float64(tt.want)*1.001 {
			t.Errorf("%s: %d ns became %d of %d us, want %d", tt.name, tt.nanos, h.TotalCount(), got, tt.want)
		}
	}
}

func TestDamagedHistogramIsAnError(t *testing.T) {
	for _, b := range [][]byte{{0x01}, {0xff}, {0x80, 0x80}, {0xff, 0xff, 0xff, 0xff, 0x7f, 1}} {
		if unpack(newHistogram(), b) == nil {
			t.Errorf("% x passes for a histogram", b)
		}
	}
}
