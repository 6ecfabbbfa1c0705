package server

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"carillon/codec"
)

// request is what a client of the JSON protocol asks for: see docs/protocol.md. Exactly one of the fields
// behind ID is set.
type request struct {
	ID          json.RawMessage   `json:"id"`
	Subscribe   *subscribeRequest `json:"subscribe"`
	Unsubscribe *topicRequest     `json:"unsubscribe"`
	Publish     *publishRequest   `json:"publish"`
	History     *historyRequest   `json:"history"`
	Presence    *topicRequest     `json:"presence"`
	Ping        *map[string]any   `json:"ping"`
}

type topicRequest struct {
	Topic string `json:"topic"`
}

type subscribeRequest struct {
	Topic string    `json:"topic"`
	Since *Position `json:"since"`
	Last  int       `json:"last"`
}

type publishRequest struct {
	Topic    string          `json:"topic"`
	Data     json.RawMessage `json:"data"`
	Encoding string          `json:"encoding"`
	Key      string          `json:"key"`
}

type historyRequest struct {
	Topic string    `json:"topic"`
	Since *Position `json:"since"`
	Limit *int      `json:"limit"`
}

// badRequest is a request that makes no sense.
type badRequest struct{ problem string }

func (e *badRequest) Error() string { return e.problem }

func bad(format string, args ...any) error { return &badRequest{fmt.Sprintf(format, args...)} }

// request does what a client asks for. Every reply is left in the mailbox, so that replies come in the
// order of their requests.
func (c *Conn) request(payload []byte) {
	r, err := parseRequest(payload)
	if err == nil {
		err = c.do(r)
	}
	if err != nil {
		var id json.RawMessage
		if r != nil {
			id = r.ID
		}
		c.failed(id, err)
	}
}

// parseRequest returns what it could read of a request also when it returns an error.
func parseRequest(payload []byte) (*request, error) {
	r := &request{}
	if err := json.Unmarshal(payload, r); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return r, bad("%s is a JSON %s: expected something else", kind.Field, kind.Value)
		}
		return nil, bad("expected a JSON object: %v", err)
	}
	if err := checkID(r.ID); err != nil {
		return nil, err
	}
	asked := 0
	for _, set := range []bool{r.Subscribe != nil, r.Unsubscribe != nil, r.Publish != nil, r.History != nil, r.Presence != nil, r.Ping != nil} {
		if set {
			asked++
		}
	}
	if asked != 1 {
		return r, bad("expected exactly one of subscribe, unsubscribe, publish, history, presence and ping, each with an object")
	}
	return r, nil
}

// checkID allows what can be repeated in a reply without harm: a short string or an integer.
func checkID(id json.RawMessage) error {
	if len(id) == 0 {
		return nil
	}
	if len(id) > 2+64 {
		return bad("id is longer than 64 bytes")
	}
	if id[0] == '"' {
		return nil
	}
	if _, err := strconv.ParseInt(string(id), 10, 64); err != nil {
		return bad("id is %s: expected a string or an integer", id)
	}
	return nil
}

func (c *Conn) do(r *request) error {
	switch {
	case r.Subscribe != nil:
		return c.doSubscribe(r.ID, r.Subscribe)
	case r.Unsubscribe != nil:
		c.doUnsubscribe(r.ID, r.Unsubscribe.Topic)
		return nil
	case r.Publish != nil:
		return c.doPublish(r.ID, r.Publish)
	case r.History != nil:
		return c.doHistory(r.ID, r.History)
	case r.Presence != nil:
		return c.doPresence(r.ID, r.Presence.Topic)
	}
	c.reply(r.ID, "pong", struct{}{})
	return nil
}

func (c *Conn) doSubscribe(id json.RawMessage, r *subscribeRequest) error {
	if err := c.ep.check(r.Topic); err != nil {
		return err
	}
	from := Start{Since: r.Since, Last: r.Last}
	switch {
	case isPattern(r.Topic) && from != Start{}:
		return bad("%v", ErrNoPosition)
	case r.Since != nil && r.Last != 0:
		return bad("since and last exclude each other")
	case r.Last < 0 || r.Last > mostLast:
		return bad("last is %d: expected 0 to %d", r.Last, mostLast)
	}
	c.later(func() {
		_, err := c.subscribe(r.Topic, from, framingEnvelope, func(s Subscribed) { c.sendSubscribed(id, s, from.Since != nil) })
		if err != nil {
			c.sendFailed(id, err)
		}
	})
	return nil
}

func (c *Conn) doUnsubscribe(id json.RawMessage, topic string) {
	c.later(func() {
		if err := c.unsubscribe(topic); err != nil {
			c.sendFailed(id, err)
			return
		}
		c.sendReply(id, "unsubscribed", topicRequest{topic})
	})
}

func (c *Conn) doPublish(id json.RawMessage, r *publishRequest) error {
	if err := CheckTopic(r.Topic); err != nil {
		return err
	}
	if !c.ep.Topics.mayPublish(r.Topic) {
		return errNotAllowed
	}
	format, payload, err := decodeData(r.Data, r.Encoding)
	if err != nil {
		return err
	}
	receipt, err := c.sh.srv.Publish(Publication{Topic: r.Topic, Format: format, Payload: payload, Key: r.Key})
	if err == nil {
		c.reply(id, "published", struct {
			Topic string `json:"topic"`
			Receipt
		}{r.Topic, receipt})
	}
	return err
}

// decodeData reads a message as the JSON protocol and the HTTP interface have it.
func decodeData(data json.RawMessage, encoding string) (Format, []byte, error) {
	if len(data) == 0 {
		return 0, nil, bad("data is missing")
	}
	if encoding == "" {
		return FormatJSON, data, nil
	}
	var text string
	if encoding != "base64" && encoding != "text" {
		return 0, nil, bad("encoding is %.40q: expected text or base64, or none for JSON", encoding)
	}
	if err := json.Unmarshal(data, &text); err != nil {
		return 0, nil, bad("data is no string, as the encoding %s asks for", encoding)
	}
	if encoding == "text" {
		return FormatText, []byte(text), nil
	}
	payload, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return 0, nil, bad("data is not base64: %v", err)
	}
	return FormatBinary, payload, nil
}

// The number of messages that a history request gets.
const (
	usualHistory = 100
	mostHistory  = 1000
)

func (c *Conn) doHistory(id json.RawMessage, r *historyRequest) error {
	if err := CheckTopic(r.Topic); err != nil {
		return err
	}
	if !c.ep.Topics.maySubscribe(r.Topic) {
		return errNotAllowed
	}
	limit := usualHistory
	if r.Limit != nil {
		limit = *r.Limit
	}
	if limit < 1 || limit > mostHistory {
		return bad("limit is %d: expected 1 to %d", limit, mostHistory)
	}
	reply, err := c.sh.srv.hub.historyReply(r.Topic, r.Since, limit)
	if err == nil {
		c.reply(id, "history", reply)
	}
	return err
}

// historyReply is a part of a topic's history as the JSON protocol and the HTTP interface have it.
type historyReply struct {
	Topic string `json:"topic"`
	Position
	Recovered bool              `json:"recovered"`
	Messages  []json.RawMessage `json:"messages"`
}

func (h *hub) historyReply(topic string, since *Position, limit int) (*historyReply, error) {
	from := Start{Since: since}
	if since == nil {
		from.Last = limit
	}
	past, list, err := h.past(topic, from, limit)
	reply := &historyReply{Topic: topic, Position: past.Position, Recovered: past.Recovered, Messages: []json.RawMessage{}}
	for _, m := range list {
		reply.Messages = append(reply.Messages, m.appendEnvelope(nil))
	}
	return reply, err
}

// mostPresent bounds the connections that a presence reply lists.
const mostPresent = 1000

func (c *Conn) doPresence(id json.RawMessage, topic string) error {
	if err := CheckTopic(topic); err != nil {
		return err
	}
	if !c.ep.Topics.Presence || !c.ep.Topics.maySubscribe(topic) {
		return errNotAllowed
	}
	present := c.sh.srv.Subscribers(topic)
	type connection struct {
		ID string `json:"id"`
	}
	list := []connection{}
	for _, other := range present[:min(len(present), mostPresent)] {
		list = append(list, connection{strconv.FormatUint(other.id, 10)})
	}
	c.reply(id, "present", struct {
		Topic       string       `json:"topic"`
		Count       int          `json:"count"`
		Connections []connection `json:"connections"`
	}{topic, len(present), list})
	return nil
}

// Subscribers lists the connections that are subscribed to exactly this topic or pattern, in no order.
func (s *Server) Subscribers(topic string) (list []*Conn) {
	var src *source
	if t := s.hub.find(topic); t != nil {
		src = &t.source
	} else if src = s.hub.findPattern(topic); src == nil {
		return nil
	}
	defer src.mu.Unlock()
	for _, l := range src.locals {
		l.sh.mu.Lock()
		for _, a := range l.audiences {
			if a != nil {
				for _, m := range a.members {
					list = append(list, m.conn)
				}
			}
		}
		l.sh.mu.Unlock()
	}
	return list
}

// subscribedReply says where a subscription began.
type subscribedReply struct {
	Topic     string  `json:"topic"`
	Offset    *uint64 `json:"offset,omitempty"`
	Epoch     string  `json:"epoch,omitempty"`
	Recovered *bool   `json:"recovered,omitempty"`
}

// sendSubscribed sends the reply to a subscription at once: the messages follow. It is sent without an id
// too, because a subscription of the request line or of the application has none.
func (c *Conn) sendSubscribed(id json.RawMessage, s Subscribed, since bool) {
	r := subscribedReply{Topic: s.Topic, Epoch: s.Epoch}
	if s.Epoch != "" {
		r.Offset = &s.Offset
	}
	if since {
		r.Recovered = &s.Recovered
	}
	if c.isEvents() {
		c.sendEncoded(codec.Opaque(appendEvent(nil, "subscribed", "", appendJSON(nil, r))).Plain())
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

// reply leaves a reply in the mailbox. A request without an id gets none.
func (c *Conn) reply(id json.RawMessage, what string, value any) {
	if len(id) > 0 {
		c.refused(c.Send(Text, appendReply(nil, id, what, value)))
	}
}

// sendReply sends a reply at once, on the loop.
func (c *Conn) sendReply(id json.RawMessage, what string, value any) {
	if len(id) == 0 && what == "unsubscribed" {
		return
	}
	c.sendBytes(codec.AppendFrame(nil, codec.OpText, appendReply(nil, id, what, value)))
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
	switch {
	case errors.As(err, &topic):
		return "invalid_topic"
	case errors.As(err, &request), errors.Is(err, ErrNotJSON), errors.Is(err, ErrNotText), errors.Is(err, ErrKey):
		return "bad_request"
	case errors.Is(err, errNotAllowed), errors.Is(err, errNoPatterns):
		return "not_allowed"
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
	case errors.Is(err, ErrOverloaded):
		return "overloaded"
	case errors.Is(err, ErrClosed):
		return "closed"
	}
	panic("server: an error without a code: " + err.Error())
}

// failed tells a client that its request failed, through the mailbox.
func (c *Conn) failed(id json.RawMessage, err error) {
	if c.framing == framingEnvelope {
		c.refused(c.Send(Text, appendReply(nil, id, "error", errorReplyOf(err))))
		return
	}
	code := codec.ClosePolicyViolation
	if errors.Is(err, ErrTooManyTopics) || errors.Is(err, ErrOverloaded) {
		code = codec.CloseTryAgainLater
	}
	_ = c.Close(code, err.Error())
}

// sendFailed is failed, at once.
func (c *Conn) sendFailed(id json.RawMessage, err error) {
	if !errors.Is(err, ErrClosed) {
		c.sendReply(id, "error", errorReplyOf(err))
	}
}
