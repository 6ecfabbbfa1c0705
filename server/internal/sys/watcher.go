package sys

import (
	"sync"

	"carillon/internal/shrink"
)

// Watcher tells when sockets that were full take bytes again. It is one goroutine that sleeps in an epoll or kqueue
// instance of its own, in which only those sockets are, each for one event. Its methods may be called from any
// goroutine.
type Watcher[T any] struct {
	poll     poller
	writable func(T)

	mu      sync.Mutex
	waiting shrink.Map[int32, T] // by descriptor
	closed  bool
}

// NewWatcher starts a watcher. It calls writable, which must not block, on its own goroutine.
func NewWatcher[T any](writable func(T)) (*Watcher[T], error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	w := &Watcher[T]{poll: p, writable: writable}
	go w.run()
	return w, nil
}

// Watch has writable called once with of. A descriptor that cannot be watched is left alone.
func (w *Watcher[T]) Watch(fd int32, of T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.waiting.Set(fd, of)
		w.poll.once(fd)
	}
}

// Forget must be called before the descriptor is closed: its number may then be reused. An event that is already under
// way at worst reports that other socket as writable.
func (w *Watcher[T]) Forget(fd int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting.Delete(fd)
}

func (w *Watcher[T]) run() {
	for {
		fds, err := w.poll.wait()
		if err != nil {
			return // closed
		}
		for _, fd := range fds {
			w.mu.Lock()
			of, found := w.waiting.Lookup(fd)
			w.waiting.Delete(fd)
			w.mu.Unlock()
			if found {
				w.writable(of)
			}
		}
	}
}

// Close ends the goroutine.
func (w *Watcher[T]) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.poll.close()
}
