package protocol

import (
	"encoding/json"

	"carillon/server/internal/envelope"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// do returns what the reply says, or nothing if it has been sent.
func (c *Client) do(r *request) (what string, value any, err error) {
	switch {
	case r.Subscribe != nil:
		return "", nil, c.doSubscribe(r.ID, r.Subscribe)
	case r.Unsubscribe != nil:
		return "unsubscribed", r.Unsubscribe, hub.Unsubscribe(c.core(), r.Unsubscribe.Topic)
	case r.Publish != nil:
		c.doPublish(r.ID, r.Publish, c.sendReply)
		return "", nil, nil
	case r.History != nil:
		return "", nil, c.doHistory(r.ID, r.History)
	case r.Refresh != nil:
		return c.doRefresh(r.ID, r.Refresh.Token)
	case r.Presence != nil:
		return c.doPresence(r.ID, r.Presence.Topic)
	}
	return "pong", struct{}{}, nil
}

func (c *Client) doSubscribe(id json.RawMessage, r *subscribeRequest) error {
	if err := c.checkRead(r.Topic); err != nil {
		return err
	}
	from := topic.Start{Since: r.Since, Last: r.Last}
	switch {
	case topic.IsPattern(r.Topic) && from != topic.Start{}:
		return envelope.BadRequest("%v", hub.ErrNoPosition)
	case r.Since != nil && r.Last != 0:
		return envelope.BadRequest("since and last are mutually exclusive")
	case r.Last < 0 || r.Last > envelope.MaxLast:
		return envelope.BadRequest("last is %d: expected 0 to %d", r.Last, envelope.MaxLast)
	}
	c.hub().SubscribeReady(c.core(), &hub.Wanted{Name: r.Topic, From: from, Kind: reactor.FramingEnvelope, Asked: true, Told: c.TellGap, Reply: func(s topic.Subscribed) {
		if len(id) > 0 {
			c.TellSubscribed(id, s, from.Since != nil)
		}
	}}, func(err error) { c.fail(id, err, c.sendReply) })
	return nil
}

type publishReply struct {
	Topic string `json:"topic"`
	topic.Receipt
}

// publication is what a client wants to publish, as far as it may.
func (c *Client) publication(r *envelope.Publish) (p hub.Publication, err error) {
	if err := topic.Check(r.Topic); err != nil {
		return p, err
	}
	if err := c.checkPublish(r.Topic); err != nil {
		return p, err
	}
	p.Topic, p.Key, p.By = r.Topic, r.Key, c.core()
	if p.Key != "" {
		if err := r.CheckKey(); err != nil {
			return p, err
		}
		p.Publisher, p.Address = c.publisher()
	}
	p.Format, p.Payload, err = r.Message()
	p.Valid = p.Format == topic.FormatJSON // or the request had not been JSON
	return p, err
}

// doPublish publishes a message of a client, and replies when the broker has it, in the order of the requests.
func (c *Client) doPublish(id json.RawMessage, r *envelope.Publish, reply replier) {
	p, err := c.publication(r)
	var s *reactor.Slot
	wait := func() { s = c.core().ReserveReply(c.hub().FlightOf(&p)) }
	done := func(receipt topic.Receipt, err error) {
		c.core().Resolve(s, true, func() {
			c.answerWith(id, "published", publishReply{p.Topic, receipt}, err, c.sendReply)
		})
	}
	receipt, ready := topic.Receipt{}, true
	if err == nil {
		receipt, ready, err = c.hub().Remote.Publish(p, wait, done)
	}
	switch {
	case !ready:
	case c.core().Waiting() && !c.core().Workload().Requests.Flushing: // behind messages that are on their way to the broker
		wait()
		done(receipt, err)
	default:
		c.answerWith(id, "published", publishReply{p.Topic, receipt}, err, reply)
	}
}

// checkQuery reports what is wrong with a request that asks only for an answer.
func (c *Client) checkQuery(r *request) error {
	switch {
	case r.History != nil:
		return c.checkHistory(r.History)
	case r.Presence != nil:
		return c.checkPresence(r.Presence.Topic)
	}
	return nil
}

func (c *Client) checkPresence(name string) error {
	if err := topic.Check(name); err != nil {
		return err
	}
	if !c.settings().Access.Presence {
		return errNoPresence
	}
	return c.checkRead(name)
}

func (c *Client) doPresence(id json.RawMessage, topic string) (what string, value any, err error) {
	if err := c.checkPresence(topic); err != nil {
		return "", nil, err
	}
	var s *reactor.Slot
	p, ready := c.hub().Remote.Present(topic, func() { s = c.core().Reserve() }, func(p *hub.Presence) {
		c.core().Resolve(s, true, func() { c.answerWith(id, "present", p, nil, c.sendReply) })
	})
	if !ready {
		return "", nil, nil
	}
	return "present", p, nil
}
