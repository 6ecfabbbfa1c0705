package hub

import (
	"slices"

	"carillon/internal/patterns"
	"carillon/internal/shrink"
)

// patternIndex is the patterns that have subscribers. A topic meets only those that begin as it does, about 50
// ns for each, which is why TopicAccess.MaxPatterns bounds them. Its zero value is empty.
type patternIndex struct {
	index patterns.Index[Source]
	Names shrink.Map[string, *Source]
}

// add enters a pattern.
func (x *patternIndex) add(p *Source) {
	x.Names.Set(p.Name, p)
	x.index.Add(p.Name, p)
}

// remove takes a pattern out.
func (x *patternIndex) remove(p *Source) {
	x.Names.Delete(p.Name)
	x.index.Remove(p.Name)
}

// match appends the patterns that match a topic.
func (x *patternIndex) match(topic string, list []*Source) []*Source {
	return x.index.Match(topic, list)
}

// OpenPattern returns a pattern, which is made if need be, locked.
func (h *Hub) OpenPattern(name string) *Source {
	h.Mu.Lock()
	defer h.Mu.Unlock()
	p := h.Patterns.Names.Get(name)
	if p == nil {
		p = &Source{Name: string([]byte(name))}
		h.Remote.Attach(p)
		h.Patterns.add(p)
		h.Version.Add(1)
	}
	p.Mu.Lock() // under h.mu, so that it is not forgotten meanwhile
	return p
}

// findPattern returns a pattern that has subscribers, locked, or nil.
func (h *Hub) findPattern(name string) *Source {
	h.Mu.RLock()
	defer h.Mu.RUnlock()
	p := h.Patterns.Names.Get(name)
	if p != nil {
		p.Mu.Lock()
	}
	return p
}

// ForgetPattern forgets a pattern that has no subscribers.
func (h *Hub) ForgetPattern(p *Source) {
	h.Mu.Lock()
	defer h.Mu.Unlock()
	p.Mu.Lock()
	defer p.Mu.Unlock()
	if p.Subscribers == 0 && h.Patterns.Names.Get(p.Name) == p && !h.Remote.lingers(p) {
		h.removePattern(p)
	}
}

// removePattern takes a pattern out. The caller holds h.mu and p.mu.
func (h *Hub) removePattern(p *Source) {
	h.Patterns.remove(p)
	h.Version.Add(1)
	h.Remote.unfollow(p)
}

// PatternsOf returns the patterns that match a topic. The list stays as it is. The caller holds the topic's mu.
func (h *Hub) PatternsOf(t *topicState) []*Source {
	if h.Version.Load() == t.version {
		return t.Patterns
	}
	var some [8]*Source
	h.Mu.RLock()
	t.version = h.Version.Load()
	found := h.Patterns.match(t.Name, some[:0])
	h.Mu.RUnlock()
	if !slices.Equal(found, t.Patterns) { // most patterns that come and go are not the topic's
		t.Patterns = slices.Clone(found)
	}
	return t.Patterns
}

// ForgetPatternsOf lets go of patterns that are gone, which take up memory. It does not look for new ones: all topics
// together have too many. The caller holds the topic's mu.
func (h *Hub) ForgetPatternsOf(t *topicState) {
	if len(t.Patterns) == 0 || h.Version.Load() == t.version {
		return
	}
	gone := func(p *Source) bool {
		p.Mu.Lock()
		defer p.Mu.Unlock()
		return p.Subscribers == 0
	}
	if slices.ContainsFunc(t.Patterns, gone) {
		t.Patterns = slices.DeleteFunc(slices.Clone(t.Patterns), gone)
	}
}

// matched reports whether a pattern matches a topic.
func (h *Hub) matched(topic string) bool {
	var some [8]*Source
	h.Mu.RLock()
	defer h.Mu.RUnlock()
	return len(h.Patterns.match(topic, some[:0])) > 0
}
