package protocol

import (
	"bytes"

	"carillon/codec"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// TakeMessage handles a message of a client. The payload is valid until it returns.
func (c *Client) TakeMessage(op codec.Opcode, payload []byte) {
	if c.core().Framing() == reactor.FramingEnvelope {
		if op != codec.OpText {
			if !c.core().CloseAsked().Swap(true) {
				c.core().CloseInOrder(reactor.CloseOwn, codec.CloseUnsupported, "expected JSON text messages")
			}
			return
		}
		c.request(payload)
		return
	}
	if !c.core().PaysPublish() {
		return
	}
	if !c.core().Waiting() {
		c.publish(op, payload)
		return
	}
	payload = bytes.Clone(payload) // its subscription has not been made
	CloseRefused(c.core(), c.core().AfterPending(len(payload), true, func() { c.publish(op, payload) }))
}

// publish publishes what came on a raw connection to its topic.
func (c *Client) publish(op codec.Opcode, payload []byte) {
	var topics []reactor.Subscription
	if c.core().Extension() != nil {
		topics = c.core().Extension().Subs
	}
	err := error(errNotOneTopic)
	if len(topics) == 1 && !hub.IsPattern(&topics[0]) {
		err = c.checkPublish(hub.NameOf(&topics[0]))
	}
	if err != nil {
		_ = c.core().Close(codec.ClosePolicyViolation, err.Error())
		return
	}
	format := topic.FormatText
	if op == codec.OpBinary {
		format = topic.FormatBinary
	}
	p := hub.Publication{Publication: topic.Publication{Topic: hub.NameOf(&topics[0]), Format: format, Payload: payload}, By: c.core()}
	m := c.hub().FlightOf(&p)
	_, ready, err := c.hub().Remote.Publish(p, func() { c.core().BeginPublishing(m) }, func(_ topic.Receipt, err error) {
		c.shard().PostDo(c.core(), 0, func() { c.core().EndPublishing(m) })
		CloseRefused(c.core(), err)
	})
	if ready {
		CloseRefused(c.core(), err)
	}
}
