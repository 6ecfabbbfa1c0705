package server

import (
	"fmt"
	"time"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/stats"
)

// sweep is the round that finds connections whose time is up, through all tables of a shard. Like a
// walk it is cut into slices, by what it sends and not by what it looks at: looking costs 1 ns.
type sweep struct {
	running  bool
	stalled  int            // of the connections that stall, those below this are still to be seen
	table    int            // the one being swept
	next     int            // its members below this are still to be seen
	schedule *drainSchedule // while the server drains
	reached  uint64         // by the schedule
	second   uint32         // the server's, if connections have a maximum age
}

const sweepSends = 256

// sweepLooks bounds a slice in which each look goes to the connection itself, which is likely to be in no
// cache.
const sweepLooks = 8192

func (sh *shard) beginSweep() {
	sh.shedExcess()
	sh.buffers.Trim()
	sh.rests.Trim()
	if !sh.sweep.running && !sh.stoodStill() {
		sh.sweep = sweep{running: true, stalled: len(sh.stalled), table: len(sh.tables), schedule: sh.engine.schedule.Load()}
		if p := sh.sweep.schedule; p != nil {
			sh.sweep.reached = p.progress(time.Now())
		}
		if sh.engine.settings().maxAge > 0 {
			sh.sweep.second = sh.engine.uptimeSeconds()
		}
	}
}

// lateSweep is how late a loop may come to a round.
const lateSweep = 500 * time.Millisecond

// stoodStill reports whether the loop comes so late to a round that clients may have sent in time what it has not read:
// a handler has blocked it, or the process was stopped. It leaves that round out, and reads. It does not leave out two
// in a row, for a loop that is always late has to find those whose time is up as well.
func (sh *shard) stoodStill() bool {
	late := sh.began-sh.swept > sh.engine.settings().tick+lateSweep
	sh.swept = sh.began
	sh.leftOut = late && !sh.leftOut && !sh.goingAway
	return sh.leftOut
}

// sweepOn goes on with the round. It goes through each table from the end, so that the member which
// takes the place of one that leaves has been seen already.
func (sh *shard) sweepOn() {
	w := &sh.sweep
	if sh.goingAway && !w.running && sh.occupied() {
		sh.beginSweep()
	}
	start, sends, looks := time.Now(), 0, 0
	over := func() bool {
		return sends >= sweepSends || sends&3 == 3 && time.Since(start) > sliceTime
	}
	for w.running && !over() && sh.expireNext() {
		sends++
	}
	for ; w.stalled > 0 && !over() && looks < sweepLooks; looks++ {
		w.stalled = min(w.stalled, len(sh.stalled)) - 1
		if w.stalled >= 0 && sh.stalled[w.stalled].stalledDue() {
			sends++
		}
	}
	if w.stalled > 0 {
		return
	}
	for w.running && !over() {
		if w.next == 0 {
			w.table--
			if w.table < 0 {
				w.running = false
				return
			}
			w.next = len(sh.tables[w.table].members)
			continue
		}
		g := sh.tables[w.table]
		w.next = min(w.next, len(g.members)) - 1
		if w.next < 0 {
			w.next = 0
			continue
		}
		if g.due(w.next) {
			sends++
		}
		if looks++; looks >= sweepLooks && (w.schedule != nil || w.second > 0) {
			return
		}
	}
}

// occupied reports whether anybody has not been asked to go.
func (sh *shard) occupied() bool {
	for _, g := range sh.tables {
		if g != sh.closing && len(g.members) > 0 {
			return true
		}
	}
	return false
}

// due does what the time asks for member i, and reports whether it sent anything.
func (g *table) due(i int) bool {
	switch {
	case g == g.sh.handshaking:
		return g.sh.engine.owner.headDue(g.members[i].conn, g.times[i].message)
	case g == g.sh.closing:
		return g.closeDue(i)
	}
	return g.memberDue(i)
}

func (g *table) closeDue(i int) bool {
	c, since := g.members[i].conn, g.times[i].read
	if c.out != nil && int32(c.out.since-since) > 0 {
		since = c.out.since // still flushing: as long as the socket takes bytes, it may
	}
	limit := g.sh.engine.settings().closeTimeout
	if c.out != nil && c.is(markPeerDone) { // the peer is not waited for, only its socket
		limit = max(limit, g.sh.engine.settings().writeTimeout)
	}
	if !timedOut(g.sh.clock, since, limit) {
		return false
	}
	switch {
	case c.flushLate():
	case c.out == nil && c.catchesUp():
		g.times[i].read = g.sh.clock
	default:
		c.abort(errCloseTimeout)
	}
	return true
}

func (g *table) memberDue(i int) bool {
	now, t, set, w := g.sh.clock, &g.times[i], g.sh.engine.settings(), &g.sh.sweep
	switch {
	case w.schedule != nil && (g.sh.goingAway || w.schedule.position(g.members[i].conn.id) < w.reached):
		g.members[i].conn.retire(w.schedule)
	case w.second > 0 && g.members[i].conn.tooOld(w.second):
		c := g.members[i].conn
		g.sh.stats.Cut(stats.CutMaxAge)
		c.startClose(closeOwn, codec.CloseGoingAway, withRetry("connection has reached connections.max_age", c.retryAfter(shortestReturn)))
	case timedOut(now, t.message, set.idleTimeout) && !g.members[i].conn.isEvents() && !g.members[i].conn.isSuspended():
		g.sh.stats.Cut(stats.CutIdle)
		g.members[i].conn.startClose(closeOwn, codec.CloseGoingAway, fmt.Sprintf("no message for %v", set.idleTimeout))
	case t.ping != 0:
		if !timedOut(now, t.ping, set.pingTimeout) || g.members[i].conn.isSuspended() {
			return false // or it may have answered, and it is the server that has not read it
		}
		if g.members[i].conn.catchesUp() {
			t.ping = now
			return true
		}
		g.sh.stats.Cut(stats.CutPingTimeout)
		g.members[i].conn.startClose(closeFail, codec.CloseGoingAway, fmt.Sprintf("no answer to a ping for %v", set.pingTimeout))
	case timedOut(now, t.read, set.pingEarliest):
		c := g.members[i].conn
		if !timedOut(now, t.read, c.pingInterval()) || c.out != nil {
			return false // a socket that takes nothing is the write time-out's
		}
		if c.isEvents() { // nothing is expected of the client
			t.read = now
			c.sendControl(envelope.Comment)
			return true
		}
		t.ping = now
		c.noteLag(0)
		g.sh.control = codec.AppendFrame(g.sh.control[:0], codec.OpPing, nil)
		c.sendControl(g.sh.control)
	default:
		return false
	}
	return true
}

// pingInterval is shortened by the connection's own share of the jitter.
func (c *Conn) pingInterval() time.Duration {
	set := c.sh.engine.settings()
	return set.pingInterval - time.Duration(c.share()*set.pingJitter*float64(set.pingInterval))
}

// share is the connection's own part of what is jittered: 0 to 1, spread evenly over the ids.
func (c *Conn) share() float64 { return float64(c.id*0x9E3779B97F4A7C15>>40) / (1 << 24) }

// stalledDue cuts a connection off whose socket has taken nothing for the write time-out, and reports whether that was
// to be tried.
func (c *Conn) stalledDue() bool {
	sh := c.sh
	if !timedOut(sh.clock, c.out.since, sh.engine.settings().writeTimeout) {
		return false
	}
	if !c.flushLate() {
		if c.state.Load() == stateOpen {
			sh.stats.Cut(stats.CutWriteTimeout)
		}
		c.abort(errWriteTimeout)
	}
	return true
}

// flushLate tries once more before a connection is cut off, and reports whether that got bytes out. The
// kernel calls a socket writable only when a third of its buffer is free, which can be 1 MB: one whose
// peer reads slowly takes bytes long before that.
func (c *Conn) flushLate() bool {
	if c.out == nil {
		return false
	}
	before := c.sh.counters.bytesOut
	if c.flushSome() {
		c.sh.writable.push(c)
	}
	return c.sh.counters.bytesOut > before
}

// timedOut reports whether a time-out has run since then; one that is off never has.
func timedOut(now, since uint32, limit time.Duration) bool {
	return limit >= 0 && time.Duration(now-since)*time.Millisecond >= limit
}
