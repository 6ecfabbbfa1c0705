package server

import (
	"carillon/codec"
	"carillon/server/topic"
)

// What a client asks for is answered in its order, and some of it has to wait: for what was sent to the client
// before, for an answer of the cluster, for the connection's turn on a busy loop. Each such request is a slot in the
// connection's request queue.

// slot is something to do on a connection's loop when all before it in the request queue is done.
type slot struct {
	do       func()
	cancel   func() // called instead of do if the connection has ended; may be nil
	cost     int    // bytes that the slot holds, about
	after    uint64 // commands that the loop must have run before
	open     bool   // do is for an open connection only
	drained  bool   // do waits until the socket has taken all that was sent
	pending  bool   // the slot waits for an answer: do is not known yet
	flight   flight // a message that is on its way to the broker, and do is its reply
	passable bool   // messages for the broker may pass it: nothing else happens in it than a reply
	quick    bool   // do takes as little as a message
}

// slotCost is about the memory of a slot besides what the client sent.
const slotCost = 384

// The bounds of one connection's request queue. A connection is not read from while its queue is full.
const (
	maxSlots     = 2048
	maxSlotBytes = 1 << 20
)

// requestQueue is the slots of a connection. Owned by the loop.
type requestQueue struct {
	slots  []*slot
	head   int // where the first slot is; before it are none
	bytes  int
	others int // slots that messages for the broker may not pass

	flushing bool // what is done now was the first slot
}

func (q *requestQueue) len() int { return len(q.slots) - q.head }

func (q *requestQueue) first() *slot { return q.slots[q.head] }

func (q *requestQueue) push(s *slot) {
	if len(q.slots) == cap(q.slots) && q.head > len(q.slots)/2 {
		n := copy(q.slots, q.slots[q.head:])
		clear(q.slots[n:])
		q.slots, q.head = q.slots[:n], 0
	}
	q.slots = append(q.slots, s)
	q.count(s, 1)
}

// pushFirst puts a slot in the place of the one that is being done.
func (q *requestQueue) pushFirst(s *slot) {
	if q.head == 0 {
		q.slots = append([]*slot{nil}, q.slots...)
		q.head = 1
	}
	q.head--
	q.slots[q.head] = s
	q.count(s, 1)
}

func (q *requestQueue) pop() *slot {
	s := q.first()
	q.slots[q.head] = nil
	q.head++
	q.count(s, -1)
	return s
}

func (q *requestQueue) count(s *slot, n int) {
	q.bytes += n * s.cost
	if !s.passable {
		q.others += n
	}
}

func (q *requestQueue) full() bool {
	return q.len() >= maxSlots || q.bytes > maxSlotBytes
}

// waiting reports whether something that the client asked for is still to be done.
func (c *Conn) waiting() bool {
	w := c.workload()
	return w != nil && (w.requests.len() > 0 || w.requests.flushing)
}

// isFull reports whether the client has to wait with further requests.
func (c *Conn) isFull() bool {
	w := c.workload()
	return w != nil && w.isFull()
}

// isFull is like that of the connection.
func (w *workload) isFull() bool {
	return w.requests.full() || w.flights.number > 0 && w.conn.sh.engine.holds(&w.flights)
}

// waitsForMore reports whether the client waits for anything that a message for the broker may not pass.
func (c *Conn) waitsForMore() bool {
	return c.waiting() && (c.workload().requests.others > 0 || c.workload().isFull())
}

// queueSlot has something done when all before it in the request queue is done, which is now if there is nothing.
func (c *Conn) queueSlot(s *slot) {
	if !c.waiting() {
		c.perform(s)
		return
	}
	c.workload().requests.push(s)
}

func (c *Conn) perform(s *slot) {
	switch {
	case !s.open || c.isOpen():
		c.call(s.do)
	case s.cancel != nil:
		s.cancel()
	}
}

// afterPending has something done behind everything that was sent to the client before and everything that it asked
// for before, for a request of n bytes. What the client asks for next waits behind it. On a busy loop it gives way to
// messages unless it is quick. It fails with [ErrOverloaded].
func (c *Conn) afterPending(n int, quick bool, do func()) error {
	return c.queueRequest(&slot{do: do, cost: n + slotCost, quick: quick})
}

func (c *Conn) queueRequest(s *slot) error {
	c.sh.check()
	if c.sh.backlog.Load() > c.sh.set.maxBacklog {
		return topic.ErrOverloaded
	}
	s.open, s.after = true, c.sh.mail.count()
	w := c.needWorkload()
	w.requests.push(s)
	c.sh.run.schedule(w)
	return nil
}

// replyInOrder has a reply sent behind everything that was sent to the client before and everything that it asked for
// before. What the client publishes next does not wait for it. It fails with [ErrOverloaded].
func (c *Conn) replyInOrder(n int, reply func()) error {
	return c.queueRequest(&slot{do: reply, cost: n + slotCost, quick: true, passable: true})
}

// reserve makes a slot for what is done now and ends later: the first one, unless it is not done in its turn.
func (c *Conn) reserve() *slot {
	s := &slot{pending: true, cost: slotCost}
	c.queueFirst(s)
	return s
}

// reserveReply is like reserve, for the reply to a message that is on its way to the broker.
func (c *Conn) reserveReply(m flight) *slot {
	s := &slot{pending: true, flight: m, passable: true, cost: slotCost}
	c.beginPublishing(m)
	c.queueFirst(s)
	return s
}

// queueFirst puts a slot into the place of what is done now.
func (c *Conn) queueFirst(s *slot) {
	w := c.needWorkload()
	if w.requests.flushing {
		w.requests.pushFirst(s)
	} else {
		w.requests.push(s)
	}
	c.sh.run.schedule(w)
}

// resolve tells what is to be done in a reserved slot. It may be called from any goroutine, once.
func (c *Conn) resolve(s *slot, open bool, do func()) {
	c.sh.postDo(c, 0, func() {
		s.do, s.open, s.pending = do, open, false
		if s.flight != (flight{}) {
			c.endPublishing(s.flight) // schedules, too
			return
		}
		c.sh.run.schedule(c.workload())
	})
}

// inOrder has something done behind what the client has asked for before, unless that waits for the cluster.
func (c *Conn) inOrder(do func()) {
	if !c.waiting() || c.workload().requests.len() > 0 && c.workload().requests.first().pending {
		c.sh.postDo(c, 0, do)
		return
	}
	w := c.workload()
	w.requests.push(&slot{do: do, cost: slotCost, after: c.sh.mail.count()})
	c.sh.run.schedule(w)
}

// closeInOrder begins to close the connection in its order.
func (c *Conn) closeInOrder(how closeHow, code codec.CloseCode, reason string) {
	if !c.waiting() {
		c.sh.postClose(c, how, code, reason)
		return
	}
	c.inOrder(func() { c.startClose(how, code, reason) })
}
