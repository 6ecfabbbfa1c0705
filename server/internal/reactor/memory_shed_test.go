package reactor

import (
	"testing"
)

// Of many slow consumers those are shed for which most waits, and few of them are sorted at once.
func TestTheSlowestOfMany(t *testing.T) {
	sh := &Shard{}
	const many = 5000
	for i := range many {
		c := queued(sh, nil)
		c.out.Bytes = ShedLeast - 100 + (i*2311)%many // each once
		sh.Stalled = append(sh.Stalled, c)
	}
	list, more := sh.largest()
	if len(list) != maxShed || cap(list) > 2*maxShed || !more {
		t.Fatalf("%d of %d, want %d of %d", len(list), cap(list), maxShed, 2*maxShed)
	}
	for i, one := range list {
		if want := ShedLeast - 100 + many - 1 - i; one.bytes != want || one.conn.out.Bytes != want {
			t.Fatalf("number %d has %d bytes, want %d", i, one.bytes, want)
		}
	}
	sh.Stalled = sh.Stalled[:300]
	for i, c := range sh.Stalled {
		c.out.Bytes = ShedLeast - 100 + i
	}
	if list, more = sh.largest(); more || len(list) != 200 || list[199].bytes != ShedLeast {
		t.Errorf("%d have much waiting, want 200", len(list))
	}
}
