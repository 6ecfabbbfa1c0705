package server

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"carillon/server/stats"
	"carillon/server/topic"
)

var (
	// ErrSubscribed is returned for a topic that the connection has.
	ErrSubscribed = errors.New("connection is already subscribed to this topic")

	// ErrOverlap is returned for a subscription that would bring messages which another one of the
	// connection brings already.
	ErrOverlap = errors.New("subscription overlaps another one of this connection")

	// ErrNotSubscribed is returned when there is nothing to unsubscribe from.
	ErrNotSubscribed = errors.New("connection is not subscribed to this topic")

	// ErrTooManySubscriptions is returned when the connection has as many as its endpoint allows.
	ErrTooManySubscriptions = errors.New("connection has too many subscriptions")

	// ErrNoPosition is returned when a subscription to a pattern asks for a start: positions belong to
	// single topics.
	ErrNoPosition = errors.New("a pattern has no position to start from")
)

// extension is what few connections have.
type extension struct {
	// Guarded by sh.mu: only the loop writes, so the loop reads without the lock. What is in a
	// subscription beside its audience is owned by the loop.
	subs []subscription

	// Owned by the loop.
	caught uint64    // sh.published when the connection had caught up with all of its topics
	left   stamp     // when the connection left its topics, while it is in sh.departed
	stale  int       // subscriptions that are
	work   *workload // what is to be done for the connection; nil for nothing

	principal *principal       // guarded by sh.mu: only the loop writes
	session   *session         // guarded by sh.mu: only the loop writes
	pending   *pendingDecision // owned by the loop, during the handshake only
}

// subscription is a connection's place in a topic's audience.
type subscription struct {
	audience *audience
	slot     int32 // in the audience
	stale    bool  // the newest message of the topic waits until the socket takes bytes again
	asked    bool  // by the client, so that its rights have to cover it
}

func (s *subscription) name() string { return s.audience.local.src.name }

// extend returns c.ext, which is made if need be. The caller holds sh.mu.
func (c *Conn) extend() *extension {
	if c.ext == nil {
		c.ext = &extension{}
	}
	return c.ext
}

// SubscribeOptions say how a subscription begins.
type SubscribeOptions struct {
	// Start is where to begin. Its zero value begins with the next message, or, for a topic with
	// [TopicRule.Latest], with the newest one.
	topic.Start

	// Envelope delivers each message as the JSON object of docs/protocol.md, with topic, offset and time,
	// instead of the bare payload. The first is the object "subscribed", which says where the
	// subscription began.
	Envelope bool

	// Done, which may be nil, learns what became of the subscription. It is called once, on the
	// connection's loop, before the first message arrives, and must not block. The error is [ErrClosed],
	// [ErrSubscribed], [ErrOverlap], [ErrTooManySubscriptions], [ErrTooManyTopics], [ErrOverloaded]
	// if too much history waits for the connection already, or, with [Options.Broker], [ErrNoCluster].
	Done func(Subscribed, error)
}

// Subscribed says where a subscription began.
type Subscribed struct {
	Topic          string
	topic.Position // of the topic at that moment; zero for a pattern

	// After is the offset before the first message that follows: Offset, unless messages of the history come
	// first. With Epoch it is the position of a client that is gone before it has had a message.
	After     uint64
	Recovered bool // nothing is missing after Start.Since
}

// next returns the offset before what a subscriber gets next: messages of the history, or else what is published after
// offset.
func next(missed []*message, offset uint64) uint64 {
	if len(missed) > 0 {
		return missed[0].offset - 1
	}
	return offset
}

// Subscribe lets a connection get the messages of a topic, or of all topics that match a pattern. It takes
// its turn behind what was sent before, so it does not fail because of the connection's state: see
// [SubscribeOptions.Done]. It fails with a *[TopicError] or [ErrNoPosition].
//
// The connection stays subscribed until it unsubscribes or is closed. Which topics a client may have is
// the application's decision; the endpoint's [TopicAccess] rules what clients ask for themselves.
func (c *Conn) Subscribe(name string, o SubscribeOptions) error {
	pattern, err := topic.Parse(name)
	if err != nil {
		return err
	}
	if pattern && (o.Since != nil || o.Last > 0) {
		return ErrNoPosition
	}
	kind := c.framing
	if o.Envelope && (kind == framingRaw || kind == framingEvent) {
		kind++ // the same with a JSON object
	}
	if o.Since != nil {
		since := *o.Since
		o.Since = &since // the caller may use it again
	}
	c.sh.postDo(c, 0, func() {
		c.queueSlot(&slot{do: func() { c.subscribeFor(name, kind, &o) }, cost: slotCost})
	})
	return nil
}

// subscribeFor subscribes for the application.
func (c *Conn) subscribeFor(topic string, kind framing, o *SubscribeOptions) {
	var reply func(Subscribed)
	if o.Envelope {
		reply = func(s Subscribed) { c.sendSubscribed(nil, s, o.Since != nil) }
	}
	c.subscribeReady(&wanted{name: topic, from: o.Start, kind: kind, reply: func(s Subscribed) {
		if reply != nil {
			reply(s)
		}
		if o.Done != nil {
			o.Done(s, nil)
		}
	}}, func(err error) {
		if o.Done != nil {
			o.Done(Subscribed{Topic: topic}, err)
		}
	})
}

// Unsubscribe ends a subscription; it must be the same name. Done, which may be nil, is called on the
// connection's loop with nil, [ErrNotSubscribed] or [ErrClosed]; after that no message of it is sent.
func (c *Conn) Unsubscribe(topic string, done func(error)) {
	c.sh.postDo(c, 0, func() {
		c.queueSlot(&slot{cost: slotCost, do: func() {
			err := c.unsubscribe(topic)
			if done != nil {
				done(err)
			}
		}})
	})
}

// Subscriptions lists the topics and patterns of the connection.
func (c *Conn) Subscriptions() []string {
	c.sh.mu.Lock()
	defer c.sh.mu.Unlock()
	subs := c.openSubscriptions()
	if len(subs) == 0 {
		return nil
	}
	names := make([]string, len(subs))
	for i := range subs {
		names[i] = subs[i].name()
	}
	return names
}

// openSubscriptions are those of an open connection. One that has closed may still have its places in the audiences:
// see leaveTopics. The caller holds sh.mu.
func (c *Conn) openSubscriptions() []subscription {
	if c.ext == nil || c.state.Load() != stateOpen {
		return nil
	}
	return c.ext.subs
}

// call runs what the mailbox held for a connection. The application may have a part in it.
func (c *Conn) call(do func()) { c.callFunc(hookDone, do) }

// publish hands a message to the subscribers of this shard, as [audience.publish] does.
func (l *local) publish(p *command) (bytes int) {
	for kind, a := range l.audiences {
		if a == nil || !a.isTable() && int32(p.seq-a.end()) < 0 { // it was there before the audience
			continue
		}
		if len(a.members) == 0 && len(a.stream) == 0 {
			a.base++ // it has no receivers
			continue
		}
		if p.kind == commandGap && framing(kind) == framingRaw {
			a.closeForGap(p.seq)
		}
		a.latest = p.latest
		bytes += a.publish(p.payload.frame(framing(kind)), p.at)
	}
	return bytes
}

// closeForGap tells members who have no other way to learn it that messages are missing, but not those who have joined
// behind the gap.
func (a *audience) closeForGap(seq uint32) {
	var conns []*Conn
	for i := range a.members {
		if int32(a.members[i].seq-seq) <= 0 {
			conns = append(conns, a.members[i].conn)
		}
	}
	for _, c := range conns {
		c.startClose(closeOwn, closeGap, "gap")
	}
}

// wanted is a subscription that is to be made.
type wanted struct {
	name  string
	from  topic.Start
	kind  framing
	asked bool             // by the client
	reply func(Subscribed) // called before the first message is sent
}

// subscribeReady subscribes once the topic or pattern can be subscribed to, or calls failed.
func (c *Conn) subscribeReady(w *wanted, failed func(error)) {
	if err := c.maySubscribe(w.name, topic.IsPattern(w.name)); err != nil { // before the cluster follows it
		failed(err)
		return
	}
	c.topicReady(w.name, w.from, false, func(err error) {
		if err == nil {
			_, err = c.subscribe(w)
		}
		if err != nil {
			failed(err)
		}
	})
}

// subscribe makes a subscription, or, where the history is long, begins with that.
func (c *Conn) subscribe(w *wanted) (Subscribed, error) {
	name := w.name
	c.sh.check()
	s := Subscribed{Topic: name}
	if !c.isOpen() || !c.ready() {
		return s, ErrClosed
	}
	pattern := topic.IsPattern(name)
	if c.hoards() {
		return s, fmt.Errorf("%w: read the messages of the previous subscriptions first", topic.ErrOverloaded)
	}
	if err := c.maySubscribe(name, pattern); err != nil {
		return s, err
	}
	var missed []*message
	var src *source
	if pattern {
		src = c.Server().hub.openPattern(name)
		s.Recovered = true
	} else {
		t, err := c.Server().hub.open(name)
		if err != nil {
			return s, err
		}
		src = &t.source
		s.Position = t.position()
		missed, s.Recovered = t.since(w.from, c.sh.engine.ageMillis(), maxReplay)
		s.After = next(missed, s.Offset)
	}
	if !src.link.serves() {
		src.mu.Unlock()
		return s, errNotLoaded
	}
	src.subscribers++
	if pieceOf(missed) < len(missed) {
		src.mu.Unlock()
		w.reply(s)
		(&replay{conn: c, topic: src.topic, kind: w.kind, asked: w.asked, epoch: s.Epoch, rest: missed}).step()
		return s, nil
	}
	a := src.audience(c.sh, w.kind)
	next := src.seq + 1
	src.mu.Unlock()

	c.join(a, next, w.asked)
	w.reply(s)
	c.sendHistory(missed, w.kind)
	return s, nil
}

// hoards reports whether a connection that does not read has had more histories queued than it has
// subscriptions: without this, one that subscribes and unsubscribes in turn could queue any amount, since
// history does not count for SlowConsumer.MaxQueue.
func (c *Conn) hoards() bool {
	limit := c.ep.now().SlowConsumer.MaxQueue
	return c.out != nil && limit >= 0 && c.out.history > int(limit) && c.out.batches > len(c.ext.subs)
}

// maySubscribe checks what is the same for everybody who asks.
func (c *Conn) maySubscribe(name string, pattern bool) error {
	if c.ext == nil {
		return nil
	}
	if limit := c.ep.now().Topics.MaxSubscriptions; limit >= 0 && len(c.ext.subs) >= limit {
		return fmt.Errorf("%w: topics.max_subscriptions of the endpoint is %d", ErrTooManySubscriptions, limit)
	}
	patterns := 0
	for i := range c.ext.subs {
		if c.ext.subs[i].isPattern() {
			patterns++
		}
		switch other := c.ext.subs[i].name(); {
		case other == name:
			return ErrSubscribed
		case (pattern || c.ext.subs[i].isPattern()) && topic.Overlaps(other, name):
			return fmt.Errorf("%w: %s", ErrOverlap, other)
		}
	}
	if limit := c.ep.now().Topics.MaxPatterns; pattern && limit >= 0 && patterns >= limit {
		return fmt.Errorf("%w: topics.max_patterns of the endpoint is %d", ErrTooManySubscriptions, limit)
	}
	return nil
}

func (s *subscription) isPattern() bool { return s.audience.local.src.topic == nil }

// audience returns the part of a shard's audience that has a framing, which is made if need be. The caller
// holds mu.
func (src *source) audience(sh *shard, kind framing) *audience {
	i := slices.IndexFunc(src.locals, func(l *local) bool { return l.sh == sh })
	if i < 0 {
		i = len(src.locals)
		src.locals = append(src.locals, &local{sh: sh, src: src})
	}
	l := src.locals[i]
	if l.audiences[kind] == nil {
		// It begins behind this offset: what is on its way to the shard with one up to it is old.
		l.audiences[kind] = &audience{sh: sh, local: l, base: src.seq + 1, latest: src.latest()}
	}
	return l.audiences[kind]
}

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

func (c *Conn) unsubscribe(name string) error {
	c.sh.check()
	if !c.isOpen() {
		return ErrClosed
	}
	if c.ext == nil {
		return ErrNotSubscribed
	}
	i := slices.IndexFunc(c.ext.subs, func(s subscription) bool { return s.name() == name })
	if i < 0 {
		return ErrNotSubscribed
	}
	if c.ready() { // what was published before is still delivered
		c.dropSubscription(i)
	}
	return nil
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
	s.audience.local.left(s.audience)
}

// left notes that one subscriber has gone.
func (l *local) left(a *audience) {
	src := l.src
	src.mu.Lock()
	if i := slices.Index(l.audiences[:], a); i >= 0 && len(a.members) == 0 {
		l.audiences[i] = nil
		if l.audiences == [numFramings]*audience{} {
			src.remove(l)
		}
	}
	src.unsubscribe(l.sh.engine.owner.hub)
}

// unsubscribe counts one subscriber less. The caller holds mu, which is not held any more when it returns.
func (src *source) unsubscribe(h *hub) {
	src.subscribers--
	last, now := src.subscribers == 0, h.srv.engine.uptime()
	if last {
		h.remote.left(src)
	}
	if t := src.topic; t != nil {
		if last {
			t.used = now
			t.heard = t.heard || t.offset > 0 && t.link.replica == nil // the broker has kept ones' offsets
		}
		h.unlock(t)
		return
	}
	src.mu.Unlock()
	if last {
		h.forgetPattern(src)
	}
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
			a.local.left(a)
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
