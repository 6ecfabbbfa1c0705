package reactor

import (
	"sync"

	"carillon/internal/shrink"
)

// Watcher tells the loops when sockets that were full take bytes again: gnet knows, but does not say.
// It is one goroutine that sleeps in an epoll or kqueue instance of its own, in which only the sockets
// of slow consumers are, each for one event.
type Watcher struct {
	poll poller

	mu      sync.Mutex
	Waiting shrink.Map[int32, *Conn] // by descriptor
	closed  bool
}

func newWatcher() (*Watcher, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	w := &Watcher{poll: p}
	go w.run()
	return w, nil
}

// watch has one command posted to the connection's shard. A descriptor that cannot be watched is left to
// the write time-out.
func (w *Watcher) watch(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.Waiting.Set(c.fd, c)
		w.poll.once(c.fd)
	}
}

// Forget must be called before the descriptor is closed: its number may then be reused. An
// event that is already under way at worst tells that other connection what it will find untrue.
func (w *Watcher) Forget(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Waiting.Delete(c.fd)
}

func (w *Watcher) run() {
	for {
		fds, err := w.poll.wait()
		if err != nil {
			return // closed
		}
		for _, fd := range fds {
			w.mu.Lock()
			c := w.Waiting.Get(fd)
			w.Waiting.Delete(fd)
			w.mu.Unlock()
			if c != nil {
				c.sh.Post(Command{Kind: CommandWritable, Conn: c})
			}
		}
	}
}

func (w *Watcher) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.poll.close()
}
