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
	asked bool                   // by the client
	reply func(topic.Subscribed) // called before the first message is sent
	told  func(topic.Subscribed) // called where a long history has lost messages before they could be sent
}

// subscribeReady subscribes once the topic or pattern can be subscribed to, or calls failed.
func (h *hub) subscribeReady(c *reactor.Conn, w *wanted, failed func(error)) {
	if err := h.maySubscribe(c, w.name, topic.IsPattern(w.name)); err != nil { // before the cluster follows it
		failed(err)
		return
	}
	h.topicReady(c, w.name, w.from, false, func(err error) {
		if err == nil {
			_, err = h.subscribe(c, w)
		}
		if err != nil {
			failed(err)
		}
	})
}

// subscribe makes a subscription, or, where the history is long, begins with that.
func (h *hub) subscribe(c *reactor.Conn, w *wanted) (topic.Subscribed, error) {
	name := w.name
	c.Shard().Check()
	s := topic.Subscribed{Topic: name}
	if !c.IsOpen() || !c.Ready() {
		return s, reactor.ErrClosed
	}
	pattern := topic.IsPattern(name)
	if c.Hoards() {
		return s, fmt.Errorf("%w: read the messages of the previous subscriptions first", topic.ErrOverloaded)
	}
	if err := h.maySubscribe(c, name, pattern); err != nil {
		return s, err
	}
	var missed []*message
	var src *source
	if pattern {
		src = h.openPattern(name)
		s.Recovered = true
	} else {
		t, err := h.open(name)
		if err != nil {
			return s, err
		}
		src = &t.source
		s.Position = t.position()
		missed, s.Recovered = t.since(w.from, c.Shard().Engine.AgeMillis(), maxReplay)
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
		(&replay{hub: h, conn: c, told: w.told, topic: src.topic, kind: w.kind, asked: w.asked, epoch: s.Epoch, rest: missed}).step()
		return s, nil
	}
	a := src.audience(c.Shard(), w.kind)
	next := src.seq + 1
	src.mu.Unlock()

	c.Join(a, next, w.asked)
	w.reply(s)
	sendHistory(c, missed, w.kind)
	return s, nil
}

// maySubscribe checks what is the same for everybody who asks.
func (h *hub) maySubscribe(c *reactor.Conn, name string, pattern bool) error {
	if c.Extension() == nil {
		return nil
	}
	limits := &h.settings().endpoints[c.Endpoint().Index]
	if limit := limits.maxSubscriptions; limit >= 0 && len(c.Extension().Subs) >= limit {
		return fmt.Errorf("%w: topics.max_subscriptions of the endpoint is %d", ErrTooManySubscriptions, limit)
	}
	patterns := 0
	for i := range c.Extension().Subs {
		if isPattern(&c.Extension().Subs[i]) {
			patterns++
		}
		switch other := nameOf(&c.Extension().Subs[i]); {
		case other == name:
			return ErrSubscribed
		case (pattern || isPattern(&c.Extension().Subs[i])) && topic.Overlaps(other, name):
			return fmt.Errorf("%w: %s", ErrOverlap, other)
		}
	}
	if limit := limits.maxPatterns; pattern && limit >= 0 && patterns >= limit {
		return fmt.Errorf("%w: topics.max_patterns of the endpoint is %d", ErrTooManySubscriptions, limit)
	}
	return nil
}

// unsubscribe ends a subscription of a connection, on its loop.
func unsubscribe(c *reactor.Conn, name string) error {
	c.Shard().Check()
	if !c.IsOpen() {
		return reactor.ErrClosed
	}
	if c.Extension() == nil {
		return ErrNotSubscribed
	}
	i := slices.IndexFunc(c.Extension().Subs, func(s reactor.Subscription) bool { return nameOf(&s) == name })
	if i < 0 {
		return ErrNotSubscribed
	}
	if c.Ready() { // what was published before is still delivered
		c.DropSubscription(i)
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
func (h *hub) topicReady(c *reactor.Conn, name string, from topic.Start, reads bool, then func(error)) {
	var s *reactor.Slot
	ready, err := h.remote.ready(name, from, reads, func() { s = c.Reserve() }, func(err error) {
		c.Resolve(s, false, func() { then(err) })
	})
	if ready || err != nil {
		then(err)
	}
}

// errNotLoaded is told to a subscriber whose topic was unloaded again before its turn came.
var errNotLoaded = fmt.Errorf("%w: the topic was unloaded", topic.ErrNoCluster)
