package reactor

import (
	"sync"

	"carillon/internal/shrink"
)

// watcher tells the loops when sockets that were full take bytes again: gnet knows, but does not say.
// It is one goroutine that sleeps in an epoll or kqueue instance of its own, in which only the sockets
// of slow consumers are, each for one event.
type watcher struct {
	poll poller

	mu      sync.Mutex
	waiting shrink.Map[int32, *Conn] // by descriptor
	closed  bool
}

func newWatcher() (*watcher, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	w := &watcher{poll: p}
	go w.run()
	return w, nil
}

// watch has one command posted to the connection's shard. A descriptor that cannot be watched is left to
// the write time-out.
func (w *watcher) watch(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.waiting.Set(c.fd, c)
		w.poll.once(c.fd)
	}
}

// forget must be called before the descriptor is closed: its number may then be reused. An
// event that is already under way at worst tells that other connection what it will find untrue.
func (w *watcher) forget(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting.Delete(c.fd)
}

func (w *watcher) run() {
	for {
		fds, err := w.poll.wait()
		if err != nil {
			return // closed
		}
		for _, fd := range fds {
			w.mu.Lock()
			c := w.waiting.Get(fd)
			w.waiting.Delete(fd)
			w.mu.Unlock()
			if c != nil {
				c.sh.Post(Command{Kind: CommandWritable, Conn: c})
			}
		}
	}
}

func (w *watcher) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.poll.close()
}
