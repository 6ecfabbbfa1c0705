// Package indexheap has a heap whose elements can be moved and removed.
package indexheap

import (
	"container/heap"

	"carillon/internal/shrink"
)

// Element is an element of a [Heap].
type Element[T any] interface {
	Before(other T) bool
	Place() *int // its index in the heap, which the heap sets: -1 when it has left
}

// Heap is a heap whose elements know where they are in it, so that each can be moved or removed. The first one
// is element 0. It gives memory back as it becomes small. The zero value is empty.
type Heap[T Element[T]] []T

// Insert adds an element.
func (h *Heap[T]) Insert(x T) { heap.Push(h, x) }

// TakeFirst removes and returns the first element. There must be one.
func (h *Heap[T]) TakeFirst() T { return heap.Pop(h).(T) }

// Moved puts an element where it belongs after what Before compares has changed.
func (h *Heap[T]) Moved(x T) { heap.Fix(h, *x.Place()) }

// Remove removes an element, which must be in the heap.
func (h *Heap[T]) Remove(x T) { heap.Remove(h, *x.Place()) }

// The methods of heap.Interface.

func (h *Heap[T]) Len() int           { return len(*h) }
func (h *Heap[T]) Less(i, j int) bool { return (*h)[i].Before((*h)[j]) }

func (h *Heap[T]) Swap(i, j int) {
	list := *h
	list[i], list[j] = list[j], list[i]
	*list[i].Place(), *list[j].Place() = i, j
}

func (h *Heap[T]) Push(x any) {
	*x.(T).Place() = len(*h)
	*h = append(*h, x.(T))
}

func (h *Heap[T]) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*x.Place() = -1
	clear((*h)[last:])
	*h = shrink.Slice((*h)[:last])
	return x
}
