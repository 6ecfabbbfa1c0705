package server

import (
	"errors"
	"fmt"
	"slices"

	"carillon/server/internal/reactor"
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

// next returns the offset before what a subscriber gets next: messages of the history, or else what is published after
// offset.
func next(missed []*message, offset uint64) uint64 {
	if len(missed) > 0 {
		return missed[0].offset - 1
	}
	return offset
}

// wanted is a subscription that is to be made.
type wanted struct {
	name  string
	from  topic.Start
	kind  reactor.Framing
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
	c.shard().Check()
	s := Subscribed{Topic: name}
	if !c.core().IsOpen() || !c.core().Ready() {
		return s, ErrClosed
	}
	pattern := topic.IsPattern(name)
	if c.core().Hoards() {
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
		missed, s.Recovered = t.since(w.from, c.shard().Engine.AgeMillis(), maxReplay)
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
	a := src.audience(c.shard(), w.kind)
	next := src.seq + 1
	src.mu.Unlock()

	c.core().Join(a, next, w.asked)
	w.reply(s)
	c.sendHistory(missed, w.kind)
	return s, nil
}

// maySubscribe checks what is the same for everybody who asks.
func (c *Conn) maySubscribe(name string, pattern bool) error {
	if c.core().Extension() == nil {
		return nil
	}
	if limit := c.endpoint().now().Topics.MaxSubscriptions; limit >= 0 && len(c.core().Extension().Subs) >= limit {
		return fmt.Errorf("%w: topics.max_subscriptions of the endpoint is %d", ErrTooManySubscriptions, limit)
	}
	patterns := 0
	for i := range c.core().Extension().Subs {
		if isPattern(&c.core().Extension().Subs[i]) {
			patterns++
		}
		switch other := nameOf(&c.core().Extension().Subs[i]); {
		case other == name:
			return ErrSubscribed
		case (pattern || isPattern(&c.core().Extension().Subs[i])) && topic.Overlaps(other, name):
			return fmt.Errorf("%w: %s", ErrOverlap, other)
		}
	}
	if limit := c.endpoint().now().Topics.MaxPatterns; pattern && limit >= 0 && patterns >= limit {
		return fmt.Errorf("%w: topics.max_patterns of the endpoint is %d", ErrTooManySubscriptions, limit)
	}
	return nil
}

func (c *Conn) unsubscribe(name string) error {
	c.shard().Check()
	if !c.core().IsOpen() {
		return ErrClosed
	}
	if c.core().Extension() == nil {
		return ErrNotSubscribed
	}
	i := slices.IndexFunc(c.core().Extension().Subs, func(s reactor.Subscription) bool { return nameOf(&s) == name })
	if i < 0 {
		return ErrNotSubscribed
	}
	if c.core().Ready() { // what was published before is still delivered
		c.core().DropSubscription(i)
	}
	return nil
}

// unsubscribe counts one subscriber less. The caller holds mu, which is not held any more when it returns.
func (src *source) unsubscribe(h *hub) {
	src.subscribers--
	last, now := src.subscribers == 0, h.engine.Uptime()
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

// topicReady calls then when a topic or a pattern can be subscribed to, or read, which may be at once, as it always is
// without a broker. The error is of the kind of [ErrNoCluster] or [ErrTooManyTopics]. Nothing that is asked for
// meanwhile overtakes it. On a connection that closes meanwhile it is called, too.
func (c *Conn) topicReady(name string, from topic.Start, reads bool, then func(error)) {
	var s *reactor.Slot
	ready, err := c.Server().hub.remote.ready(name, from, reads, func() { s = c.core().Reserve() }, func(err error) {
		c.core().Resolve(s, false, func() { then(err) })
	})
	if ready || err != nil {
		then(err)
	}
}

// errNotLoaded is told to a subscriber whose topic was unloaded again before its turn came.
var errNotLoaded = fmt.Errorf("%w: the topic was unloaded", topic.ErrNoCluster)
