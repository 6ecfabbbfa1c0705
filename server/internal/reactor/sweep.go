package reactor

import (
	"fmt"
	"time"

	"carillon/codec"
	"carillon/server/internal/drain"
	"carillon/server/internal/envelope"
	"carillon/server/stats"
)

// sweep is the round that finds connections whose time is up, through all tables of a shard. Like a
// walk it is cut into slices, by what it sends and not by what it looks at: looking costs 1 ns.
type sweep struct {
	running  bool
	stalled  int             // of the connections that stall, those below this are still to be seen
	table    int             // the one being swept
	next     int             // its members below this are still to be seen
	schedule *drain.Schedule // while the server drains
	reached  uint64          // by the schedule
	second   uint32          // the server's, if connections have a maximum age
}

// sweepSends bounds the connections to which one slice of a sweep sends something.
const sweepSends = 256

// sweepLooks bounds a slice in which each look goes to the connection itself, which is likely to be in no
// cache.
const sweepLooks = 8192

func (sh *Shard) beginSweep() {
	sh.shedExcess()
	sh.buffers.Trim()
	sh.rests.Trim()
	if !sh.sweep.running && !sh.stoodStill() {
		sh.sweep = sweep{running: true, stalled: len(sh.Stalled), table: len(sh.tables), schedule: sh.Engine.Schedule.Load()}
		if p := sh.sweep.schedule; p != nil {
			sh.sweep.reached = p.Progress(time.Now())
		}
		if sh.Engine.Settings().MaxAge > 0 {
			sh.sweep.second = sh.Engine.UptimeSeconds()
		}
	}
}

// lateSweep is how late a loop may come to a round.
const lateSweep = 500 * time.Millisecond

// stoodStill reports whether the loop comes so late to a round that clients may have sent in time what it has not read:
// a handler has blocked it, or the process was stopped. It leaves that round out, and reads. It does not leave out two
// in a row, for a loop that is always late has to find those whose time is up as well.
func (sh *Shard) stoodStill() bool {
	late := sh.Began-sh.swept > sh.Engine.Settings().Tick+lateSweep
	sh.swept = sh.Began
	sh.leftOut = late && !sh.leftOut && !sh.GoingAway
	return sh.leftOut
}

// sweepOn goes on with the round. It goes through each table from the end, so that the member which
// takes the place of one that leaves has been seen already.
func (sh *Shard) sweepOn() {
	w := &sh.sweep
	if sh.GoingAway && !w.running && sh.occupied() {
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
		w.stalled = min(w.stalled, len(sh.Stalled)) - 1
		if w.stalled >= 0 && sh.Stalled[w.stalled].stalledDue() {
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
			w.next = len(sh.tables[w.table].Members)
			continue
		}
		g := sh.tables[w.table]
		w.next = min(w.next, len(g.Members)) - 1
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
func (sh *Shard) occupied() bool {
	for _, g := range sh.tables {
		if g != sh.closing && len(g.Members) > 0 {
			return true
		}
	}
	return false
}

// due does what the time asks for member i, and reports whether it sent anything.
func (g *Table) due(i int) bool {
	switch {
	case g == g.Shard.Handshaking:
		return g.Shard.Engine.owner.HeadDue(g.Members[i].Conn, g.Times[i].Message)
	case g == g.Shard.closing:
		return g.closeDue(i)
	}
	return g.memberDue(i)
}

func (g *Table) closeDue(i int) bool {
	c, since := g.Members[i].Conn, g.Times[i].Read
	if c.out != nil && int32(c.out.Since-since) > 0 {
		since = c.out.Since // still flushing: as long as the socket takes bytes, it may
	}
	limit := g.Shard.Engine.Settings().CloseTimeout
	if c.out != nil && c.Is(MarkPeerDone) { // the peer is not waited for, only its socket
		limit = max(limit, g.Shard.Engine.Settings().WriteTimeout)
	}
	if !TimedOut(g.Shard.Clock, since, limit) {
		return false
	}
	switch {
	case c.flushLate():
	case c.out == nil && c.catchesUp():
		g.Times[i].Read = g.Shard.Clock
	default:
		c.Abort(errCloseTimeout)
	}
	return true
}

func (g *Table) memberDue(i int) bool {
	now, t, set, w := g.Shard.Clock, &g.Times[i], g.Shard.Engine.Settings(), &g.Shard.sweep
	switch {
	case w.schedule != nil && (g.Shard.GoingAway || w.schedule.Position(g.Members[i].Conn.id) < w.reached):
		g.Members[i].Conn.retire(w.schedule)
	case w.second > 0 && g.Members[i].Conn.TooOld(w.second):
		c := g.Members[i].Conn
		g.Shard.Stats.Cut(stats.CutMaxAge)
		c.StartClose(CloseOwn, codec.CloseGoingAway, drain.WithRetry("connection has reached connections.max_age", drain.RetryAfter(c.id, drain.ShortestReturn)))
	case TimedOut(now, t.Message, set.IdleTimeout) && !g.Members[i].Conn.IsEvents() && !g.Members[i].Conn.IsSuspended():
		g.Shard.Stats.Cut(stats.CutIdle)
		g.Members[i].Conn.StartClose(CloseOwn, codec.CloseGoingAway, fmt.Sprintf("no message for %v", set.IdleTimeout))
	case t.Ping != 0:
		if !TimedOut(now, t.Ping, set.PingTimeout) || g.Members[i].Conn.IsSuspended() {
			return false // or it may have answered, and it is the server that has not read it
		}
		if g.Members[i].Conn.catchesUp() {
			t.Ping = now
			return true
		}
		g.Shard.Stats.Cut(stats.CutPingTimeout)
		g.Members[i].Conn.StartClose(CloseFail, codec.CloseGoingAway, fmt.Sprintf("no answer to a ping for %v", set.PingTimeout))
	case TimedOut(now, t.Read, set.PingEarliest):
		c := g.Members[i].Conn
		if !TimedOut(now, t.Read, c.PingInterval()) || c.out != nil {
			return false // a socket that takes nothing is the write time-out's
		}
		if c.IsEvents() { // nothing is expected of the client
			t.Read = now
			c.SendControl(envelope.Comment)
			return true
		}
		t.Ping = now
		c.noteLag(0)
		g.Shard.Control = codec.AppendFrame(g.Shard.Control[:0], codec.OpPing, nil)
		c.SendControl(g.Shard.Control)
	default:
		return false
	}
	return true
}

// PingInterval is shortened by the connection's own share of the jitter.
func (c *Conn) PingInterval() time.Duration {
	set := c.sh.Engine.Settings()
	return set.PingInterval - time.Duration(c.share()*set.PingJitter*float64(set.PingInterval))
}

// share is the connection's own part of what is jittered: 0 to 1, spread evenly over the ids.
func (c *Conn) share() float64 { return float64(c.id*0x9E3779B97F4A7C15>>40) / (1 << 24) }

// stalledDue cuts a connection off whose socket has taken nothing for the write time-out, and reports whether that was
// to be tried.
func (c *Conn) stalledDue() bool {
	sh := c.sh
	if !TimedOut(sh.Clock, c.out.Since, sh.Engine.Settings().WriteTimeout) {
		return false
	}
	if !c.flushLate() {
		if c.state.Load() == StateOpen {
			sh.Stats.Cut(stats.CutWriteTimeout)
		}
		c.Abort(errWriteTimeout)
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
	before := c.sh.Counters.bytesOut
	if c.flushSome() {
		c.sh.writable.push(c)
	}
	return c.sh.Counters.bytesOut > before
}

// TimedOut reports whether a time-out has run since then; one that is off never has.
func TimedOut(now, since uint32, limit time.Duration) bool {
	return limit >= 0 && time.Duration(now-since)*time.Millisecond >= limit
}
