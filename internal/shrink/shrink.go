// Package shrink has the containers that give memory back. A Go map keeps the room that it once needed, and so does a
// slice that is only cut shorter: what clients can fill would stay as large as the largest crowd was.
package shrink

import "iter"

// Containers below this size are left as they are.
const least = 1024

// maxCopied bounds what is copied at once, since the caller mostly holds a lock: a map of so many entries is copied
// in less than a millisecond. A larger one is left as it is until it has become smaller.
const maxCopied = 8192

// Map is a map that is made anew when it has fallen to a quarter of its peak, so that deleting an entry takes constant
// time on average. Its zero value is empty. It needs the same locking as a map. Entries may be added and deleted
// while All runs, under the same lock.
type Map[K comparable, V any] struct {
	m    map[K]V
	peak int
}

// Get returns the value of a key, or its zero value.
func (s *Map[K, V]) Get(k K) V { return s.m[k] }

// Lookup returns the value of a key, and reports whether there is one.
func (s *Map[K, V]) Lookup(k K) (V, bool) {
	v, ok := s.m[k]
	return v, ok
}

// Set sets the value of a key.
func (s *Map[K, V]) Set(k K, v V) {
	if s.m == nil {
		s.m = map[K]V{}
	}
	s.m[k] = v
	s.peak = max(s.peak, len(s.m))
}

// Delete deletes a key, which need not be there.
func (s *Map[K, V]) Delete(k K) {
	delete(s.m, k)
	switch n := len(s.m); {
	case n == 0 && s.peak > least/16:
		s.Clear()
		return
	case s.peak < least || n > s.peak/4 || n > maxCopied:
		return
	}
	m := make(map[K]V, len(s.m))
	for k, v := range s.m {
		m[k] = v
	}
	s.m, s.peak = m, len(m)
}

// Len is the number of entries.
func (s *Map[K, V]) Len() int { return len(s.m) }

// Clear deletes all entries.
func (s *Map[K, V]) Clear() { s.m, s.peak = nil, 0 }

// All walks over the entries as range does over a map. A walk during which the map is made anew may show entries that
// have been deleted since, and misses new ones.
func (s *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k, v := range s.m {
			if !yield(k, v) {
				return
			}
		}
	}
}

// Slice returns s, or a copy with half the capacity if s needs no more than a quarter of it. It is for a slice that has
// just been cut shorter.
func Slice[T any](s []T) []T {
	if cap(s) <= least || len(s) > cap(s)/4 {
		return s
	}
	return append(make([]T, 0, cap(s)/2), s...)
}

// Queue is first in, first out. It has memory for what is in it and no more, and nothing takes longer for its being
// long. Its zero value is empty.
type Queue[T any] struct {
	first, last *chunk[T]
	head, tail  int // in first and in last
	n           int
}

type chunk[T any] struct {
	items [128]T
	next  *chunk[T]
}

// Len is the number of values.
func (q *Queue[T]) Len() int { return q.n }

// Push appends a value.
func (q *Queue[T]) Push(v T) {
	switch {
	case q.last == nil:
		q.first = &chunk[T]{}
		q.last = q.first
	case q.tail == len(q.last.items):
		q.last.next = &chunk[T]{}
		q.last, q.tail = q.last.next, 0
	}
	q.last.items[q.tail] = v
	q.tail++
	q.n++
}

// Front returns the first value, and reports whether there is one.
func (q *Queue[T]) Front() (v T, ok bool) {
	if q.n > 0 {
		v = q.first.items[q.head]
	}
	return v, q.n > 0
}

// Pop takes out the first value, which must be there.
func (q *Queue[T]) Pop() T {
	var zero T
	v := q.first.items[q.head]
	q.first.items[q.head] = zero
	q.head++
	q.n--
	switch {
	case q.n == 0:
		q.head, q.tail, q.last = 0, 0, q.first
	case q.head == len(q.first.items):
		q.first, q.head = q.first.next, 0
	}
	return v
}
