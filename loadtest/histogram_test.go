package main

import (
	"math/rand/v2"
	"testing"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
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
		t.Errorf("the merged histogram differs: %+v, want %+v", latencyOf(merged), latencyOf(whole))
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
		{"an hour", 3600e9, longestLatency},
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

func TestLatencySumsUp(t *testing.T) {
	if l := latencyOf(newHistogram()); l != nil {
		t.Errorf("an empty histogram is %+v", l)
	}
	h := newHistogram()
	for us := range int64(1000) {
		record(h, (us+1)*1000)
	}
	l := latencyOf(h)
	if l.Count != 1000 || l.P50 != 500 || l.P90 != 900 || l.P99 != 990 || l.P999 != 999 || l.Max != 1000 || l.Mean < 500 || l.Mean > 501 {
		t.Errorf("1 to 1000 us: %+v", l)
	}
	again, err := hdr.Decode([]byte(l.Histogram))
	if err != nil || !again.Equals(h) {
		t.Errorf("the encoded histogram is another one: %v", err)
	}
}

func TestCompletionIsTheLastReceiver(t *testing.T) {
	var one, two arrivals
	one.most, two.most = 1024, 1024
	ms := func(n int64) int64 { return n * 1_000_000 }
	one.note(stamp{sequence: 0, due: ms(100)}, ms(101))
	one.note(stamp{sequence: 0, due: ms(100)}, ms(102))
	two.note(stamp{sequence: 0, due: ms(100)}, ms(105))
	one.note(stamp{sequence: 1, due: ms(200)}, ms(203)) // and nobody else
	two.note(stamp{sequence: 2, due: ms(300)}, ms(301))
	one.note(stamp{sequence: 2, due: ms(300)}, ms(302))
	one.note(stamp{sequence: 2, due: ms(300)}, ms(307))

	var all arrivals
	for _, a := range []arrivals{one, two} {
		got, ok := unpackArrivals(a.pack())
		if !ok {
			t.Fatal("what was packed cannot be unpacked")
		}
		all.add(got)
	}
	h := newHistogram()
	all.complete(h, 3)
	if h.TotalCount() != 2 || h.Min() != 5000 || h.Max() < 7000 || h.Max() > 7010 {
		t.Errorf("%d complete, after %d to %d us; want 2, after 5000 and 7000", h.TotalCount(), h.Min(), h.Max())
	}
}

func TestArrivalsOfALongRunAreASample(t *testing.T) {
	short, long := arrivals{most: 16}, arrivals{most: 1024}
	for n := range uint32(1000) {
		at := int64(n) * 1_000_000
		short.note(stamp{sequence: n, due: at}, at+2000_000)
		long.note(stamp{sequence: n, due: at}, at+3000_000)
	}
	if len(short.rows) > 16 || short.shift != 6 {
		t.Errorf("%d rows with shift %d", len(short.rows), short.shift)
	}
	for _, merged := range []*arrivals{{}, {}} {
		merged.add(long)
		merged.add(short)
		h := newHistogram()
		merged.complete(h, 2)
		if h.TotalCount() != 16 || h.Min() != 3000 {
			t.Errorf("%d messages, the fastest after %d us; want 16 after 3000", h.TotalCount(), h.Min())
		}
	}
}
