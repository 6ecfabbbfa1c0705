package indexheap

import (
	"math/rand/v2"
	"slices"
	"testing"
)

type item struct{ value, at int }

func (i *item) Before(other *item) bool { return i.value < other.value }
func (i *item) Place() *int             { return &i.at }

// Elements that come, change, move and leave come out in order, and know their places throughout.
func TestHeap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var h Heap[*item]
	var all []*item
	for range 10_000 {
		switch r.IntN(4) {
		case 0, 1:
			x := &item{value: r.IntN(1000)}
			h.Insert(x)
			all = append(all, x)
		case 2:
			if len(all) > 0 {
				x := all[r.IntN(len(all))]
				x.value = r.IntN(1000)
				h.Moved(x)
			}
		case 3:
			if len(all) > 0 {
				i := r.IntN(len(all))
				h.Remove(all[i])
				if all[i].at != -1 {
					t.Fatalf("one that was removed has place %d", all[i].at)
				}
				all = slices.Delete(all, i, i+1)
			}
		}
	}
	if len(h) != len(all) {
		t.Fatalf("the heap has %d elements, want %d", len(h), len(all))
	}
	for i, x := range h {
		if x.at != i {
			t.Fatalf("element %d has place %d", i, x.at)
		}
	}
	slices.SortFunc(all, func(a, b *item) int { return a.value - b.value })
	for _, x := range all {
		if got := h.TakeFirst(); got.value != x.value || got.at != -1 {
			t.Fatalf("got %d at %d, want %d", got.value, got.at, x.value)
		}
	}
}
