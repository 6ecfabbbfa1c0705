package reactor

import (
	"errors"
	"io"
	"time"

	"carillon/server/internal/fair"
)

// Work on a loop is shared fairly. What comes on a connection is handled at once as long as that is quick. What takes
// longer than a quantum, and every request whose answer may be large, goes through the loop's run queue, which serves
// the connection first that has used least of the loop lately (see [runQueue]). A loop stops after each slice of that
// work and looks at its sockets, so a client waits for one quantum of the others, or for one message or request of
// theirs that takes longer, and not for all that they have asked for.

// MaxRound is how long sockets may be served at once between two turns that the loop was woken for. What the others
// have sent waits in the run queue, in which the connections that have used most of the loop are last.
const MaxRound = time.Millisecond

// Workload is what a connection has left to do on its loop: requests to answer, and input to decode. A connection has
// one only while it needs it, or has lately used much of the loop. Owned by the loop.
type Workload struct {
	Conn     *Conn
	Requests requestQueue
	mistakes mistakes

	flights flights // messages that are on their way to the broker

	// The place in the run queue.
	Index     int           // in the heap, -1 while it is not there
	tag       time.Duration // the lowest is served first
	order     uint64        // of those with the same tag
	notBefore time.Duration // no tag is lower, in the queue's time
	Used      fair.Usage    // of the loop
	offloaded fair.Usage    // of the offload queue
	listed    bool          // in runQueue.charged
	Served    bool          // it is the connection's turn now
	MaxTurn   time.Duration // what that turn is charged for at most; 0 for no such limit

	inflates  bool          // the input begins with a message that waits for others to be decompressed
	Suspended bool          // input waits in conn.in, or in the session, and the socket is not read
	ended     bool          // nothing comes after that input
	blockedAt time.Duration // since when the connection waits for fan-out that it has caused, or is held back; 0 if it does not
	HeldBack  bool          // it is held back with a large message
	passes    bool          // it was for long enough

	awaitsStall bool // listed in runQueue.awaitStall

	collects    bool // it has a place in runQueue.collecting
	awaitsPlace bool // it waits for one
	lostPlace   bool // it has had one for the message that is arriving
	collected   int  // how much of that message had come when it was last looked at
	looks       int  // after how many more it leaves that place, if nothing comes
}

func (w *Workload) Before(other *Workload) bool {
	return w.tag < other.tag || w.tag == other.tag && w.order < other.order
}

func (w *Workload) Place() *int { return &w.Index }

// Workload returns the connection's workload, or nil.
func (c *Conn) Workload() *Workload {
	if c.ext == nil {
		return nil
	}
	return c.ext.Work
}

// NeedWorkload returns the connection's workload, which is made if need be.
func (c *Conn) NeedWorkload() *Workload {
	if c.ext == nil {
		c.sh.Mu.Lock()
		c.Extend()
		c.sh.Mu.Unlock()
	}
	if c.ext.Work == nil {
		c.ext.Work = &Workload{Conn: c, Index: -1}
	}
	return c.ext.Work
}

// settleWorkload lets go of a workload that has nothing left to do, unless what the connection has used of the loop is
// still to be remembered.
func (c *Conn) settleWorkload(w *Workload) {
	switch {
	case w.Requests.len() > 0 || w.flights.number > 0 || w.Suspended || w.collects || w.Index >= 0:
	case w.Used.IsForgotten(c.sh.Began) && w.offloaded.IsForgotten(c.sh.Began) && w.mistakes.none(c.sh.Clock):
		c.ext.Work = nil
	case !w.listed:
		w.listed = true
		c.sh.Run.charged = append(c.sh.Run.charged, w)
	}
}

// IsSuspended reports whether input waits that has not been decoded.
func (c *Conn) IsSuspended() bool {
	w := c.Workload()
	return w != nil && w.Suspended
}

// mustWait reports whether what has come on a connection is to wait for its turn.
func (c *Conn) mustWait() bool {
	w := c.Workload()
	return c.sh.isCrowded() || w != nil && (w.Suspended || w.isFull() || c.sh.Run.wouldWait(w))
}

// isCrowded reports whether sockets have been served at once for long enough.
func (sh *Shard) isCrowded() bool { return sh.Round > MaxRound }

// suspend has the input in c.in wait for the connection's turn. The socket is not read meanwhile, so that TCP slows the
// client down.
func (c *Conn) suspend() {
	w := c.NeedWorkload()
	if !w.Suspended {
		w.Suspended = true
		if c.gc != nil {
			c.sh.Interest.pause(c.fd)
		}
	}
	c.sh.awaitStall(w)
	c.sh.Run.Schedule(w)
}

// unsuspend reads the socket again.
func (c *Conn) unsuspend() {
	if w := c.Workload(); w != nil && w.Suspended {
		w.Suspended, w.inflates, w.blockedAt, w.HeldBack, w.passes = false, false, 0, false, false
		w.awaitsPlace = false
		if c.gc != nil {
			c.sh.Interest.resume(c.fd)
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
		c.in.Rest, c.in.at = append(c.in.Rest[:0], c.in.Rest[c.in.at:]...), 0
	}
	c.in.Rest = c.sh.hold(c.in.Rest, b)
	c.wait()
}

// wait has what has come wait for the connection's turn.
func (c *Conn) wait() {
	if c.state.Load() == StateHandshake {
		c.NeedWorkload().notBefore = c.sh.Run.now(c.sh.Began) + HandshakeDelay
	}
	c.suspend()
}

// HandshakeDelay is how long a handshake on a busy loop gives way to the connections that are open.
const HandshakeDelay = 250 * time.Millisecond

// isRunnable reports whether there is something to do now.
func (w *Workload) isRunnable() bool {
	return w.blockedAt == 0 && (w.canAnswer() || w.hasInput())
}

func (w *Workload) hasInput() bool {
	return w.Suspended && !w.isFull() && !w.inflates && !w.awaitsPlace
}

// canAnswer reports whether the first request in the queue can be answered. While a client does not read a large reply
// or the histories that it has asked for, a request waits whose reply may be large, too.
func (w *Workload) canAnswer() bool {
	if w.Requests.len() == 0 {
		return false
	}
	s, c := w.Requests.first(), w.Conn
	return !s.pending && (!s.Open || c.out == nil || !s.Drained && !c.Hoards() && (s.quick || c.out.Answers == 0))
}

// serve does what waits on a connection, until a time or until nothing more can be done.
func (c *Conn) serve(w *Workload, deadline time.Duration) {
	sh := c.sh
	for w.isRunnable() {
		switch q := &w.Requests; {
		case w.canAnswer():
			if q.first().after > sh.ran {
				return
			}
			q.Flushing = true
			fanout := sh.fanoutIfCongested()
			c.perform(q.pop())
			q.Flushing = false
			c.block(fanout)
		default:
			c.resumeInput(deadline)
		}
		if sh.Engine.Uptime() >= deadline {
			return
		}
	}
}

// resumeInput goes on with the input that waits.
func (c *Conn) resumeInput(deadline time.Duration) {
	w := c.Workload()
	if c.state.Load() == StateHandshake {
		in := c.in
		c.in = nil
		c.unsuspend()
		if in != nil {
			c.Owner().TakeHead(c, in.Rest[in.at:])
			c.sh.FreeInboundOf(in)
		}
	} else {
		c.heard()
		c.decodeInput(deadline)
	}
	c.decryptInput(deadline)
	if !w.Suspended && w.ended {
		w.ended = false
		c.inputEnded(io.EOF)
	}
}

// FinishInput decodes the input that is left of a client that has gone. There is none on Linux, where the end of a
// connection is not noticed while its socket is not read; kqueue may report both at once.
func (c *Conn) FinishInput(err error) {
	if w := c.Workload(); w != nil && w.Suspended && errors.Is(err, io.EOF) && c.state.Load() == StateOpen {
		c.decodeInput(MaxDeadline)
		c.decryptInput(MaxDeadline)
	}
}

// MaxDeadline is later than any moment of an engine.
const MaxDeadline = time.Duration(1<<63 - 1)
