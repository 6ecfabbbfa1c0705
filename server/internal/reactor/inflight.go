package reactor

import (
	"sync/atomic"
	"time"
)

// Messages of all connections go to the broker in one line. While it flows, one connection has few messages in it, and
// where many publish each has its share, so that no message waits behind many of others.
//
// Messages for transient topics, and broadcasts, are handed to this server's connections when they are published: only
// the acknowledgement waits for the broker. So while the broker stands still, a connection that has used its share
// still publishes those. What waits then is bounded by its memory.

const (
	MaxPublishing      = 64  // messages of one connection
	MaxPublishingOfAll = 256 // shared by those that have any in the line, but each may have one

	// MaxInFlight is about how many bytes the messages in the line may take up. A connection with messages in it is not
	// read from while they take up more than a 64th of what is left. So the connections that have the most wait first,
	// and there is room for others.
	MaxInFlight  = 32 << 20
	PartInFlight = 64

	// StallTime is how long the broker acknowledges none of the transient messages in the line before it counts as
	// standing still.
	StallTime = 100 * time.Millisecond
)

// FlightCost is about the memory of a message in the line besides its payload.
const FlightCost = 512

// Flight is a message of a client that the broker has not acknowledged yet.
type Flight struct {
	Bytes     int // FlightCost included
	Transient bool
}

// flights are those of one connection.
type flights struct {
	number    int
	transient int // of them
	bytes     int
}

func (f *flights) add(m Flight, n int) {
	f.number += n
	f.bytes += n * m.Bytes
	if m.Transient {
		f.transient += n
	}
}

// inFlight is the messages of all clients that the broker has not acknowledged yet.
type inFlight struct {
	Publishers atomic.Int64 // connections that have any
	Bytes      atomic.Int64
	Transient  atomic.Int64 // messages
	flowed     atomic.Int64 // when one of these was acknowledged last, or was the first, in uptime
}

// share returns how many messages of one connection may be in the line while it flows.
func (l *inFlight) share() int {
	return max(min(MaxPublishing, MaxPublishingOfAll/max(int(l.Publishers.Load()), 1)), 1)
}

// Flows notes that the broker has acknowledged a transient message.
func (l *inFlight) Flows(uptime time.Duration) { l.flowed.Store(int64(uptime)) }

// isStalled reports whether the broker stands still, for a caller that has transient messages in the line.
func (l *inFlight) isStalled(uptime time.Duration) bool {
	return uptime-time.Duration(l.flowed.Load()) >= StallTime
}

// holds reports whether a connection that has messages in the line has to wait with further ones.
func (e *Engine) holds(f *flights) bool {
	l := &e.InFlight
	if f.number >= MaxSlots || int64(f.bytes) > (MaxInFlight-l.Bytes.Load())/PartInFlight {
		return true
	}
	share := l.share()
	return f.number >= share && (f.number-f.transient >= share || !l.isStalled(e.Uptime()))
}

// BeginPublishing notes that a message of the client is on its way to the broker.
func (c *Conn) BeginPublishing(m Flight) {
	w, l := c.NeedWorkload(), &c.sh.Engine.InFlight
	w.flights.add(m, 1)
	l.Bytes.Add(int64(m.Bytes))
	if m.Transient && l.Transient.Add(1) == 1 {
		l.Flows(c.sh.Engine.Uptime())
	}
	if w.flights.number == 1 {
		l.Publishers.Add(1)
	}
	if w.Suspended {
		c.sh.awaitStall(w)
	}
}

// EndPublishing notes that the broker has one, or that it is lost.
func (c *Conn) EndPublishing(m Flight) {
	w, l := c.Workload(), &c.sh.Engine.InFlight
	w.flights.add(m, -1)
	l.Bytes.Add(-int64(m.Bytes))
	if m.Transient {
		l.Transient.Add(-1)
	}
	if w.flights.number == 0 {
		l.Publishers.Add(-1)
	}
	c.sh.Run.Schedule(w)
	c.settleWorkload(w)
}

// awaitStall has the loop look again at a connection that waits although it may go on if the broker stands still.
func (sh *Shard) awaitStall(w *Workload) {
	if w.awaitsStall || w.flights.transient == 0 {
		return
	}
	w.awaitsStall = true
	q := &sh.Run
	if q.awaitStall = append(q.awaitStall, w); len(q.awaitStall) == 1 {
		sh.lookForStall()
	}
}

func (sh *Shard) lookForStall() {
	q := &sh.Run
	q.stallLook = sh.Engine.Uptime() + StallTime
	if q.stall == nil {
		q.stall = time.AfterFunc(StallTime, sh.postRelief)
		return
	}
	q.stall.Reset(StallTime)
}

// endStallWait lets connections go on that may, now that the broker stands still.
func (sh *Shard) endStallWait() {
	q := &sh.Run
	if len(q.awaitStall) == 0 || sh.Engine.Uptime() < q.stallLook {
		return
	}
	rest := q.awaitStall[:0]
	for _, w := range q.awaitStall {
		if w.Conn.Workload() == w && w.Suspended && w.isFull() {
			rest = append(rest, w)
			continue
		}
		w.awaitsStall = false
		q.Schedule(w)
	}
	clear(q.awaitStall[len(rest):])
	if q.awaitStall = rest; len(rest) > 0 {
		sh.lookForStall()
	}
}
