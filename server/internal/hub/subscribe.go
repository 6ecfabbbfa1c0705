package hub

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
func next(missed []*Message, offset uint64) uint64 {
	if len(missed) > 0 {
		return missed[0].Offset - 1
	}
	return offset
}

// Wanted is a subscription that is to be made.
type Wanted struct {
	Name  string
	From  topic.Start
	Kind  reactor.Framing
	Asked bool                   // by the client
	Reply func(topic.Subscribed) // called before the first message is sent
	Told  func(topic.Subscribed) // called where a long history has lost messages before they could be sent
}

// SubscribeReady subscribes once the topic or pattern can be subscribed to, or calls failed.
func (h *Hub) SubscribeReady(c *reactor.Conn, w *Wanted, failed func(error)) {
	if err := h.maySubscribe(c, w.Name, topic.IsPattern(w.Name)); err != nil { // before the cluster follows it
		failed(err)
		return
	}
	h.TopicReady(c, w.Name, w.From, false, func(err error) {
		if err == nil {
			_, err = h.Subscribe(c, w)
		}
		if err != nil {
			failed(err)
		}
	})
}

// Subscribe makes a subscription, or, where the history is long, begins with that.
func (h *Hub) Subscribe(c *reactor.Conn, w *Wanted) (topic.Subscribed, error) {
	name := w.Name
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
	var missed []*Message
	var src *Source
	if pattern {
		src = h.OpenPattern(name)
		s.Recovered = true
	} else {
		t, err := h.open(name)
		if err != nil {
			return s, err
		}
		src = &t.Source
		s.Position = t.position()
		missed, s.Recovered = t.Since(w.From, c.Shard().Engine.AgeMillis(), MaxReplay)
		s.After = next(missed, s.Offset)
	}
	if !src.Link.serves() {
		src.Mu.Unlock()
		return s, errNotLoaded
	}
	src.Subscribers++
	if pieceOf(missed) < len(missed) {
		src.Mu.Unlock()
		w.Reply(s)
		(&replay{hub: h, conn: c, told: w.Told, topic: src.topic, kind: w.Kind, asked: w.Asked, epoch: s.Epoch, rest: missed}).step()
		return s, nil
	}
	a := src.audience(c.Shard(), w.Kind)
	next := src.Seq + 1
	src.Mu.Unlock()

	c.Join(a, next, w.Asked)
	w.Reply(s)
	sendHistory(c, missed, w.Kind)
	return s, nil
}

// maySubscribe checks what is the same for all callers.
func (h *Hub) maySubscribe(c *reactor.Conn, name string, pattern bool) error {
	if c.Extension() == nil {
		return nil
	}
	limits := &h.settings().Endpoints[c.Endpoint().Index]
	if limit := limits.MaxSubscriptions; limit >= 0 && len(c.Extension().Subs) >= limit {
		return fmt.Errorf("%w: topics.max_subscriptions of the endpoint is %d", ErrTooManySubscriptions, limit)
	}
	patterns := 0
	for i := range c.Extension().Subs {
		if IsPattern(&c.Extension().Subs[i]) {
			patterns++
		}
		switch other := NameOf(&c.Extension().Subs[i]); {
		case other == name:
			return ErrSubscribed
		case (pattern || IsPattern(&c.Extension().Subs[i])) && topic.Overlaps(other, name):
			return fmt.Errorf("%w: %s", ErrOverlap, other)
		}
	}
	if limit := limits.MaxPatterns; pattern && limit >= 0 && patterns >= limit {
		return fmt.Errorf("%w: topics.max_patterns of the endpoint is %d", ErrTooManySubscriptions, limit)
	}
	return nil
}

// Unsubscribe ends a subscription of a connection, on its loop.
func Unsubscribe(c *reactor.Conn, name string) error {
	c.Shard().Check()
	if !c.IsOpen() {
		return reactor.ErrClosed
	}
	if c.Extension() == nil {
		return ErrNotSubscribed
	}
	i := slices.IndexFunc(c.Extension().Subs, func(s reactor.Subscription) bool { return NameOf(&s) == name })
	if i < 0 {
		return ErrNotSubscribed
	}
	if c.Ready() { // what was published before is still delivered
		c.DropSubscription(i)
	}
	return nil
}

// unsubscribe counts one subscriber less. The caller holds mu, which is not held any more when it returns.
func (src *Source) unsubscribe(h *Hub) {
	src.Subscribers--
	last, now := src.Subscribers == 0, h.engine.Uptime()
	if last {
		h.Remote.left(src)
	}
	if t := src.topic; t != nil {
		if last {
			t.used = now
			t.heard = t.heard || t.offset > 0 && t.Link.replica == nil // the broker has kept ones' offsets
		}
		h.unlock(t)
		return
	}
	src.Mu.Unlock()
	if last {
		h.ForgetPattern(src)
	}
}

// TopicReady calls then when a topic or a pattern can be subscribed to, or read, which may be at once, as it always is
// without a broker. The error is of the kind of [ErrNoCluster] or [ErrTooManyTopics]. Nothing that is asked for
// meanwhile overtakes it. On a connection that closes meanwhile it is called, too.
func (h *Hub) TopicReady(c *reactor.Conn, name string, from topic.Start, reads bool, then func(error)) {
	var s *reactor.Slot
	ready, err := h.Remote.ready(name, from, reads, func() { s = c.Reserve() }, func(err error) {
		c.Resolve(s, false, func() { then(err) })
	})
	if ready || err != nil {
		then(err)
	}
}

// errNotLoaded is told to a subscriber whose topic was unloaded again before its turn came.
var errNotLoaded = fmt.Errorf("%w: the topic was unloaded", topic.ErrNoCluster)
