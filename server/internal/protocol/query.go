package protocol

import (
	"errors"
	"fmt"
	"net/url"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/internal/envelope"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
	"carillon/server/stats"
	"carillon/server/topic"
)

// Query is what a request to an endpoint with topics asks for.
type Query struct {
	Events  bool // server-sent events
	Framing reactor.Framing
	topics  []string
	from    topic.Start
	afresh  bool // it had a position, but none that can be gone on from
}

// ParseQuery reads the query of a request line; events says that server-sent events are asked for. The error is a
// *[codec.Rejection].
func (a *Access) ParseQuery(r *codec.Request, events bool) (*Query, error) {
	bad := func(format string, args ...any) (*Query, error) {
		return nil, &codec.Rejection{Status: 400, Reason: fmt.Sprintf(format, args...)}
	}
	query, err := url.ParseQuery(string(r.Query))
	if err != nil {
		return bad("the query is malformed")
	}
	w := &Query{Events: events, topics: query["topic"]}
	if w.from, err = envelope.ParseStart(query); err != nil {
		return bad("%v", err)
	}
	if events {
		w.Framing = reactor.FramingEvent
		if query.Get("envelope") == "true" {
			w.Framing = reactor.FramingEventWrapped
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
	if limit := a.MaxSubscriptions; limit >= 0 && len(w.topics) > limit {
		return bad("too many topics: %d, and topics.max_subscriptions of the endpoint is %d", len(w.topics), limit)
	}
	patterns := 0
	for _, name := range w.topics {
		if topic.IsPattern(name) {
			patterns++
		}
	}
	if limit := a.MaxPatterns; limit >= 0 && patterns > limit {
		return bad("too many patterns: %d, and topics.max_patterns of the endpoint is %d", patterns, limit)
	}
	return w, a.checkQuery(w)
}

// checkQuery checks the topics of a request.
func (a *Access) checkQuery(w *Query) error {
	for _, name := range w.topics {
		if err := a.check(name); err != nil {
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

// CheckRights reports whether a client may have the topics of its request line. The error is an *[auth.Refusal].
func (w *Query) CheckRights(id *auth.Identity) error {
	for _, name := range w.topics {
		if !auth.Allows(id.Subscribe, name) {
			return &auth.Refusal{Why: stats.RefuseTopic, Rejection: &codec.Rejection{Status: 403, Reason: errSubscribeDenied.Error()}}
		}
	}
	return nil
}

// quickTopics is up to how many subscriptions of a request line, without a history, cost no more than a few messages.
const quickTopics = 4

// Subscribe makes the subscriptions that the request asked for.
func (c *Client) Subscribe(w *Query) {
	for _, name := range w.topics {
		quick := len(w.topics) <= quickTopics && w.from == topic.Start{}
		err := c.core().AfterPending(0, quick, func() {
			err := c.checkRead(name) // a token may have been renewed since
			if err != nil {
				c.failed(err)
				return
			}
			c.hub().SubscribeReady(c.core(), &hub.Wanted{Name: name, From: w.from, Kind: w.Framing, Asked: true, Told: c.TellGap, Reply: func(s topic.Subscribed) {
				if w.Framing != reactor.FramingRaw {
					s.Recovered = s.Recovered && !w.afresh
					c.TellSubscribed(nil, s, w.from.Since != nil || w.afresh)
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
