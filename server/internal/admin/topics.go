package admin

import (
	"cmp"
	"net/http"

	"carillon/server/internal/envelope"
	"carillon/server/topic"
)

// topics lists topics by their names, a page at a time.
func (a *api) topics(w http.ResponseWriter, r *http.Request) error {
	query, err := parameters(r, "match", "limit", "after")
	if err != nil {
		return err
	}
	limit, err := limitOf(query)
	if err != nil {
		return err
	}
	pattern := cmp.Or(query.Get("match"), ">")
	if err := topic.CheckPattern(pattern); err != nil {
		return err
	}
	page := struct {
		Topics []topic.Info `json:"topics"`
		Next   string       `json:"next,omitempty"`
	}{Topics: []topic.Info{}}
	list, next := a.backend.Topics(pattern, query.Get("after"), limit)
	page.Topics, page.Next = append(page.Topics, list...), next
	return reply(w, page)
}

// Topic is a topic as all servers know it.
type Topic struct {
	topic.Info
	Complete *bool `json:"complete,omitempty"` // in a cluster: whether all servers have told of their subscribers
}

// topic describes one topic.
func (a *api) topic(w http.ResponseWriter, r *http.Request) error {
	name, err := topicOf(r)
	if err != nil {
		return err
	}
	if _, err := parameters(r); err != nil {
		return err
	}
	info, err := a.backend.Topic(r.Context(), name)
	if err != nil {
		return err
	}
	return reply(w, info)
}

// history returns what a topic keeps.
func (a *api) history(w http.ResponseWriter, r *http.Request) error {
	name, err := topicOf(r)
	if err != nil {
		return err
	}
	query, err := parameters(r, "since", "epoch", "limit")
	if err != nil {
		return err
	}
	limit, err := limitOf(query)
	if err != nil {
		return err
	}
	from, err := envelope.ParseStart(query)
	if err != nil {
		return bad("%v", err)
	}
	if from.Since == nil && query.Has("epoch") {
		return bad("epoch without since: expected both, as they were received")
	}
	past, err := a.backend.History(name, from.Since, limit)
	if err != nil {
		return err
	}
	return reply(w, past)
}
