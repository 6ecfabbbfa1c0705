package server

import (
	"cmp"
	"net/http"
	"slices"

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
	if err := CheckPattern(pattern); err != nil {
		return err
	}
	page := struct {
		Topics []TopicInfo `json:"topics"`
		Next   string      `json:"next,omitempty"`
	}{Topics: []TopicInfo{}}
	names, more := a.srv.hub.names(pattern, query.Get("after"), limit)
	for _, name := range names {
		if info, exists := a.srv.Topic(name); exists {
			page.Topics = append(page.Topics, info)
		}
	}
	if more {
		page.Next = names[len(names)-1]
	}
	return reply(w, page)
}

// names returns the first names of topics that match a pattern and come after a name. It goes through
// all topics, but keeps no more than twice what it returns.
func (h *hub) names(pattern, after string, limit int) (list []string, more bool) {
	first := firstOf[string]{most: limit + 1}
	for i := range h.parts {
		for t := range h.parts[i].all() {
			if t.name > after && topic.Matches(pattern, t.name) {
				first.add(t.name)
			}
		}
	}
	list = first.sorted()
	if len(list) > limit {
		return list[:limit], true
	}
	return list, false
}

// firstOf keeps the first values, in their order, of all that it is given.
type firstOf[T cmp.Ordered] struct {
	most  int
	list  []T
	bound bool // list[most-1] is the last of the most that were first so far
}

func (f *firstOf[T]) add(v T) {
	if f.bound && v >= f.list[f.most-1] {
		return
	}
	if f.list = append(f.list, v); len(f.list) >= 2*f.most {
		f.sorted()
		f.bound = true
	}
}

func (f *firstOf[T]) sorted() []T {
	slices.Sort(f.list)
	f.list = f.list[:min(len(f.list), f.most)]
	return f.list
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
	info, err := a.srv.topicEverywhere(r.Context(), name)
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
	from, err := startOf(query)
	if err != nil {
		return bad("%v", err)
	}
	if from.Since == nil && query.Has("epoch") {
		return bad("epoch without since: expected both, as they were received")
	}
	if err := a.srv.hub.waitFor(name, Start{Since: from.Since}); err != nil {
		return err
	}
	past, err := a.srv.hub.historyReply(name, from.Since, limit)
	if err != nil {
		return err
	}
	return reply(w, past)
}
