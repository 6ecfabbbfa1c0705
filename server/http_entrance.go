package server

import (
	"bytes"
	"sync"

	"carillon/internal/shrink"
	"carillon/server/internal/reactor"
)

// httpEntrance bounds how many connections are on their way to Options.HTTP: handed over, but with a first request that
// has not begun. Of more, those that wait stay on their loops, which notice at once when a client has gone. So a client
// that connects, asks and resets, again and again, does not fill the server with sockets that it has left.
type httpEntrance struct {
	mu      sync.Mutex
	inside  int                       // that have a place
	waiting shrink.Queue[httpWaiting] // in the order in which they came
}

// httpWaiting is a connection without a place. It may have gone.
type httpWaiting struct {
	conn    *Conn
	pending *pendingDecision
}

// maxEntering is about the work of 10 ms.
const maxEntering = 256

// enter takes a place, and reports whether there is one.
func (e *httpEntrance) enter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.inside >= maxEntering {
		return false
	}
	e.inside++
	return true
}

// force takes a place even if there is none: for a connection whose body is too large to be kept on its loop.
func (e *httpEntrance) force() {
	e.mu.Lock()
	e.inside++
	e.mu.Unlock()
}

// wait has a connection handed over when there is a place.
func (e *httpEntrance) wait(c *Conn, u *pendingDecision) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := httpWaiting{c, u}
	if e.inside < maxEntering { // since it was looked at
		e.inside++
		e.callIn(w)
		return
	}
	e.waiting.Push(w)
}

// leave gives a place to the first that waits and has not gone, or back.
func (e *httpEntrance) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.waiting.Len() > 0 && e.inside <= maxEntering {
		w := e.waiting.Pop()
		if w.conn.core().State().Load() == reactor.StateHandshake {
			e.callIn(w)
			return
		}
	}
	e.inside--
}

// callIn has a connection handed over that has a place.
func (e *httpEntrance) callIn(w httpWaiting) {
	w.conn.shard().PostDo(w.conn.core(), 0, func() { e.admit(w) })
}

// admit is called on the connection's loop.
func (e *httpEntrance) admit(w httpWaiting) {
	c := w.conn
	if c.waitsFor() != w.pending {
		e.leave()
		return
	}
	c.dropPendingDecision()
	var rest []byte
	if in := c.core().Inbound(); in != nil {
		rest = in.Rest
	}
	c.handOver(w.pending.head, rest)
}

// awaitTurn keeps a request for later, as if it waited for a decision.
func (c *Conn) awaitTurn(head, rest []byte) *pendingDecision {
	u := &pendingDecision{head: bytes.Clone(head), cancel: func() {}, plain: true}
	c.setPending(u, rest)
	return u
}

// enters gives the connection's place back, when its first request begins or it has closed before that.
func (c *plainConn) enters() {
	if !c.isIn.Swap(true) {
		c.listener.srv.plain.entrance.leave()
	}
}
