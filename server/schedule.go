package server

import (
	"errors"
	"math"
	"sync/atomic"
	"time"

	"carillon/server/topic"
)

// maxTimers is how many timers a connection may have that have not run.
const maxTimers = 1024

// timerCost is about the memory of a timer with its function.
const timerCost = 192

// ErrTooManyTimers is returned by [Conn.After] for a connection with 1,024 timers that have not run.
var ErrTooManyTimers = errors.New("connection has too many timers: 1024 are pending")

// Do has f called on the connection's event loop: never at the same time as another call for this connection, so f
// may use what its [Handler] uses without a lock, and like a handler it must not block. It may be called from any
// goroutine, and returns before f is called, also on the loop itself.
//
// f takes its turn among what the calling goroutine asks of the connection: what was sent before is on its way to the
// client when f is called, and a [Conn.Close] comes after it. Messages that the client has sent and f are not ordered:
// those that have arrived already may be handled first.
//
// When the connection closes before that, f is not called: nothing is after [Handler.Close]. Do fails with [ErrClosed]
// when the connection is closed or closing already, and with [ErrOverloaded] when its loop has more than
// Limits.MaxBacklog bytes to handle; f counts as 256.
func (c *Conn) Do(f func()) error {
	if !c.isOpen() {
		return ErrClosed
	}
	if c.sh.backlog.Load()+commandCost+doCost > c.sh.engine.settings().maxBacklog {
		return topic.ErrOverloaded
	}
	c.sh.postDo(c, 0, func() {
		if c.state.Load() == stateOpen {
			c.owner().call(c, hookDo, f)
		}
	})
	return nil
}

// After has f called as [Conn.Do] does, once d has passed. Timers of a connection that are due together run in the
// order of their times.
//
// f is not called when the connection closes before that, or [Conn.Close] is called: all its timers end then, and what
// they hold can be collected. The payload of [Handler.Message] is not valid any more when f is called; keep a copy.
//
// After fails with [ErrClosed], with [ErrTooManyTimers], and with [ErrOverloaded] when the timers of all connections
// of the loop take more than Limits.MaxBacklog, each about 200 bytes. The timer is then nil.
func (c *Conn) After(d time.Duration, f func()) (*Timer, error) {
	if !c.isOpen() {
		return nil, ErrClosed
	}
	set := c.timers()
	if set.count.Add(1) > maxTimers {
		set.count.Add(-1)
		return nil, ErrTooManyTimers
	}
	if c.sh.timers.bytes.Add(timerCost) > c.sh.engine.settings().maxBacklog {
		c.sh.timers.bytes.Add(-timerCost)
		set.count.Add(-1)
		return nil, topic.ErrOverloaded
	}
	now := c.sh.engine.uptime()
	t := &Timer{conn: c, set: set, do: f, at: now + min(max(d, 0), math.MaxInt64-now), index: -1}
	c.sh.postDo(c, 0, func() { c.sh.timers.begin(t) })
	return t, nil
}

// Timer is a call that [Conn.After] has put off.
type Timer struct {
	// Immutable.
	conn *Conn
	set  *connTimers
	at   time.Duration // after the server was made

	over atomic.Bool // stopped, or about to be called

	// Owned by the loop.
	do         func()
	index      int    // in the heap of the loop; -1 outside of it
	begun      uint64 // when it came there: of two that are due at once the first is called first
	prev, next *Timer
}

func (t *Timer) before(other *Timer) bool {
	return t.at < other.at || t.at == other.at && t.begun < other.begun
}

func (t *Timer) place() *int { return &t.index }

// Stop prevents the call, and reports whether it has: false means that the function has been called or is about to be,
// that the timer was stopped before, or that the connection has closed. It may be called from any goroutine.
func (t *Timer) Stop() bool {
	if t.over.Swap(true) {
		return false
	}
	t.conn.sh.postDo(t.conn, 0, func() { t.conn.sh.timers.remove(t) })
	return true
}

// connTimers are those of one connection.
type connTimers struct {
	count atomic.Int32 // of timers that have not run
	first *Timer       // owned by the loop
}

// timers returns those of the connection, which are made when the first one is asked for.
func (c *Conn) timers() *connTimers {
	if o := c.attachment.Load(); o != nil && o.timers != nil {
		return o.timers
	}
	made := &connTimers{}
	_, after := c.attach(func(o *attachment) {
		if o.timers == nil {
			o.timers = made
		}
	})
	return after.timers
}

// dropTimers ends the timers of a connection that closes.
func (c *Conn) dropTimers() {
	o := c.attachment.Load()
	if o == nil || o.timers == nil {
		return
	}
	for t := o.timers.first; t != nil; t = o.timers.first {
		t.over.Store(true)
		c.sh.timers.remove(t)
	}
}

// loopTimers are the timers of all connections of a loop, as a heap. The loop has one timer of the runtime, for the
// first of them, and none while there are none.
type loopTimers struct {
	sh    *shard
	bytes atomic.Int64 // of timers that have not run, begun or not

	// Owned by the loop.
	heap  indexedHeap[*Timer]
	begun uint64        // timers, ever
	alarm *time.Timer   // nil until it is needed
	set   time.Duration // when the alarm goes off, after the server was made; 0 when it does not
	due   bool          // it has gone off, or timers that are due have not run
}

// begin is called on the loop, once for each timer.
func (l *loopTimers) begin(t *Timer) {
	if !t.conn.isOpen() || t.over.Load() {
		t.over.Store(true)
		l.forget(t)
		return
	}
	if t.next = t.set.first; t.next != nil {
		t.next.prev = t
	}
	t.set.first = t
	l.begun++
	t.begun = l.begun
	l.heap.push(t)
	l.arm()
}

// remove ends a timer, unless that has been done.
func (l *loopTimers) remove(t *Timer) {
	if t.index < 0 {
		return
	}
	l.heap.remove(t)
	if t.next != nil {
		t.next.prev = t.prev
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		t.set.first = t.next
	}
	t.prev, t.next = nil, nil
	l.forget(t)
	if len(l.heap) == 0 && l.set != 0 {
		l.alarm.Stop() // or it would hold on to a server that has ended
		l.set = 0
	}
}

// forget takes a timer out of the counts, and lets go of what its function holds.
func (l *loopTimers) forget(t *Timer) {
	t.do = nil
	t.set.count.Add(-1)
	l.bytes.Add(-timerCost)
}

// arm has the loop woken when the first timer is due. An alarm that is too early is left as it is, since the loop arms
// it again.
func (l *loopTimers) arm() {
	if len(l.heap) == 0 || l.set != 0 && l.set <= l.heap[0].at {
		return
	}
	l.set = max(l.heap[0].at, 1)
	wait := l.set - l.sh.engine.uptime()
	if l.alarm == nil {
		l.alarm = time.AfterFunc(wait, l.sh.postTimers)
	} else {
		l.alarm.Reset(wait)
	}
}

// run calls what is due, for a slice of time.
func (l *loopTimers) run() {
	if !l.due {
		return
	}
	start, now := time.Now(), l.sh.engine.uptime()
	for len(l.heap) > 0 && l.heap[0].at <= now {
		if time.Since(start) > sliceTime {
			return
		}
		t := l.heap[0]
		do := t.do
		l.remove(t)
		if c := t.conn; !t.over.Swap(true) && c.isOpen() {
			c.owner().call(c, hookAfter, do)
		}
	}
	l.due, l.set = false, 0
	l.arm()
}
