package reactor

import (
	"carillon/codec"
	"carillon/server/topic"
)

// What a client asks for is answered in its order, and some of it has to wait: for what was sent to the client
// before, for an answer of the cluster, for the connection's turn on a busy loop. Each such request is a slot in the
// connection's request queue.

// Slot is something to do on a connection's loop when all before it in the request queue is done.
type Slot struct {
	Do       func()
	Cancel   func() // called instead of do if the connection has ended; may be nil
	Cost     int    // bytes that the slot holds, about
	after    uint64 // commands that the loop must have run before
	Open     bool   // do is for an open connection only
	Drained  bool   // do waits until the socket has taken all that was sent
	pending  bool   // the slot waits for an answer: do is not known yet
	offload  bool   // of another goroutine of this server, so that it comes soon
	flight   Flight // a message that is on its way to the broker, and do is its reply
	passable bool   // messages for the broker may pass it: nothing else happens in it than a reply
	quick    bool   // do takes as little as a message
}

// SlotCost is about the memory of a slot besides what the client sent.
const SlotCost = 384

// The bounds of one connection's request queue. A connection is not read from while its queue is full.
const (
	MaxSlots     = 2048
	maxSlotBytes = 1 << 20
)

// requestQueue is the slots of a connection. Owned by the loop.
type requestQueue struct {
	slots  []*Slot
	head   int // where the first slot is; before it are none
	Bytes  int
	others int // slots that messages for the broker may not pass

	Flushing bool // what is done now was the first slot
}

func (q *requestQueue) len() int { return len(q.slots) - q.head }

func (q *requestQueue) first() *Slot { return q.slots[q.head] }

func (q *requestQueue) push(s *Slot) {
	if len(q.slots) == cap(q.slots) && q.head > len(q.slots)/2 {
		n := copy(q.slots, q.slots[q.head:])
		clear(q.slots[n:])
		q.slots, q.head = q.slots[:n], 0
	}
	q.slots = append(q.slots, s)
	q.count(s, 1)
}

// pushFirst puts a slot in the place of the one that is being done.
func (q *requestQueue) pushFirst(s *Slot) {
	if q.head == 0 {
		q.slots = append([]*Slot{nil}, q.slots...)
		q.head = 1
	}
	q.head--
	q.slots[q.head] = s
	q.count(s, 1)
}

func (q *requestQueue) pop() *Slot {
	s := q.first()
	q.slots[q.head] = nil
	q.head++
	q.count(s, -1)
	return s
}

func (q *requestQueue) count(s *Slot, n int) {
	q.Bytes += n * s.Cost
	if !s.passable {
		q.others += n
	}
}

func (q *requestQueue) full() bool {
	return q.len() >= MaxSlots || q.Bytes > maxSlotBytes
}

// Waiting reports whether something that the client asked for is still to be done.
func (c *Conn) Waiting() bool {
	w := c.Workload()
	return w != nil && (w.Requests.len() > 0 || w.Requests.Flushing)
}

// isFull reports whether the client has to wait with further requests.
func (c *Conn) isFull() bool {
	w := c.Workload()
	return w != nil && w.isFull()
}

// isFull is like that of the connection.
func (w *Workload) isFull() bool {
	return w.Requests.full() || w.flights.number > 0 && w.Conn.sh.Engine.holds(&w.flights)
}

// WaitsForMore reports whether the client waits for anything that a message for the broker may not pass.
func (c *Conn) WaitsForMore() bool {
	return c.Waiting() && (c.Workload().Requests.others > 0 || c.Workload().isFull())
}

func (s *Slot) awaitsCluster() bool { return s.pending && !s.offload }

// QueueSlot has something done when all before it in the request queue is done, which is now if there is nothing.
func (c *Conn) QueueSlot(s *Slot) {
	if !c.Waiting() {
		c.perform(s)
		return
	}
	c.Workload().Requests.push(s)
}

func (c *Conn) perform(s *Slot) {
	switch {
	case !s.Open || c.IsOpen():
		c.call(s.Do)
	case s.Cancel != nil:
		s.Cancel()
	}
}

// AfterPending has something done behind everything that was sent to the client before and everything that it asked
// for before, for a request of n bytes. What the client asks for next waits behind it. On a busy loop it gives way to
// messages unless it is quick. It fails with [ErrOverloaded].
func (c *Conn) AfterPending(n int, quick bool, do func()) error {
	return c.queueRequest(&Slot{Do: do, Cost: n + SlotCost, quick: quick})
}

func (c *Conn) queueRequest(s *Slot) error {
	c.sh.Check()
	if c.sh.Backlog.Load() > c.sh.Set.MaxBacklog {
		return topic.ErrOverloaded
	}
	s.Open, s.after = true, c.sh.Mail.count()
	w := c.NeedWorkload()
	w.Requests.push(s)
	c.sh.Run.Schedule(w)
	return nil
}

// ReplyInOrder has a reply sent behind everything that was sent to the client before and everything that it asked for
// before. What the client publishes next does not wait for it. It fails with [ErrOverloaded].
func (c *Conn) ReplyInOrder(n int, reply func()) error {
	return c.queueRequest(&Slot{Do: reply, Cost: n + SlotCost, quick: true, passable: true})
}

// Reserve makes a slot for what is done now and ends later: the first one, unless it is not done in its turn.
func (c *Conn) Reserve() *Slot {
	s := &Slot{pending: true, Cost: SlotCost}
	c.QueueFirst(s)
	return s
}

// ReserveReply is like reserve, for the reply to a message that is on its way to the broker.
func (c *Conn) ReserveReply(m Flight) *Slot {
	s := &Slot{pending: true, flight: m, passable: true, Cost: SlotCost}
	c.BeginPublishing(m)
	c.QueueFirst(s)
	return s
}

// QueueFirst puts a slot into the place of what is done now.
func (c *Conn) QueueFirst(s *Slot) {
	w := c.NeedWorkload()
	if w.Requests.Flushing {
		w.Requests.pushFirst(s)
	} else {
		w.Requests.push(s)
	}
	c.sh.Run.Schedule(w)
}

// Resolve tells what is to be done in a reserved slot. It may be called from any goroutine, once.
func (c *Conn) Resolve(s *Slot, open bool, do func()) {
	c.sh.PostDo(c, 0, func() {
		s.Do, s.Open, s.pending = do, open, false
		if s.flight != (Flight{}) {
			c.EndPublishing(s.flight) // schedules, too
			return
		}
		c.sh.Run.Schedule(c.Workload())
	})
}

// inOrder has something done behind what the client has asked for before, unless that waits for the cluster.
func (c *Conn) inOrder(do func()) {
	if !c.Waiting() || c.Workload().Requests.len() > 0 && c.Workload().Requests.first().awaitsCluster() {
		c.sh.PostDo(c, 0, do)
		return
	}
	w := c.Workload()
	w.Requests.push(&Slot{Do: do, Cost: SlotCost, after: c.sh.Mail.count()})
	c.sh.Run.Schedule(w)
}

// CloseInOrder begins to close the connection in its order.
func (c *Conn) CloseInOrder(how closeHow, code codec.CloseCode, reason string) {
	if !c.Waiting() {
		c.sh.PostClose(c, how, code, reason)
		return
	}
	c.inOrder(func() { c.StartClose(how, code, reason) })
}
