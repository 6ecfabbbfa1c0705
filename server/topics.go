package server

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// TopicAccess rules what clients of an endpoint with [ModeTopics] may do by themselves. What the
// application does for them with [Conn.Subscribe] and [Server.Publish] is not restricted.
type TopicAccess struct {
	// Subscribe lists the topics, as names or patterns, that clients may subscribe to. Default: all.
	Subscribe []string `yaml:"subscribe"`

	// Publish lists those that clients may publish to. Default: none.
	Publish []string `yaml:"publish"`

	// Patterns lets clients subscribe to patterns, as far as Subscribe covers them.
	Patterns bool `yaml:"patterns"`

	// Presence lets clients ask who is subscribed to a topic.
	Presence bool `yaml:"presence"`

	// MaxSubscriptions is how many topics and patterns one connection may have. Default 128; negative
	// is no limit.
	MaxSubscriptions int `yaml:"max_subscriptions"`

	// MaxPatterns is how many of them may be patterns. A message is compared with all patterns that begin as its topic
	// does, which takes about 50 ns for each. Default 16; negative is no limit.
	MaxPatterns int `yaml:"max_patterns"`
}

func (a *TopicAccess) maySubscribe(name string) bool {
	for _, p := range a.Subscribe {
		if topic.Covers(p, name) {
			return true
		}
	}
	return false
}

func (a *TopicAccess) mayPublish(name string) bool {
	for _, p := range a.Publish {
		if topic.Matches(p, name) {
			return true
		}
	}
	return false
}

// subprotocolJSON is the one of docs/protocol.md.
const subprotocolJSON = "carillon.v1.json"

// topicQuery is what a request to an endpoint with topics asks for.
type topicQuery struct {
	events  bool // server-sent events
	framing reactor.Framing
	topics  []string
	from    topic.Start
	afresh  bool // it had a position, but none that can be gone on from
}

// parseTopicQuery reads the query. The error is a *[codec.Rejection].
func (ep *endpoint) parseTopicQuery(r *Request, events bool) (*topicQuery, error) {
	bad := func(format string, args ...any) (*topicQuery, error) {
		return nil, &codec.Rejection{Status: 400, Reason: fmt.Sprintf(format, args...)}
	}
	query, err := url.ParseQuery(string(r.Query))
	if err != nil {
		return bad("the query is malformed")
	}
	w := &topicQuery{events: events, topics: query["topic"]}
	if w.from, err = envelope.ParseStart(query); err != nil {
		return bad("%v", err)
	}
	if events {
		w.framing = reactor.FramingEvent
		if query.Get("envelope") == "true" {
			w.framing = reactor.FramingEventWrapped
		}
		if len(w.topics) == 0 {
			return bad("topic is missing: expected ?topic=NAME")
		}
		if id := r.Header("Last-Event-ID"); len(id) > 0 {
			since, ok := envelope.ParseEventID(string(id))
			if ok && len(w.topics) == 1 && !topic.IsPattern(w.topics[0]) {
				w.from = topic.Start{Since: &since}
			} else {
				w.afresh = true
			}
		}
	}
	if limit := ep.now().Topics.MaxSubscriptions; limit >= 0 && len(w.topics) > limit {
		return bad("too many topics: %d, and topics.max_subscriptions of the endpoint is %d", len(w.topics), limit)
	}
	patterns := 0
	for _, name := range w.topics {
		if topic.IsPattern(name) {
			patterns++
		}
	}
	if limit := ep.now().Topics.MaxPatterns; limit >= 0 && patterns > limit {
		return bad("too many patterns: %d, and topics.max_patterns of the endpoint is %d", patterns, limit)
	}
	return w, ep.checkTopicQuery(w)
}

// checkTopicQuery checks the topics of a request.
func (ep *endpoint) checkTopicQuery(w *topicQuery) error {
	for _, name := range w.topics {
		if err := ep.check(name); err != nil {
			status := 400
			if _, ok := errors.AsType[notAllowed](err); ok {
				status = 403
			}
			return &codec.Rejection{Status: status, Reason: err.Error()}
		}
		if w.from.Since != nil && (len(w.topics) > 1 || topic.IsPattern(name)) {
			return &codec.Rejection{Status: 400, Reason: "since needs exactly one topic and no pattern"}
		}
		if w.from.Last > 0 && topic.IsPattern(name) {
			return &codec.Rejection{Status: 400, Reason: "last needs topics and no patterns"}
		}
	}
	if a, b, ok := overlapIn(w.topics); ok {
		return &codec.Rejection{Status: 400, Reason: fmt.Sprintf("topic %q overlaps topic %q", b, a)}
	}
	return nil
}

// overlapIn returns two names for which there is a topic that both stand for, if there are any. Names without wildcards
// are compared with patterns only, since there may be many of either kind with many levels.
func overlapIn(names []string) (a, b string, ok bool) {
	if len(names) < 2 {
		return "", "", false
	}
	seen := make(map[string]bool, len(names))
	var topics, patterns []string
	for _, name := range names {
		if seen[name] {
			return name, name, true
		}
		seen[name] = true
		if topic.IsPattern(name) {
			patterns = append(patterns, name)
		} else {
			topics = append(topics, name)
		}
	}
	for i, p := range patterns {
		for _, others := range [][]string{patterns[i+1:], topics} {
			for _, name := range others {
				if topic.Overlaps(p, name) {
					return p, name, true
				}
			}
		}
	}
	return "", "", false
}

// notAllowed is what an endpoint, or the client's own rights, do not allow, and by which key of the endpoint or which
// member of the rights. It fits into a close frame.
type notAllowed string

func (e notAllowed) Error() string { return string(e) }

const (
	errNoSubscribe = notAllowed("clients may not subscribe to this: not in topics.subscribe of the endpoint")
	errNoPublish   = notAllowed("clients may not publish to this: not in topics.publish of the endpoint")
	errNoPresence  = notAllowed("clients may not query presence: topics.presence of the endpoint is false")
	errNoPatterns  = notAllowed("patterns are not allowed: topics.patterns of the endpoint is false")

	errNotYours      = notAllowed("this client may not subscribe to this: not in subscribe of its token or other authorization")
	errNotYourOutput = notAllowed("this client may not publish to this: not in publish of its token or other authorization")
	errHasMore       = notAllowed("the new token does not allow all current subscriptions")

	errNotOneTopic = notAllowed("cannot publish here: expected exactly one topic and no pattern in the request line")
)

// check reports whether a client may subscribe to a topic or pattern.
func (ep *endpoint) check(name string) error {
	pattern, err := topic.Parse(name)
	access := &ep.now().Topics
	switch {
	case err != nil:
		return err
	case pattern && !access.Patterns:
		return errNoPatterns
	case !access.maySubscribe(name):
		return errNoSubscribe
	}
	return nil
}

// quickTopics is up to how many subscriptions of a request line, without a history, cost no more than a few messages.
const quickTopics = 4

// subscribeInitial makes the subscriptions that the request asked for.
func (c *Conn) subscribeInitial(w *topicQuery) {
	for _, name := range w.topics {
		quick := len(w.topics) <= quickTopics && w.from == topic.Start{}
		err := c.core().AfterPending(0, quick, func() {
			err := c.checkRead(name) // a token may have been renewed since
			if err != nil {
				c.failed(err)
				return
			}
			c.hub().SubscribeReady(c.core(), &hub.Wanted{Name: name, From: w.from, Kind: w.framing, Asked: true, Told: c.tellGap, Reply: func(s Subscribed) {
				if w.framing != reactor.FramingRaw {
					s.Recovered = s.Recovered && !w.afresh
					c.sendSubscribed(nil, s, w.from.Since != nil || w.afresh)
				} else if w.from.Since != nil && !s.Recovered {
					c.core().StartClose(reactor.CloseOwn, hub.CloseGap, "gap")
				}
			}}, c.failed)
		})
		if err != nil {
			c.failed(err)
		}
	}
}

// onMessage handles a message of a client on an endpoint with topics.
func (c *Conn) onMessage(op codec.Opcode, payload []byte) {
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
	c.refused(c.core().AfterPending(len(payload), true, func() { c.publish(op, payload) }))
}

// publish publishes what came on a raw connection to its topic.
func (c *Conn) publish(op codec.Opcode, payload []byte) {
	var topics []reactor.Subscription
	if c.core().Extension() != nil {
		topics = c.core().Extension().Subs
	}
	err := error(errNotOneTopic)
	if len(topics) == 1 && !hub.IsPattern(&topics[0]) {
		err = c.checkPublish(hub.NameOf(&topics[0]))
	}
	if err != nil {
		_ = c.Close(codec.ClosePolicyViolation, err.Error())
		return
	}
	format := topic.FormatText
	if op == codec.OpBinary {
		format = topic.FormatBinary
	}
	p := hub.Publication{Publication: topic.Publication{Topic: hub.NameOf(&topics[0]), Format: format, Payload: payload}}
	m := c.hub().FlightOf(&p)
	_, ready, err := c.Server().hub.Remote.Publish(p, func() { c.core().BeginPublishing(m) }, func(_ topic.Receipt, err error) {
		c.shard().PostDo(c.core(), 0, func() { c.core().EndPublishing(m) })
		c.refused(err)
	})
	if ready {
		c.refused(err)
	}
}
