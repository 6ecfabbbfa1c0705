package server

import (
	"container/heap"

	"carillon/internal/shrink"
)

// heapElement is an element of an [indexedHeap].
type heapElement[T any] interface {
	before(other T) bool
	place() *int // its index in the heap, which the heap sets: -1 when it has left
}

// indexedHeap is a heap whose elements know where they are in it, so that each can be moved or removed. The first one
// is element 0. It gives memory back as it becomes small. The zero value is empty.
type indexedHeap[T heapElement[T]] []T

func (h *indexedHeap[T]) push(x T)   { heap.Push(h, x) }
func (h *indexedHeap[T]) pop() T     { return heap.Pop(h).(T) }
func (h *indexedHeap[T]) moved(x T)  { heap.Fix(h, *x.place()) }
func (h *indexedHeap[T]) remove(x T) { heap.Remove(h, *x.place()) }

// The methods of heap.Interface.

func (h *indexedHeap[T]) Len() int           { return len(*h) }
func (h *indexedHeap[T]) Less(i, j int) bool { return (*h)[i].before((*h)[j]) }

func (h *indexedHeap[T]) Swap(i, j int) {
	list := *h
	list[i], list[j] = list[j], list[i]
	*list[i].place(), *list[j].place() = i, j
}

func (h *indexedHeap[T]) Push(x any) {
	*x.(T).place() = len(*h)
	*h = append(*h, x.(T))
}

func (h *indexedHeap[T]) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*x.place() = -1
	clear((*h)[last:])
	*h = shrink.Slice((*h)[:last])
	return x
}
