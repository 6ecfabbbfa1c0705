package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"carillon/server/internal/envelope"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
	"carillon/server/internal/strictjson"
	"carillon/server/topic"
)

// request is what a client of the JSON protocol asks for: see docs/protocol.md. Exactly one of the fields
// behind ID is set.
type request struct {
	ID          json.RawMessage   `json:"id"`
	Subscribe   *subscribeRequest `json:"subscribe"`
	Unsubscribe *topicRequest     `json:"unsubscribe"`
	Publish     *envelope.Publish `json:"publish"`
	History     *historyRequest   `json:"history"`
	Presence    *topicRequest     `json:"presence"`
	Ping        *struct{}         `json:"ping"`
	Refresh     *refreshRequest   `json:"refresh"`
}

// isQuick reports whether a request costs no more than a message does.
func (r *request) isQuick() bool {
	if s := r.Subscribe; s != nil {
		return s.Since == nil && s.Last == 0 && !topic.IsPattern(s.Topic)
	}
	return r.Unsubscribe != nil || r.Publish != nil || r.Ping != nil
}

type topicRequest struct {
	Topic string `json:"topic"`
}

type subscribeRequest struct {
	Topic string          `json:"topic"`
	Since *topic.Position `json:"since"`
	Last  int             `json:"last"`
}

type historyRequest struct {
	Topic string          `json:"topic"`
	Since *topic.Position `json:"since"`
	Limit *int            `json:"limit"`
}

// Unknown members are ignored, and null stands for an absent one. But with a member that is there twice, or in other
// case, what the client asks for would depend on the reader. An id decides nothing.
var requestShape = strictjson.ShapeOf[request](strictjson.Rules{Unknown: true, Null: true}).Without("id")

// request does what a client asks for, one request after the other. What looks at subscriptions, or may
// have a large answer, waits until what was sent before it is out, and so does everything that the client
// asks for behind it. All else is done at once, and its reply waits in the mailbox.
func (c *Conn) request(payload []byte) {
	if len(payload) > largeRequest {
		c.parseElsewhere(bytes.Clone(payload))
		return
	}
	r, err := parseRequest(payload)
	c.requested(r, err, len(payload))
}

// largeRequest is the size in bytes of a request from which on it takes too much of a loop's time to look at it.
const largeRequest = 32 << 10

// parseElsewhere has a request parsed on another goroutine. What the client asks for behind it waits.
func (c *Conn) parseElsewhere(payload []byte) {
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
func (c *Conn) answerParsed(r *request, err error) {
	if err == nil {
		err = c.paysRequest(r)
	}
	if err != nil {
		c.fail(r.ID, err, c.sendReply)
		return
	}
	c.answerRequest(r, c.sendReply)
}

// requested does what a client asks for in a request of n bytes, or tells it what is wrong with that.
func (c *Conn) requested(r *request, err error, n int) {
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

func (c *Conn) answerRequest(r *request, reply replier) {
	what, value, err := c.do(r)
	c.answerWith(r.ID, what, value, err, reply)
}

// answerWith replies with an error, or with a value unless what is empty.
func (c *Conn) answerWith(id json.RawMessage, what string, value any, err error, reply replier) {
	switch {
	case err != nil:
		c.fail(id, err, reply)
	case what != "" && len(id) > 0:
		reply(id, what, value)
	}
}

// parseRequest returns a request also when it returns an error: one that has the ID, if that can be
// repeated.
func parseRequest(payload []byte) (*request, error) {
	r := &request{}
	err := json.Unmarshal(payload, r)
	if wrong := checkID(r.ID); wrong != nil {
		return &request{}, wrong
	}
	if err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return r, envelope.BadRequest("%s must not be a JSON %.20s", kind.Field, kind.Value)
		}
		return r, envelope.BadRequest("expected a JSON object: %v", err)
	}
	if err := requestShape.Check(payload); err != nil {
		return r, envelope.BadRequest("%v", err)
	}
	asked := 0
	for _, set := range []bool{r.Subscribe != nil, r.Unsubscribe != nil, r.Publish != nil, r.History != nil, r.Presence != nil, r.Ping != nil, r.Refresh != nil} {
		if set {
			asked++
		}
	}
	if asked != 1 {
		return r, envelope.BadRequest("expected exactly one of subscribe, unsubscribe, publish, history, presence, ping and refresh, each with an object")
	}
	return r, nil
}

// maxID is the longest id of a request, in bytes.
const maxID = 64

// checkID allows what can be repeated in a reply without harm: a short string or an integer.
func checkID(id json.RawMessage) error {
	if len(id) == 0 {
		return nil
	}
	n := len(id)
	if id[0] == '"' {
		var text string
		if json.Unmarshal(id, &text) != nil || len(id) > 2+6*maxID { // at most six bytes escape one
			return envelope.BadRequest("id is longer than %d bytes", maxID)
		}
		n = len(text)
	} else if strings.Trim(string(id), "-0123456789") != "" {
		return envelope.BadRequest("id is %.20s: expected a string or an integer", id)
	}
	if n > maxID {
		return envelope.BadRequest("id is longer than %d bytes", maxID)
	}
	return nil
}

// do returns what the reply says, or nothing if it has been sent.
func (c *Conn) do(r *request) (what string, value any, err error) {
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

func (c *Conn) doSubscribe(id json.RawMessage, r *subscribeRequest) error {
	if err := c.checkRead(r.Topic); err != nil {
		return err
	}
	from := topic.Start{Since: r.Since, Last: r.Last}
	switch {
	case topic.IsPattern(r.Topic) && from != topic.Start{}:
		return envelope.BadRequest("%v", ErrNoPosition)
	case r.Since != nil && r.Last != 0:
		return envelope.BadRequest("since and last are mutually exclusive")
	case r.Last < 0 || r.Last > envelope.MaxLast:
		return envelope.BadRequest("last is %d: expected 0 to %d", r.Last, envelope.MaxLast)
	}
	c.hub().SubscribeReady(c.core(), &hub.Wanted{Name: r.Topic, From: from, Kind: reactor.FramingEnvelope, Asked: true, Told: c.tellGap, Reply: func(s Subscribed) {
		if len(id) > 0 {
			c.sendSubscribed(id, s, from.Since != nil)
		}
	}}, func(err error) { c.fail(id, err, c.sendReply) })
	return nil
}

type publishReply struct {
	Topic string `json:"topic"`
	topic.Receipt
}

// publication is what a client wants to publish, as far as it may.
func (c *Conn) publication(r *envelope.Publish) (p hub.Publication, err error) {
	if err := topic.Check(r.Topic); err != nil {
		return p, err
	}
	if err := c.checkPublish(r.Topic); err != nil {
		return p, err
	}
	p.Topic, p.Key = r.Topic, r.Key
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
func (c *Conn) doPublish(id json.RawMessage, r *envelope.Publish, reply replier) {
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
		receipt, ready, err = c.Server().hub.Remote.Publish(p, wait, done)
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

// The number of messages that a history request gets.
const (
	usualHistory = 100
	maxHistory   = 1000
)

// maxHistoryBytes bounds the messages in one reply, but for the first.
const maxHistoryBytes = 1 << 20

// isUnanswered reports whether a request asks only for an answer, and has no id that the answer could have.
func (r *request) isUnanswered() bool {
	return len(r.ID) == 0 && (r.History != nil || r.Presence != nil || r.Ping != nil)
}

// checkQuery reports what is wrong with a request that asks only for an answer.
func (c *Conn) checkQuery(r *request) error {
	switch {
	case r.History != nil:
		return c.checkHistory(r.History)
	case r.Presence != nil:
		return c.checkPresence(r.Presence.Topic)
	}
	return nil
}

func (c *Conn) checkHistory(r *historyRequest) error {
	if err := topic.Check(r.Topic); err != nil {
		return err
	}
	if err := c.checkRead(r.Topic); err != nil {
		return err
	}
	if limit := r.limit(); limit < 1 || limit > maxHistory {
		return envelope.BadRequest("limit is %d: expected 1 to %d", limit, maxHistory)
	}
	return nil
}

func (r *historyRequest) limit() int {
	if r.Limit != nil {
		return *r.Limit
	}
	return usualHistory
}

func (c *Conn) doHistory(id json.RawMessage, r *historyRequest) error {
	if err := c.checkHistory(r); err != nil {
		return err
	}
	c.hub().TopicReady(c.core(), r.Topic, topic.Start{Since: r.Since}, true, func(err error) {
		var value any
		if err == nil {
			value, err = newHistoryReply(c.hub(), r.Topic, r.Since, r.limit())
		}
		c.answerWith(id, "history", value, err, c.sendReply)
	})
	return nil
}

// historyReply is a part of a topic's history as the JSON protocol and the HTTP interface have it:
// {"topic","offset","epoch","recovered","messages"}.
type historyReply struct {
	topic    string
	past     topic.HistoryPage // without its messages
	messages []*hub.Message
}

func newHistoryReply(h *hub.Hub, name string, since *topic.Position, limit int) (*historyReply, error) {
	from := topic.Start{Since: since}
	if since == nil {
		from.Last = limit
	}
	past, list, err := h.Past(name, from, limit)
	return &historyReply{topic: name, past: past, messages: within(list, maxHistoryBytes, since == nil)}, err
}

// appendTo appends the reply as JSON.
func (r *historyReply) AppendTo(b []byte) []byte {
	b = append(envelope.AppendText(append(b, `{"topic":`...), r.topic), `,"offset":`...)
	b = append(strconv.AppendUint(b, r.past.Offset, 10), `,"epoch":`...)
	b = append(envelope.AppendText(b, r.past.Epoch), `,"recovered":`...)
	b = append(strconv.AppendBool(b, r.past.Recovered), `,"messages":[`...)
	for i, m := range r.messages {
		if i > 0 {
			b = append(b, ',')
		}
		b = m.AppendHistory(b)
	}
	return append(b, "]}"...)
}

// MarshalJSON is for the HTTP interface.
func (r *historyReply) MarshalJSON() ([]byte, error) { return r.AppendTo(nil), nil }

// within returns as many of the oldest messages, or of the newest, as have at most so many bytes, and at
// least one.
func within(list []*hub.Message, bytes int, newest bool) []*hub.Message {
	for n := range list {
		i := n
		if newest {
			i = len(list) - 1 - n
		}
		if bytes -= list[i].EnvelopeSize(); bytes >= 0 || n == 0 {
			continue
		}
		if newest {
			return list[i+1:]
		}
		return list[:i]
	}
	return list
}

func (c *Conn) checkPresence(name string) error {
	if err := topic.Check(name); err != nil {
		return err
	}
	if !c.endpoint().now().Topics.Presence {
		return errNoPresence
	}
	return c.checkRead(name)
}

func (c *Conn) doPresence(id json.RawMessage, topic string) (what string, value any, err error) {
	if err := c.checkPresence(topic); err != nil {
		return "", nil, err
	}
	var s *reactor.Slot
	p, ready := c.Server().hub.Remote.Present(topic, func() { s = c.core().Reserve() }, func(p *hub.Presence) {
		c.core().Resolve(s, true, func() { c.answerWith(id, "present", p, nil, c.sendReply) })
	})
	if !ready {
		return "", nil, nil
	}
	return "present", p, nil
}

var (
	errPublishRate = errors.New("limits.publishes_per_second exceeded")
	errRequestRate = errors.New("limits.requests_per_second exceeded")
)

// paysRequest charges for a request of the JSON protocol, which is refused when it fails.
func (c *Conn) paysRequest(r *request) error {
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
