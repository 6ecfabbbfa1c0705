package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/internal/envelope"
	"carillon/server/internal/hub"
	"carillon/server/internal/outbox"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// TellGap tells a subscriber that messages are missing.
func (c *Client) TellGap(s topic.Subscribed) { c.TellSubscribed(nil, s, true) }

// TellSubscribed sends the reply to a subscription at once: the messages follow. A subscription of the
// request line or of the application has no id.
func (c *Client) TellSubscribed(id json.RawMessage, s topic.Subscribed, since bool) {
	r := envelope.Subscribed{Topic: s.Topic, Epoch: s.Epoch}
	if s.Epoch != "" {
		r.Offset, r.After = &s.Offset, &s.After
	}
	if since {
		r.Recovered = &s.Recovered
	}
	if c.core().IsEvents() {
		c.core().SendEncoded(r.AppendEvent(nil), outbox.Reply)
		return
	}
	c.sendReply(id, "subscribed", r)
}

// reply leaves a reply in the mailbox.
func (c *Client) reply(id json.RawMessage, what string, value any) {
	if c.core().IsOpen() {
		c.shard().PostBytes(reactor.CommandReply, c.core(), codec.OpText, envelope.AppendReply(nil, id, what, value))
	}
}

// sendReply sends a reply at once.
func (c *Client) sendReply(id json.RawMessage, what string, value any) {
	sh := c.shard()
	sh.Text = envelope.AppendReply(sh.Text[:0], id, what, value)
	if c.core().Deflates() && len(sh.Text) > largeReply {
		c.compressElsewhere(bytes.Clone(sh.Text))
		return
	}
	if c.core().Deflates() {
		sh.Reply = c.core().Settings().Deflater.AppendFrameWithin(sh.Reply[:0], codec.OpText, sh.Text, c.core().Window())
	} else {
		sh.Reply = codec.AppendFrame(sh.Reply[:0], codec.OpText, sh.Text)
	}
	kind := outbox.Reply
	if len(sh.Reply) >= envelope.LargeText {
		kind = outbox.Answer
	}
	c.core().SendBytes(sh.Reply, kind)
}

// largeReply is the size in bytes of a reply from which on it takes too much of a loop's time to compress it.
const largeReply = 32 << 10

// compressElsewhere has a reply compressed on another goroutine, and sends it in the place of what is done now. What
// the client asks for behind it waits.
func (c *Client) compressElsewhere(text []byte) {
	q, takes := &c.shard().Engine.Offload, time.Duration(len(text))*reactor.CompressByte
	deflater := c.core().Settings().Deflater
	plain := func() { c.core().SendBytes(codec.AppendFrame(nil, codec.OpText, text), outbox.Answer) }
	c.core().Offload(q, takes, len(text), func() func() {
		if c.core().State().Load() != reactor.StateOpen {
			return plain // to no connection, which counts
		}
		frame := deflater.AppendFrameWithin(nil, codec.OpText, text, c.core().Window())
		return func() { c.core().SendBytes(frame, outbox.Answer) }
	}, plain)
}

// errorReply is what a client is told about a failure.
type errorReply struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func errorReplyOf(err error) errorReply {
	return errorReply{Code: errorCode(err), Message: err.Error()}
}

// errorCode is the name of a failure in the JSON protocol.
func errorCode(err error) string {
	var name *topic.NameError
	var request *envelope.RequestError
	var token *auth.Refusal
	var denied notAllowed
	switch {
	case errors.As(err, &name):
		return "invalid_topic"
	case errors.As(err, &request), errors.Is(err, topic.ErrNotJSON), errors.Is(err, topic.ErrNotText), errors.Is(err, topic.ErrKey):
		return "bad_request"
	case errors.As(err, &denied), errors.Is(err, errRenewal):
		return "not_allowed"
	case errors.As(err, &token) && token.Status == 401:
		return "invalid_token"
	case errors.Is(err, hub.ErrSubscribed):
		return "already_subscribed"
	case errors.Is(err, hub.ErrOverlap):
		return "overlap"
	case errors.Is(err, hub.ErrNotSubscribed):
		return "not_subscribed"
	case errors.Is(err, hub.ErrTooManySubscriptions):
		return "too_many_subscriptions"
	case errors.Is(err, topic.ErrTooMany):
		return "too_many_topics"
	case errors.Is(err, topic.ErrTooLarge):
		return "too_large"
	case err == errPublishRate, err == errRequestRate:
		return "rate_limited"
	case errors.Is(err, topic.ErrOverloaded), errors.Is(err, errTooOften), token != nil:
		return "overloaded"
	case errors.Is(err, topic.ErrNoCluster):
		return "unavailable"
	case errors.Is(err, topic.ErrUncertain):
		return "uncertain"
	}
	panic("server: an error without a code: " + err.Error())
}

// fail tells a client that its request failed. If that is because the connection is closed, it knows.
func (c *Client) fail(id json.RawMessage, err error, reply replier) {
	if errors.Is(err, reactor.ErrClosed) {
		return
	}
	if r := errorReplyOf(err); c.core().MayErr(r.Code) {
		reply(id, "error", r)
	}
}

// failed tells a client that what its request line asked for failed.
func (c *Client) failed(err error) {
	if c.core().Framing() == reactor.FramingEnvelope {
		c.fail(nil, err, c.sendReply)
		return
	}
	code := codec.ClosePolicyViolation
	if errors.Is(err, topic.ErrTooMany) || errors.Is(err, topic.ErrOverloaded) || errors.Is(err, topic.ErrNoCluster) {
		code = codec.CloseTryAgainLater
	}
	_ = c.core().Close(code, err.Error())
}
