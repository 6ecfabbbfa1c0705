package generator

import "testing"

func TestCompletionIsTheLastReceiver(t *testing.T) {
	var one, two arrivals
	one.max, two.max = 1024, 1024
	ms := func(n int64) int64 { return n * 1_000_000 }
	one.note(stamp{sequence: 0, due: ms(100)}, ms(101))
	one.note(stamp{sequence: 0, due: ms(100)}, ms(102))
	two.note(stamp{sequence: 0, due: ms(100)}, ms(105))
	one.note(stamp{sequence: 1, due: ms(200)}, ms(203)) // reaches one receiver only
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
	short, long := arrivals{max: 16}, arrivals{max: 1024}
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
