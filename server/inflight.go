package server

import (
	"sync/atomic"
	"time"
)

// Messages of all connections go to the broker in one line. While it flows, one connection has few messages in it, and
// where many publish each has its share, so that nobody's message waits behind many of others.
//
// Messages for transient topics, and broadcasts, are handed to this server's connections when they are published: only
// the acknowledgement waits for the broker. So while the broker stands still, a connection that has used its share
// still publishes those. What waits then is bounded by its memory.

const (
	maxPublishing      = 64  // messages of one connection
	maxPublishingOfAll = 256 // shared by those that have any in the line, but each may have one

	// maxInFlight is about how many bytes the messages in the line may take up. A connection with messages in it is not
	// read from while they take up more than a 64th of what is left. So the connections that have the most wait first,
	// and there is room for others.
	maxInFlight  = 32 << 20
	partInFlight = 64

	// stallTime is how long the broker acknowledges none of the transient messages in the line before it counts as
	// standing still.
	stallTime = 100 * time.Millisecond
)

// flightCost is about the memory of a message in the line besides its payload.
const flightCost = 512

// flight is a message of a client that the broker has not acknowledged yet.
type flight struct {
	bytes     int // flightCost included
	transient bool
}

// flights are those of one connection.
type flights struct {
	number    int
	transient int // of them
	bytes     int
}

func (f *flights) add(m flight, n int) {
	f.number += n
	f.bytes += n * m.bytes
	if m.transient {
		f.transient += n
	}
}

// inFlight is the messages of all clients that the broker has not acknowledged yet.
type inFlight struct {
	publishers atomic.Int64 // connections that have any
	bytes      atomic.Int64
	transient  atomic.Int64 // messages
	flowed     atomic.Int64 // when one of these was acknowledged last, or was the first, in uptime
}

// share returns how many messages of one connection may be in the line while it flows.
func (l *inFlight) share() int {
	return max(min(maxPublishing, maxPublishingOfAll/max(int(l.publishers.Load()), 1)), 1)
}

// flows notes that the broker has acknowledged a transient message.
func (l *inFlight) flows(uptime time.Duration) { l.flowed.Store(int64(uptime)) }

// isStalled reports whether the broker stands still, for a caller that has transient messages in the line.
func (l *inFlight) isStalled(uptime time.Duration) bool {
	return uptime-time.Duration(l.flowed.Load()) >= stallTime
}

// holds reports whether a connection that has messages in the line has to wait with further ones.
func (e *engine) holds(f *flights) bool {
	l := &e.inFlight
	if f.number >= maxSlots || int64(f.bytes) > (maxInFlight-l.bytes.Load())/partInFlight {
		return true
	}
	share := l.share()
	return f.number >= share && (f.number-f.transient >= share || !l.isStalled(e.uptime()))
}

// beginPublishing notes that a message of the client is on its way to the broker.
func (c *Conn) beginPublishing(m flight) {
	w, l := c.needWorkload(), &c.sh.engine.inFlight
	w.flights.add(m, 1)
	l.bytes.Add(int64(m.bytes))
	if m.transient && l.transient.Add(1) == 1 {
		l.flows(c.sh.engine.uptime())
	}
	if w.flights.number == 1 {
		l.publishers.Add(1)
	}
	if w.suspended {
		c.sh.awaitStall(w)
	}
}

// endPublishing notes that the broker has one, or that it is lost.
func (c *Conn) endPublishing(m flight) {
	w, l := c.workload(), &c.sh.engine.inFlight
	w.flights.add(m, -1)
	l.bytes.Add(-int64(m.bytes))
	if m.transient {
		l.transient.Add(-1)
	}
	if w.flights.number == 0 {
		l.publishers.Add(-1)
	}
	c.sh.run.schedule(w)
	c.settleWorkload(w)
}

// awaitStall has the loop look again at a connection that waits although it may go on if the broker stands still.
func (sh *shard) awaitStall(w *workload) {
	if w.awaitsStall || w.flights.transient == 0 {
		return
	}
	w.awaitsStall = true
	q := &sh.run
	if q.awaitStall = append(q.awaitStall, w); len(q.awaitStall) == 1 {
		sh.lookForStall()
	}
}

func (sh *shard) lookForStall() {
	q := &sh.run
	q.stallLook = sh.engine.uptime() + stallTime
	if q.stall == nil {
		q.stall = time.AfterFunc(stallTime, sh.postRelief)
		return
	}
	q.stall.Reset(stallTime)
}

// endStallWait lets connections go on that may, now that the broker stands still.
func (sh *shard) endStallWait() {
	q := &sh.run
	if len(q.awaitStall) == 0 || sh.engine.uptime() < q.stallLook {
		return
	}
	rest := q.awaitStall[:0]
	for _, w := range q.awaitStall {
		if w.conn.workload() == w && w.suspended && w.isFull() {
			rest = append(rest, w)
			continue
		}
		w.awaitsStall = false
		q.schedule(w)
	}
	clear(q.awaitStall[len(rest):])
	if q.awaitStall = rest; len(rest) > 0 {
		sh.lookForStall()
	}
}
