package reactor

import (
	"time"

	"carillon/codec"
	"carillon/server/internal/outbox"
	"carillon/server/stats"
)

// Extension is what few connections have.
type Extension struct {
	// Guarded by sh.mu: only the loop writes, so the loop reads without the lock. What is in a
	// subscription beside its audience is owned by the loop.
	Subs []Subscription

	// Owned by the loop.
	caught uint64    // sh.published when the connection had caught up with all of its topics
	left   Stamp     // when the connection left its topics, while it is in sh.departed
	Stale  int32     // subscriptions that are
	Work   *Workload // what is to be done for the connection; nil for nothing

	deadline int // where it stands in sh.deadlines; -1 when it is not there

	// Guarded by sh.mu: only the loop writes.
	session   *Session
	OwnerData any // what the owner keeps for the connection
}

// Extend returns c.ext, which is made if need be. The caller holds sh.mu.
func (c *Conn) Extend() *Extension {
	if c.ext == nil {
		c.ext = &Extension{deadline: -1}
	}
	return c.ext
}

// Subscription is a connection's place in a topic's audience.
type Subscription struct {
	Audience *Audience
	Slot     int32 // in the audience
	Stale    bool  // the newest message of the topic waits until the socket takes bytes again
	Asked    bool  // by the client, so that its rights have to cover it
}

// OpenSubscriptions are those of an open connection. One that has closed may still have its places in the audiences:
// see LeaveTopics. The caller holds sh.mu.
func (c *Conn) OpenSubscriptions() []Subscription {
	if c.ext == nil || c.state.Load() != StateOpen {
		return nil
	}
	return c.ext.Subs
}

// SubscriptionCount is how many topics and patterns the connection has.
func (c *Conn) SubscriptionCount() int {
	c.sh.Mu.Lock()
	defer c.sh.Mu.Unlock()
	return len(c.OpenSubscriptions())
}

// Hoards reports whether a connection that does not read has had more histories queued than it has
// subscriptions: without this, one that subscribes and unsubscribes in turn could queue any amount, since
// history does not count for SlowConsumer.MaxQueue.
func (c *Conn) Hoards() bool {
	limit := c.Settings().Slow.Bytes
	return c.out != nil && limit >= 0 && c.out.History > limit && c.out.Batches > len(c.ext.Subs)
}

// call runs what the mailbox held for a connection. The application may have a part in it.
func (c *Conn) call(do func()) { c.Owner().Call(c, hookDone, do) }

// Join makes the connection a member, from a message on.
func (c *Conn) Join(a *Audience, next uint32, asked bool) {
	c.sh.Mu.Lock()
	defer c.sh.Mu.Unlock()
	m := c.Extend()
	if len(m.Subs) == cap(m.Subs) { // append would double it, for many connections
		m.Subs = append(make([]Subscription, 0, len(m.Subs)+len(m.Subs)/4+1), m.Subs...)
	}
	slot := a.join(c, next, int32(len(m.Subs)))
	m.Subs = append(m.Subs, Subscription{Audience: a, Slot: slot, Asked: asked})
}

// DropSubscription takes the connection out of an audience. Another subscription moves to its place.
func (c *Conn) DropSubscription(i int) {
	subs, last := c.ext.Subs, len(c.ext.Subs)-1
	s := subs[i]
	c.sh.Mu.Lock()
	s.Audience.quit(s.Slot)
	subs[i] = subs[last]
	if i < last {
		subs[i].Audience.Members[subs[i].Slot].Sub = int32(i)
	}
	subs[last] = Subscription{}
	c.ext.Subs = subs[:last]
	if cap(subs) > 8 && last < cap(subs)/4 {
		c.ext.Subs = halve(c.ext.Subs)
	}
	c.sh.Mu.Unlock()
	if s.Stale {
		c.ext.Stale--
		c.sh.Stats.Drop(stats.DropClosed, 1)
	}
	s.Audience.Feed.Left(s.Audience)
}

// LeaveTopics ends all subscriptions of a connection that is closing, at once unless the loop has been busy for long
// enough: many may close together that have many subscriptions each. Until then its places in the audiences stay, and
// walks pass over them.
func (c *Conn) LeaveTopics() {
	if c.ext == nil || len(c.ext.Subs) == 0 {
		return
	}
	sh := c.sh
	sh.Stats.Drop(stats.DropClosed, uint64(c.ext.Stale))
	c.ext.Stale, c.ext.left = 0, sh.Engine.Stamp()
	sh.Mu.Lock()
	sh.Departed.push(c)
	sh.Mu.Unlock()
	if !sh.isCrowded() {
		sh.settleDeparted(MaxRound - sh.Round)
	}
	if sh.Departed.Len() > 0 {
		sh.wake()
	}
}

// settleDeparted takes connections that have left out of their audiences, and tells the topics, until a time is over.
func (sh *Shard) settleDeparted(limit time.Duration) {
	if sh.Departed.Len() == 0 {
		return
	}
	for begin := sh.Engine.Uptime(); sh.Departed.Len() > 0; {
		c := sh.Departed.first()
		var some [8]*Audience // few, so that the lock is held for microseconds
		n, missed := min(len(c.ext.Subs), len(some)), 0
		sh.Mu.Lock()
		for i := range n {
			last := len(c.ext.Subs) - 1
			s := c.ext.Subs[last]
			missed += s.Audience.missedUntil(s.Slot, c.ext.left)
			s.Audience.quit(s.Slot)
			some[i], c.ext.Subs = s.Audience, c.ext.Subs[:last]
		}
		if len(c.ext.Subs) == 0 {
			c.ext.Subs = nil
			sh.Departed.pop()
		}
		sh.Mu.Unlock()
		sh.Stats.Drop(stats.DropClosed, uint64(missed))
		for _, a := range some[:n] {
			a.Feed.Left(a)
		}
		if sh.Engine.Uptime()-begin > limit {
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
	for i := 0; i < len(c.ext.Subs) && c.state.Load() == StateOpen; i++ {
		if s := &c.ext.Subs[i]; s.Audience.queued {
			s.Audience.catchUp(s.Slot)
		}
	}
}

// conflate leaves n messages of a topic to the newest one, which is sent when the socket takes bytes again.
func (c *Conn) conflate(sub int32, n int) {
	s := &c.ext.Subs[sub]
	if !s.Stale {
		s.Stale = true
		c.ext.Stale++
		n--
	}
	c.sh.Stats.Drop(stats.DropConflated, uint64(n))
}

// Refresh sends the newest messages that waited until the socket takes bytes again, since it is the last chance. Of
// those that have not been compressed for others it compresses a few.
func (c *Conn) Refresh() {
	c.sh.caughtUp = 0
	c.eachStale(func(f *codec.Frame) bool {
		c.boundCompression([]*codec.Frame{f})
		c.SendEncoded(c.encoded(f), outbox.History) // one for each topic at most
		return c.state.Load() == StateOpen
	})
}

// queueNewest puts some of the newest messages that waited into an empty outbox, and reports whether there were any.
// What may have to be compressed is taken from left.
func (c *Conn) queueNewest(left *int) (some bool) {
	c.eachStale(func(f *codec.Frame) bool {
		some = true
		if c.Deflates() {
			*left -= len(f.Payload())
		}
		c.enqueue(c.encoded(f), 0, outbox.History)
		return c.out.Bytes < outbox.ChunkSize && *left > 0
	})
	return some
}

// eachStale calls send with the newest message of each topic that waits, until it returns false. They are sent then.
func (c *Conn) eachStale(send func(*codec.Frame) bool) {
	if c.ext == nil || c.state.Load() != StateOpen {
		return
	}
	for i := 0; c.ext.Stale > 0 && i < len(c.ext.Subs); i++ {
		s := &c.ext.Subs[i]
		if !s.Stale {
			continue
		}
		s.Stale = false
		c.ext.Stale--
		a := s.Audience
		c.sh.Stats.Drop(stats.DropConflated, a.missed(s.Slot))
		a.Members[s.Slot].Seq = a.End()
		if !send(a.newest) {
			return
		}
	}
}
