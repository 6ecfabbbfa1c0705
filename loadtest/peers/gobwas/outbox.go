package main

import (
	"net"
	"slices"
	"sync"
)

// outbox is what waits to be written to one connection of /broadcast. While there is something, a
// goroutine writes all that waits with one writev(2) at a time.
type outbox struct {
	conn    net.Conn // immutable
	limit   int      // immutable
	deflate bool     // immutable

	mu      sync.Mutex
	waiting [][]byte // guarded by mu
	writing int      // guarded by mu: frames that the goroutine has taken
	running bool     // guarded by mu: there is a goroutine
	ended   bool     // guarded by mu
}

// send adds an encoded frame, which must not change any more. When too much waits it closes the
// connection instead.
func (o *outbox) send(frame []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	if len(o.waiting)+o.writing >= o.limit {
		o.ended = true
		_ = o.conn.Close()
		return
	}
	o.waiting = append(o.waiting, frame)
	if !o.running {
		o.running = true
		go o.run()
	}
}

// Write implements io.Writer for the answers to control frames.
func (o *outbox) Write(frame []byte) (int, error) {
	o.send(slices.Clone(frame))
	return len(frame), nil
}

// end closes the connection after what waits.
func (o *outbox) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	if !o.running {
		_ = o.conn.Close()
	}
}

func (o *outbox) run() {
	var spare [][]byte
	for {
		batch, ok := o.take(spare)
		if !ok {
			return
		}
		buffers := net.Buffers(batch) // WriteTo consumes it, and with it the references
		if _, err := buffers.WriteTo(o.conn); err != nil {
			_ = o.conn.Close() // the goroutine that reads the connection then fails and calls end
		}
		spare = batch[:0]
	}
}

// take returns all that waits. When there is nothing the goroutine has to end.
func (o *outbox) take(spare [][]byte) ([][]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	batch := o.waiting
	o.writing = len(batch)
	if o.writing > 0 {
		o.waiting = spare
		return batch, true
	}
	o.waiting, o.running = nil, false
	if o.ended {
		_ = o.conn.Close()
	}
	return nil, false
}
