package server

import (
	"slices"

	"carillon/internal/patterns"
	"carillon/internal/shrink"
)

// patternIndex is the patterns that have subscribers. A topic meets only those that begin as it does, about 50
// ns for each, which is why TopicAccess.MaxPatterns bounds them. Its zero value is empty.
type patternIndex struct {
	index patterns.Index[source]
	names shrink.Map[string, *source]
}

func (x *patternIndex) add(p *source) {
	x.names.Set(p.name, p)
	x.index.Add(p.name, p)
}

func (x *patternIndex) remove(p *source) {
	x.names.Delete(p.name)
	x.index.Remove(p.name)
}

// match appends the patterns that match a topic.
func (x *patternIndex) match(topic string, list []*source) []*source {
	return x.index.Match(topic, list)
}

// openPattern returns a pattern, which is made if need be, locked.
func (h *hub) openPattern(name string) *source {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.patterns.names.Get(name)
	if p == nil {
		p = &source{name: string([]byte(name))}
		h.remote.attach(p)
		h.patterns.add(p)
		h.version.Add(1)
	}
	p.mu.Lock() // under h.mu, so that it is not forgotten meanwhile
	return p
}

// findPattern returns a pattern that has subscribers, locked, or nil.
func (h *hub) findPattern(name string) *source {
	h.mu.RLock()
	defer h.mu.RUnlock()
	p := h.patterns.names.Get(name)
	if p != nil {
		p.mu.Lock()
	}
	return p
}

// forgetPattern forgets a pattern that has no subscribers.
func (h *hub) forgetPattern(p *source) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.subscribers == 0 && h.patterns.names.Get(p.name) == p && !h.remote.lingers(p) {
		h.removePattern(p)
	}
}

// removePattern takes a pattern out. The caller holds h.mu and p.mu.
func (h *hub) removePattern(p *source) {
	h.patterns.remove(p)
	h.version.Add(1)
	h.remote.unfollow(p)
}

// patternsOf returns the patterns that match a topic. The list stays as it is. The caller holds the topic's mu.
func (h *hub) patternsOf(t *topicState) []*source {
	if h.version.Load() == t.version {
		return t.patterns
	}
	var some [8]*source
	h.mu.RLock()
	t.version = h.version.Load()
	found := h.patterns.match(t.name, some[:0])
	h.mu.RUnlock()
	if !slices.Equal(found, t.patterns) { // most patterns that come and go are not the topic's
		t.patterns = slices.Clone(found)
	}
	return t.patterns
}

// forgetPatternsOf lets go of patterns that are gone, which take up memory. It does not look for new ones: all topics
// together have too many. The caller holds the topic's mu.
func (h *hub) forgetPatternsOf(t *topicState) {
	if len(t.patterns) == 0 || h.version.Load() == t.version {
		return
	}
	gone := func(p *source) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.subscribers == 0
	}
	if slices.ContainsFunc(t.patterns, gone) {
		t.patterns = slices.DeleteFunc(slices.Clone(t.patterns), gone)
	}
}

// matched reports whether a pattern matches a topic.
func (h *hub) matched(topic string) bool {
	var some [8]*source
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.patterns.match(topic, some[:0])) > 0
}
