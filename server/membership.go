package server

import (
	"time"

	"carillon/server/stats"
)

// extension is what few connections have.
type extension struct {
	// Guarded by sh.mu: only the loop writes, so the loop reads without the lock. What is in a
	// subscription beside its audience is owned by the loop.
	subs []subscription

	// Owned by the loop.
	caught uint64    // sh.published when the connection had caught up with all of its topics
	left   stamp     // when the connection left its topics, while it is in sh.departed
	stale  int32     // subscriptions that are
	work   *workload // what is to be done for the connection; nil for nothing

	deadline int // where it stands in sh.deadlines; -1 when it is not there

	// Guarded by sh.mu: only the loop writes.
	session   *session
	ownerData any // what the owner keeps for the connection
}

// extend returns c.ext, which is made if need be. The caller holds sh.mu.
func (c *Conn) extend() *extension {
	if c.ext == nil {
		c.ext = &extension{deadline: -1}
	}
	return c.ext
}

// subscription is a connection's place in a topic's audience.
type subscription struct {
	audience *audience
	slot     int32 // in the audience
	stale    bool  // the newest message of the topic waits until the socket takes bytes again
	asked    bool  // by the client, so that its rights have to cover it
}

// openSubscriptions are those of an open connection. One that has closed may still have its places in the audiences:
// see leaveTopics. The caller holds sh.mu.
func (c *Conn) openSubscriptions() []subscription {
	if c.ext == nil || c.state.Load() != stateOpen {
		return nil
	}
	return c.ext.subs
}

// subscriptions is how many topics and patterns the connection has.
func (c *Conn) subscriptions() int {
	c.sh.mu.Lock()
	defer c.sh.mu.Unlock()
	return len(c.openSubscriptions())
}

// hoards reports whether a connection that does not read has had more histories queued than it has
// subscriptions: without this, one that subscribes and unsubscribes in turn could queue any amount, since
// history does not count for SlowConsumer.MaxQueue.
func (c *Conn) hoards() bool {
	limit := c.settings().slow.maxQueue
	return c.out != nil && limit >= 0 && c.out.history > limit && c.out.batches > len(c.ext.subs)
}

// call runs what the mailbox held for a connection. The application may have a part in it.
func (c *Conn) call(do func()) { c.owner().call(c, hookDone, do) }

// join makes the connection a member, from a message on.
func (c *Conn) join(a *audience, next uint32, asked bool) {
	c.sh.mu.Lock()
	defer c.sh.mu.Unlock()
	m := c.extend()
	if len(m.subs) == cap(m.subs) { // append would double it, for many connections
		m.subs = append(make([]subscription, 0, len(m.subs)+len(m.subs)/4+1), m.subs...)
	}
	slot := a.join(c, next, int32(len(m.subs)))
	m.subs = append(m.subs, subscription{audience: a, slot: slot, asked: asked})
}

// dropSubscription takes the connection out of an audience. Another subscription moves to its place.
func (c *Conn) dropSubscription(i int) {
	subs, last := c.ext.subs, len(c.ext.subs)-1
	s := subs[i]
	c.sh.mu.Lock()
	s.audience.quit(s.slot)
	subs[i] = subs[last]
	if i < last {
		subs[i].audience.members[subs[i].slot].sub = int32(i)
	}
	subs[last] = subscription{}
	c.ext.subs = subs[:last]
	if cap(subs) > 8 && last < cap(subs)/4 {
		c.ext.subs = halve(c.ext.subs)
	}
	c.sh.mu.Unlock()
	if s.stale {
		c.ext.stale--
		c.sh.stats.Drop(stats.DropClosed, 1)
	}
	s.audience.feed.left(s.audience)
}

// leaveTopics ends all subscriptions of a connection that is closing, at once unless the loop has been busy for long
// enough: many may close together that have many subscriptions each. Until then its places in the audiences stay, and
// walks pass over them.
func (c *Conn) leaveTopics() {
	if c.ext == nil || len(c.ext.subs) == 0 {
		return
	}
	sh := c.sh
	sh.stats.Drop(stats.DropClosed, uint64(c.ext.stale))
	c.ext.stale, c.ext.left = 0, sh.engine.stamp()
	sh.mu.Lock()
	sh.departed.push(c)
	sh.mu.Unlock()
	if !sh.isCrowded() {
		sh.settleDeparted(maxRound - sh.round)
	}
	if sh.departed.len() > 0 {
		sh.wake()
	}
}

// settleDeparted takes connections that have left out of their audiences, and tells the topics, until a time is over.
func (sh *shard) settleDeparted(limit time.Duration) {
	if sh.departed.len() == 0 {
		return
	}
	for begin := sh.engine.uptime(); sh.departed.len() > 0; {
		c := sh.departed.first()
		var some [8]*audience // few, so that the lock is held for microseconds
		n, missed := min(len(c.ext.subs), len(some)), 0
		sh.mu.Lock()
		for i := range n {
			last := len(c.ext.subs) - 1
			s := c.ext.subs[last]
			missed += s.audience.missedUntil(s.slot, c.ext.left)
			s.audience.quit(s.slot)
			some[i], c.ext.subs = s.audience, c.ext.subs[:last]
		}
		if len(c.ext.subs) == 0 {
			c.ext.subs = nil
			sh.departed.pop()
		}
		sh.mu.Unlock()
		sh.stats.Drop(stats.DropClosed, uint64(missed))
		for _, a := range some[:n] {
			a.feed.left(a)
		}
		if sh.engine.uptime()-begin > limit {
			break
		}
	}
}

// catchUpTopics gives the connection what its topics' streams have for it. It looks at the subscriptions once for all
// that was published: what a connection is sent may be a crowd of small commands.
func (c *Conn) catchUpTopics() {
	if c.ext == nil || c.ext.caught == c.sh.published {
		return
	}
	c.ext.caught = c.sh.published
	for i := 0; i < len(c.ext.subs) && c.state.Load() == stateOpen; i++ {
		if s := &c.ext.subs[i]; s.audience.queued {
			s.audience.catchUp(s.slot)
		}
	}
}

// conflate leaves n messages of a topic to the newest one, which is sent when the socket takes bytes again.
func (c *Conn) conflate(sub int32, n int) {
	s := &c.ext.subs[sub]
	if !s.stale {
		s.stale = true
		c.ext.stale++
		n--
	}
	c.sh.stats.Drop(stats.DropConflated, uint64(n))
}

// refresh sends the newest messages that waited until the socket takes bytes again; all of them, even if
// it does not, when it is the last chance.
func (c *Conn) refresh(all bool) {
	for i := 0; c.state.Load() == stateOpen && (all || c.out == nil) && c.ext != nil && c.ext.stale > 0 && i < len(c.ext.subs); i++ {
		s := &c.ext.subs[i]
		if !s.stale {
			continue
		}
		s.stale = false
		c.ext.stale--
		a := s.audience
		c.sh.stats.Drop(stats.DropConflated, a.missed(s.slot))
		a.members[s.slot].seq = a.end()
		c.sendEncoded(c.encoded(a.newest), itemHistory) // one for each topic at most
	}
}
