package server

import (
	"errors"
	"io"
	"time"
)

// Work on a loop is shared fairly. What comes on a connection is handled at once as long as that is quick. What takes
// longer than a quantum, and every request whose answer may be large, goes through the loop's run queue, which serves
// the connection first that has used least of the loop lately (see [runQueue]). A loop stops after each slice of that
// work and looks at its sockets, so a client waits for one quantum of the others, or for one message or request of
// theirs that takes longer, and not for all that they have asked for.

// maxRound is how long sockets may be served at once between two turns that the loop was woken for. What the others
// have sent waits in the run queue, in which the connections that have used most of the loop are last.
const maxRound = time.Millisecond

// workload is what a connection has left to do on its loop: requests to answer, and input to decode. A connection has
// one only while it needs it, or has lately used much of the loop. Owned by the loop.
type workload struct {
	conn     *Conn
	requests requestQueue
	mistakes mistakes

	flights flights // messages that are on their way to the broker

	// The place in the run queue.
	index     int           // in the heap, -1 while it is not there
	tag       time.Duration // the lowest is served first
	order     uint64        // of those with the same tag
	notBefore time.Duration // no tag is lower, in the queue's time
	used      usage         // of the loop
	offloaded usage         // of the offload queue
	listed    bool          // in runQueue.charged
	served    bool          // it is the connection's turn now
	maxTurn   time.Duration // what that turn is charged for at most; 0 for no such limit

	inflates  bool          // the input begins with a message that waits for others to be decompressed
	suspended bool          // input waits in conn.in, or in the session, and the socket is not read
	ended     bool          // nothing comes after that input
	blockedAt time.Duration // since when the connection waits for fan-out that it has caused, or is held back; 0 if it does not
	heldBack  bool          // it is held back with a large message
	passes    bool          // it was for long enough

	awaitsStall bool // listed in runQueue.awaitStall

	collects    bool // it has a place in runQueue.collecting
	awaitsPlace bool // it waits for one
	lostPlace   bool // it has had one for the message that is arriving
	collected   int  // how much of that message had come when it was last looked at
	looks       int  // after how many more it leaves that place, if nothing comes
}

func (w *workload) before(other *workload) bool {
	return w.tag < other.tag || w.tag == other.tag && w.order < other.order
}

func (w *workload) place() *int { return &w.index }

// workload returns the connection's workload, or nil.
func (c *Conn) workload() *workload {
	if c.ext == nil {
		return nil
	}
	return c.ext.work
}

// needWorkload returns the connection's workload, which is made if need be.
func (c *Conn) needWorkload() *workload {
	if c.ext == nil {
		c.sh.mu.Lock()
		c.extend()
		c.sh.mu.Unlock()
	}
	if c.ext.work == nil {
		c.ext.work = &workload{conn: c, index: -1}
	}
	return c.ext.work
}

// settleWorkload lets go of a workload that has nothing left to do, unless what the connection has used of the loop is
// still to be remembered.
func (c *Conn) settleWorkload(w *workload) {
	switch {
	case w.requests.len() > 0 || w.flights.number > 0 || w.suspended || w.collects || w.index >= 0:
	case w.used.isForgotten(c.sh.began) && w.offloaded.isForgotten(c.sh.began) && w.mistakes.none(c.sh.clock):
		c.ext.work = nil
	case !w.listed:
		w.listed = true
		c.sh.run.charged = append(c.sh.run.charged, w)
	}
}

// isSuspended reports whether input waits that has not been decoded.
func (c *Conn) isSuspended() bool {
	w := c.workload()
	return w != nil && w.suspended
}

// mustWait reports whether what has come on a connection is to wait for its turn.
func (c *Conn) mustWait() bool {
	w := c.workload()
	return c.sh.isCrowded() || w != nil && (w.suspended || w.isFull() || c.sh.run.wouldWait(w))
}

// isCrowded reports whether sockets have been served at once for long enough.
func (sh *shard) isCrowded() bool { return sh.round > maxRound }

// suspend has the input in c.in wait for the connection's turn. The socket is not read meanwhile, so that TCP slows the
// client down.
func (c *Conn) suspend() {
	w := c.needWorkload()
	if !w.suspended {
		w.suspended = true
		if c.gc != nil {
			c.sh.interest.pause(c.fd)
		}
	}
	c.sh.awaitStall(w)
	c.sh.run.schedule(w)
}

// unsuspend reads the socket again.
func (c *Conn) unsuspend() {
	if w := c.workload(); w != nil && w.suspended {
		w.suspended, w.inflates, w.blockedAt, w.heldBack, w.passes = false, false, 0, false, false
		w.awaitsPlace = false
		if c.gc != nil {
			c.sh.interest.resume(c.fd)
		}
	}
}

// postpone keeps what has come for the connection's turn.
func (c *Conn) postpone(b []byte) {
	if c.in == nil {
		c.in = c.sh.newInbound()
		c.in.decoder = c.sh.newDecoder()
	}
	if c.in.at > 0 {
		c.in.rest, c.in.at = append(c.in.rest[:0], c.in.rest[c.in.at:]...), 0
	}
	c.in.rest = c.sh.hold(c.in.rest, b)
	c.wait()
}

// wait has what has come wait for the connection's turn.
func (c *Conn) wait() {
	if c.state.Load() == stateHandshake {
		c.needWorkload().notBefore = c.sh.run.now(c.sh.began) + handshakeDelay
	}
	c.suspend()
}

// handshakeDelay is how long a handshake on a busy loop gives way to the connections that are open.
const handshakeDelay = 250 * time.Millisecond

// isRunnable reports whether there is something to do now.
func (w *workload) isRunnable() bool {
	return w.blockedAt == 0 && (w.canAnswer() || w.hasInput())
}

func (w *workload) hasInput() bool {
	return w.suspended && !w.isFull() && !w.inflates && !w.awaitsPlace
}

// canAnswer reports whether the first request in the queue can be answered. While a client does not read a large reply
// or the histories that it has asked for, a request waits whose reply may be large, too.
func (w *workload) canAnswer() bool {
	if w.requests.len() == 0 {
		return false
	}
	s, c := w.requests.first(), w.conn
	return !s.pending && (!s.open || c.out == nil || !s.drained && !c.hoards() && (s.quick || c.out.answers == 0))
}

// serve does what waits on a connection, until a time or until nothing more can be done.
func (c *Conn) serve(w *workload, deadline time.Duration) {
	sh := c.sh
	for w.isRunnable() {
		switch q := &w.requests; {
		case w.canAnswer():
			if q.first().after > sh.ran {
				return
			}
			q.flushing = true
			fanout := sh.fanoutIfCongested()
			c.perform(q.pop())
			q.flushing = false
			c.block(fanout)
		default:
			c.resumeInput(deadline)
		}
		if sh.engine.uptime() >= deadline {
			return
		}
	}
}

// resumeInput goes on with the input that waits.
func (c *Conn) resumeInput(deadline time.Duration) {
	w := c.workload()
	if c.state.Load() == stateHandshake {
		in := c.in
		c.in = nil
		c.unsuspend()
		if in != nil {
			c.owner().takeHead(c, in.rest[in.at:])
			c.sh.freeInboundOf(in)
		}
	} else {
		c.heard()
		c.decodeInput(deadline)
	}
	c.decryptInput(deadline)
	if !w.suspended && w.ended {
		w.ended = false
		c.inputEnded(io.EOF)
	}
}

// finishInput decodes the input that is left of a client that has gone. There is none on Linux, where the end of a
// connection is not noticed while its socket is not read; kqueue may report both at once.
func (c *Conn) finishInput(err error) {
	if w := c.workload(); w != nil && w.suspended && errors.Is(err, io.EOF) && c.state.Load() == stateOpen {
		c.decodeInput(maxDeadline)
		c.decryptInput(maxDeadline)
	}
}

const maxDeadline = time.Duration(1<<63 - 1)
