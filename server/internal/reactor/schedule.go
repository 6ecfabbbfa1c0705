package reactor

import (
	"errors"
	"math"
	"sync/atomic"
	"time"

	"carillon/internal/indexheap"
	"carillon/server/topic"
)

// MaxTimers is how many timers a connection may have that have not run.
const MaxTimers = 1024

// TimerCost is about the memory of a timer with its function.
const TimerCost = 192

// ErrTooManyTimers is returned by [Conn.After] for a connection with 1,024 timers that have not run.
var ErrTooManyTimers = errors.New("connection has too many timers: 1024 are pending")

// Do is that of the public connection.
func (c *Conn) Do(f func()) error {
	if !c.IsOpen() {
		return ErrClosed
	}
	if c.sh.Backlog.Load()+CommandCost+DoCost > c.sh.Engine.Settings().MaxBacklog {
		return topic.ErrOverloaded
	}
	c.sh.PostDo(c, 0, func() {
		if c.state.Load() == StateOpen {
			c.Owner().Call(c, hookDo, f)
		}
	})
	return nil
}

// After is that of the public connection.
func (c *Conn) After(d time.Duration, f func()) (*Timer, error) {
	if !c.IsOpen() {
		return nil, ErrClosed
	}
	set := c.timers()
	if set.count.Add(1) > MaxTimers {
		set.count.Add(-1)
		return nil, ErrTooManyTimers
	}
	if c.sh.Timers.Bytes.Add(TimerCost) > c.sh.Engine.Settings().MaxBacklog {
		c.sh.Timers.Bytes.Add(-TimerCost)
		set.count.Add(-1)
		return nil, topic.ErrOverloaded
	}
	now := c.sh.Engine.Uptime()
	t := &Timer{conn: c, set: set, do: f, at: now + min(max(d, 0), math.MaxInt64-now), index: -1}
	c.sh.PostDo(c, 0, func() { c.sh.Timers.begin(t) })
	return t, nil
}

// Timer is a call that [Conn.After] has put off. It has no exported fields, as Conn has not.
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

func (t *Timer) Before(other *Timer) bool {
	return t.at < other.at || t.at == other.at && t.begun < other.begun
}

func (t *Timer) Place() *int { return &t.index }

// Stop is that of the public timer.
func (t *Timer) Stop() bool {
	if t.over.Swap(true) {
		return false
	}
	t.conn.sh.PostDo(t.conn, 0, func() { t.conn.sh.Timers.remove(t) })
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
	_, after := c.Attach(func(o *Attachment) {
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
		c.sh.Timers.remove(t)
	}
}

// loopTimers are the timers of all connections of a loop, as a heap. The loop has one timer of the runtime, for the
// first of them, and none while there are none.
type loopTimers struct {
	sh    *Shard
	Bytes atomic.Int64 // of timers that have not run, begun or not

	// Owned by the loop.
	Heap  indexheap.Heap[*Timer]
	begun uint64        // timers, ever
	alarm *time.Timer   // nil until it is needed
	Set   time.Duration // when the alarm goes off, after the server was made; 0 when it does not
	due   bool          // it has gone off, or timers that are due have not run
}

// begin is called on the loop, once for each timer.
func (l *loopTimers) begin(t *Timer) {
	if !t.conn.IsOpen() || t.over.Load() {
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
	l.Heap.Insert(t)
	l.arm()
}

// remove ends a timer, unless that has been done.
func (l *loopTimers) remove(t *Timer) {
	if t.index < 0 {
		return
	}
	l.Heap.Remove(t)
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
	if len(l.Heap) == 0 && l.Set != 0 {
		l.alarm.Stop() // or it would hold on to a server that has ended
		l.Set = 0
	}
}

// forget takes a timer out of the counts, and lets go of what its function holds.
func (l *loopTimers) forget(t *Timer) {
	t.do = nil
	t.set.count.Add(-1)
	l.Bytes.Add(-TimerCost)
}

// arm has the loop woken when the first timer is due. An alarm that is too early is left as it is, since the loop arms
// it again.
func (l *loopTimers) arm() {
	if len(l.Heap) == 0 || l.Set != 0 && l.Set <= l.Heap[0].at {
		return
	}
	l.Set = max(l.Heap[0].at, 1)
	wait := l.Set - l.sh.Engine.Uptime()
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
	start, now := time.Now(), l.sh.Engine.Uptime()
	for len(l.Heap) > 0 && l.Heap[0].at <= now {
		if time.Since(start) > sliceTime {
			return
		}
		t := l.Heap[0]
		do := t.do
		l.remove(t)
		if c := t.conn; !t.over.Swap(true) && c.IsOpen() {
			c.Owner().Call(c, hookAfter, do)
		}
	}
	l.due, l.Set = false, 0
	l.arm()
}
