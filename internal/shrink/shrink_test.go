package shrink

import (
	"runtime"
	"testing"

	"carillon/internal/testenv"
)

func TestAMapGivesItsMemoryBack(t *testing.T) {
	const n = 1_000_000
	var m Map[int, [2]int]
	before := testenv.HeapInUse()
	for i := range n {
		m.Set(i, [2]int{i, i})
	}
	full := testenv.HeapInUse() - before
	for i := range n {
		m.Delete(i)
		if i%10_000 == 0 {
			if v, ok := m.Lookup(n - 1); i < n-1 && (!ok || v != [2]int{n - 1, n - 1}) {
				t.Fatalf("after %d: %v, %v", i, v, ok)
			}
		}
	}
	if left := testenv.HeapInUse() - before; m.Len() != 0 || left > full/100 {
		t.Errorf("%d entries and %d B are left of %d B", m.Len(), left, full)
	}
	runtime.KeepAlive(&m)
}

// What is left when most have gone is all there, and can be walked over while it shrinks.
func TestAMapThatShrinksDuringAWalk(t *testing.T) {
	const n = 20_000
	var m Map[int, int]
	for i := range n {
		m.Set(i, i)
	}
	seen := 0
	for k, v := range m.All() {
		if k != v {
			t.Fatalf("%d is %d", k, v)
		}
		m.Delete(k)
		m.Set(n+k%10, n+k%10)
		seen++
	}
	if seen < n {
		t.Errorf("%d of %d were seen", seen, n)
	}
	for k := range m.All() {
		if k < n {
			t.Fatalf("%d is left", k)
		}
	}
	if m.Len() != 10 || m.peak > n/4 {
		t.Errorf("%d entries are left, and the peak is %d", m.Len(), m.peak)
	}
}

// A map that is small, or only goes up and down a little, is never copied.
func TestAMapIsNotCopiedForNothing(t *testing.T) {
	var m Map[int, int]
	for i := range 900 {
		m.Set(i, i)
	}
	small := testing.AllocsPerRun(10, func() {
		for i := range 899 {
			m.Delete(i)
		}
	})
	for i := range 4000 {
		m.Set(i, i)
	}
	steady := testing.AllocsPerRun(1000, func() {
		m.Delete(7)
		m.Set(7, 7)
	})
	if small != 0 || steady != 0 {
		t.Errorf("%v and %v allocations", small, steady)
	}
}

func TestASliceGivesItsMemoryBack(t *testing.T) {
	s := make([]int, 100_000)
	for i := range s {
		s[i] = i
	}
	for len(s) > 3 {
		s = Slice(s[:len(s)-1])
	}
	if cap(s) > 2*least || s[2] != 2 {
		t.Errorf("capacity %d for %v", cap(s), s)
	}
}

func TestAQueueIsInOrderAndGivesItsMemoryBack(t *testing.T) {
	var q Queue[int]
	before, next, want := testenv.HeapInUse(), 0, 0
	for range 3 {
		for range 500_000 {
			q.Push(next)
			next++
		}
		for q.Len() > 7 {
			if v, ok := q.Front(); !ok || v != want || q.Pop() != want {
				t.Fatalf("%d, want %d", v, want)
			}
			want++
		}
	}
	for q.Len() > 0 {
		if v := q.Pop(); v != want {
			t.Fatalf("%d, want %d", v, want)
		}
		want++
	}
	if _, ok := q.Front(); ok || want != next {
		t.Errorf("%d of %d came out", want, next)
	}
	if left := testenv.HeapInUse() - before; left > 64<<10 {
		t.Errorf("%d B are left", left)
	}
	for i := range 300 { // and it goes on
		q.Push(i)
	}
	for i := range 300 {
		if v := q.Pop(); v != i {
			t.Fatalf("%d, want %d", v, i)
		}
	}
}
