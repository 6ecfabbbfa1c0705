package server

import (
	"carillon/server/internal/hub"
	"carillon/server/internal/protocol"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// SubscribeOptions say how a subscription begins.
type SubscribeOptions struct {
	// Start is where to begin. Its zero value begins with the next message, or, for a topic with
	// [TopicRule.Latest], with the newest one.
	Start

	// Envelope delivers each message as the JSON object of docs/protocol.md, with topic, offset and time,
	// instead of the bare payload. The first is the object "subscribed", which says where the
	// subscription began.
	Envelope bool

	// Done, which may be nil, gets the outcome of the subscription. It is called once, on the connection's loop, before
	// the first message arrives, and must not block. The error is [ErrClosed], [ErrSubscribed], [ErrOverlap],
	// [ErrTooManySubscriptions], [ErrTooManyTopics], [ErrOverloaded] if too much history waits for the connection
	// already, or, with [Options.Broker], [ErrNoCluster].
	Done func(Subscribed, error)
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
	kind := c.core().Framing()
	if o.Envelope && (kind == reactor.FramingRaw || kind == reactor.FramingEvent) {
		kind++ // the same with a JSON object
	}
	if o.Since != nil {
		since := *o.Since
		o.Since = &since // the caller may use it again
	}
	c.shard().PostDo(c.core(), 0, func() {
		c.core().QueueSlot(&reactor.Slot{Do: func() { c.subscribeFor(name, kind, &o) }, Cost: reactor.SlotCost})
	})
	return nil
}

// subscribeFor subscribes for the application.
func (c *Conn) subscribeFor(topic string, kind reactor.Framing, o *SubscribeOptions) {
	var reply func(Subscribed)
	if o.Envelope {
		reply = func(s Subscribed) { protocol.Of(c.core()).TellSubscribed(nil, s, o.Since != nil) }
	}
	c.hub().SubscribeReady(c.core(), &hub.Wanted{Name: topic, From: o.Start, Kind: kind, Told: protocol.Of(c.core()).TellGap, Reply: func(s Subscribed) {
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
	c.shard().PostDo(c.core(), 0, func() {
		c.core().QueueSlot(&reactor.Slot{Cost: reactor.SlotCost, Do: func() {
			err := hub.Unsubscribe(c.core(), topic)
			if done != nil {
				done(err)
			}
		}})
	})
}

// Subscriptions lists the topics and patterns of the connection.
func (c *Conn) Subscriptions() []string {
	c.shard().Mu.Lock()
	defer c.shard().Mu.Unlock()
	subs := c.core().OpenSubscriptions()
	if len(subs) == 0 {
		return nil
	}
	names := make([]string, len(subs))
	for i := range subs {
		names[i] = hub.NameOf(&subs[i])
	}
	return names
}
