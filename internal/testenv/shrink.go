package testenv

import "testing"

// GivesMemoryBack checks that what is filled and emptied again keeps a small part of the memory that it took, also
// while something is left in it. When it is full, each entry takes least bytes or more.
func GivesMemoryBack(t *testing.T, least int, fill, empty func(i int)) {
	t.Helper()
	count := 100_000
	if Race {
		count = 2000 // to see that it works; the race detector changes what memory costs
	}
	before := HeapInUse()
	for i := range count {
		fill(i)
	}
	full := HeapInUse() - before
	for i := range count - 1 { // the last one stays
		empty(i)
	}
	left := HeapInUse() - before
	empty(count - 1)
	switch {
	case Race:
	case full < int64(least*count):
		t.Errorf("it took only %d B", full)
	case left > full/20:
		t.Errorf("%d B are left of %d B", left, full)
	}
}
