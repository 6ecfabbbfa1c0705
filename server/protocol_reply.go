package server

import (
	"encoding/json"
	"errors"

	"carillon/codec"
)

// subscribedReply says where a subscription began.
type subscribedReply struct {
	Topic     string  `json:"topic"`
	Offset    *uint64 `json:"offset,omitempty"`
	Epoch     string  `json:"epoch,omitempty"`
	Recovered *bool   `json:"recovered,omitempty"`
}

// sendSubscribed sends the reply to a subscription at once: the messages follow. A subscription of the
// request line or of the application has no id.
func (c *Conn) sendSubscribed(id json.RawMessage, s Subscribed, since bool) {
	r := subscribedReply{Topic: s.Topic, Epoch: s.Epoch}
	if s.Epoch != "" {
		r.Offset = &s.Offset
	}
	if since {
		r.Recovered = &s.Recovered
	}
	if c.isEvents() {
		c.sendEncoded(appendEvent(nil, "subscribed", "", appendJSON(nil, r)), itemReply)
		return
	}
	c.sendReply(id, "subscribed", r)
}

// appendReply appends {"id":...,"what":value}.
func appendReply(b []byte, id json.RawMessage, what string, value any) []byte {
	b = append(b, '{')
	if len(id) > 0 {
		b = append(append(append(b, `"id":`...), id...), ',')
	}
	b = append(append(append(b, '"'), what...), `":`...)
	return append(appendJSON(b, value), '}')
}

// reply leaves a reply in the mailbox.
func (c *Conn) reply(id json.RawMessage, what string, value any) {
	if c.isOpen() {
		c.sh.postBytes(letterReply, c, codec.OpText, appendReply(nil, id, what, value))
	}
}

// sendReply sends a reply at once.
func (c *Conn) sendReply(id json.RawMessage, what string, value any) {
	b := appendReply(nil, id, what, value)
	if c.deflate {
		b = c.ep.now().deflater.AppendFrame(nil, codec.OpText, b)
	} else {
		b = codec.AppendFrame(nil, codec.OpText, b)
	}
	c.sendBytes(b, itemReply)
}

// errorReply is what a client learns of a failure.
type errorReply struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func errorReplyOf(err error) errorReply {
	return errorReply{Code: errorCode(err), Message: err.Error()}
}

// errorCode is the name of a failure in the JSON protocol.
func errorCode(err error) string {
	var topic *TopicError
	var request *badRequest
	var token *denial
	switch {
	case errors.As(err, &topic):
		return "invalid_topic"
	case errors.As(err, &request), errors.Is(err, ErrNotJSON), errors.Is(err, ErrNotText), errors.Is(err, ErrKey):
		return "bad_request"
	case errors.Is(err, errNotAllowed), errors.Is(err, errNotYours), errors.Is(err, errNoPatterns), errors.Is(err, errRenewal):
		return "not_allowed"
	case errors.As(err, &token) && token.Status == 401:
		return "invalid_token"
	case errors.Is(err, ErrSubscribed):
		return "already_subscribed"
	case errors.Is(err, ErrOverlap):
		return "overlap"
	case errors.Is(err, ErrNotSubscribed):
		return "not_subscribed"
	case errors.Is(err, ErrTooManySubscriptions):
		return "too_many_subscriptions"
	case errors.Is(err, ErrTooManyTopics):
		return "too_many_topics"
	case errors.Is(err, ErrTooLarge):
		return "too_large"
	case err == errPublishRate, err == errRequestRate:
		return "rate_limited"
	case errors.Is(err, ErrOverloaded), errors.Is(err, errTooOften), token != nil:
		return "overloaded"
	case errors.Is(err, ErrNoCluster):
		return "unavailable"
	case errors.Is(err, ErrUncertain):
		return "uncertain"
	}
	panic("server: an error without a code: " + err.Error())
}

// fail tells a client that its request failed. If that is because the connection is closed, it knows.
func (c *Conn) fail(id json.RawMessage, err error, reply replier) {
	if !errors.Is(err, ErrClosed) {
		reply(id, "error", errorReplyOf(err))
	}
}

// failed tells a client that what its request line asked for failed.
func (c *Conn) failed(err error) {
	if c.framing == framingEnvelope {
		c.fail(nil, err, c.sendReply)
		return
	}
	code := codec.ClosePolicyViolation
	if errors.Is(err, ErrTooManyTopics) || errors.Is(err, ErrOverloaded) || errors.Is(err, ErrNoCluster) {
		code = codec.CloseTryAgainLater
	}
	_ = c.Close(code, err.Error())
}
