package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"carillon/server/internal/reactor"
)

// request does what a client asks for, one request after the other. What looks at subscriptions, or may
// have a large answer, waits until what was sent before it is out, and so does everything that the client
// asks for behind it. All else is done at once, and its reply waits in the mailbox.
func (c *Client) request(payload []byte) {
	if len(payload) > largeRequest {
		c.parseElsewhere(bytes.Clone(payload))
		return
	}
	r, err := parseRequest(payload)
	c.handle(r, err, len(payload))
}

// largeRequest is the size in bytes of a request from which on it takes too much of a loop's time to look at it.
const largeRequest = 32 << 10

// parseElsewhere has a request parsed on another goroutine. What the client asks for behind it waits.
func (c *Client) parseElsewhere(payload []byte) {
	q, takes := &c.shard().Engine.Offload, time.Duration(len(payload))*reactor.ParseByte
	s := c.core().Offload(q, takes, len(payload), func() func() {
		if c.core().State().Load() != reactor.StateOpen {
			return reactor.DoNothing
		}
		r, err := parseRequest(payload)
		return func() { c.answerParsed(r, err) }
	}, func() {
		c.fail(nil, fmt.Errorf("%w: too many large requests wait", c.shard().Refuse()), c.sendReply)
	})
	s.Cost += len(payload)
	c.core().Workload().Requests.Bytes += len(payload)
}

// answerParsed answers a request in its turn.
func (c *Client) answerParsed(r *request, err error) {
	if err == nil {
		err = c.paysRequest(r)
	}
	if err != nil {
		c.fail(r.ID, err, c.sendReply)
		return
	}
	c.answerRequest(r, c.sendReply)
}

// handle does what a client asks for in a request of n bytes, or tells it what is wrong with that.
func (c *Client) handle(r *request, err error, n int) {
	if err == nil {
		err = c.paysRequest(r)
	}
	if err == nil && r.Publish != nil && !c.core().WaitsForMore() {
		c.doPublish(r.ID, r.Publish, c.reply)
		return
	}
	if err == nil && r.isUnanswered() {
		if err = c.checkQuery(r); err == nil {
			return
		}
	}
	if err == nil && r.Ping != nil && c.core().Waiting() {
		if err = c.core().ReplyInOrder(n, func() { c.answerRequest(r, c.sendReply) }); err == nil {
			return
		}
	}
	if err == nil && r.Ping == nil {
		if err = c.core().AfterPending(n, r.isQuick(), func() { c.answerRequest(r, c.sendReply) }); err == nil {
			return
		}
	}
	if err != nil {
		if !c.core().Waiting() || c.core().ReplyInOrder(n, func() { c.fail(r.ID, err, c.sendReply) }) != nil {
			c.fail(r.ID, err, c.reply) // also when too much waits: at once, whatever it overtakes
		}
		return
	}
	c.answerRequest(r, c.reply)
}

// replier sends a reply, at once or through the mailbox.
type replier func(id json.RawMessage, what string, value any)

func (c *Client) answerRequest(r *request, reply replier) {
	what, value, err := c.do(r)
	c.answerWith(r.ID, what, value, err, reply)
}

// answerWith replies with an error, or with a value unless what is empty.
func (c *Client) answerWith(id json.RawMessage, what string, value any, err error, reply replier) {
	switch {
	case err != nil:
		c.fail(id, err, reply)
	case what != "" && len(id) > 0:
		reply(id, what, value)
	}
}

var (
	errPublishRate = errors.New("limits.publishes_per_second exceeded")
	errRequestRate = errors.New("limits.requests_per_second exceeded")
)

// paysRequest charges for a request of the JSON protocol, which is refused when it fails.
func (c *Client) paysRequest(r *request) error {
	switch {
	case r.Ping != nil:
		return nil
	case r.Publish != nil && !c.core().MayPublishNow():
		c.shard().Stats.Limited.Add(1)
		return errPublishRate
	case r.Publish == nil && !c.core().MayRequestNow():
		c.shard().Stats.Limited.Add(1)
		return errRequestRate
	}
	return nil
}
