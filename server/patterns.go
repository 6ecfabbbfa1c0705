package server

import (
	"slices"
	"strings"

	"carillon/internal/shrink"
)

// patternIndex finds the patterns that match a topic. It is a radix tree over levels, so it has at most two nodes for each
// pattern, however long that is. A topic of n levels meets at most 2^(n+1) nodes, and only those of patterns that begin as
// it does: about 50 ns for each, which is why TopicAccess.MaxPatterns bounds them. Its zero value is empty.
type patternIndex struct {
	root  patternNode
	names shrink.Map[string, *source]
}

// patternNode stands for the levels from the root to the end of its label.
type patternNode struct {
	label string                  // one level or more, wildcards included, without the > at the end of a pattern
	kids  map[string]*patternNode // by the first level of their labels
	exact *source                 // the pattern that ends here
	rest  *source                 // the pattern that goes on with > here
}

// cutPattern splits off the > at the end.
func cutPattern(pattern string) (levels string, rest bool) {
	if pattern == ">" {
		return "", true
	}
	return strings.CutSuffix(pattern, ".>")
}

func (x *patternIndex) add(p *source) {
	x.names.Set(p.name, p)
	levels, rest := cutPattern(p.name)
	n := x.root.grow(levels)
	if rest {
		n.rest = p
	} else {
		n.exact = p
	}
}

func (x *patternIndex) remove(p *source) {
	x.names.Delete(p.name)
	levels, rest := cutPattern(p.name)
	x.root.prune(levels, rest)
}

// grow returns the node at the end of some levels, which is made if need be.
func (n *patternNode) grow(levels string) *patternNode {
	for levels != "" {
		first, _, _ := strings.Cut(levels, ".")
		kid := n.kids[first]
		if kid == nil {
			kid = &patternNode{label: levels}
			n.adopt(kid)
			return kid
		}
		same := commonLevels(kid.label, levels)
		if same < len(kid.label) {
			upper := &patternNode{label: kid.label[:same]}
			kid.label = kid.label[same+1:]
			upper.adopt(kid)
			n.adopt(upper)
			kid = upper
		}
		n, levels = kid, strings.TrimPrefix(levels[same:], ".")
	}
	return n
}

func (n *patternNode) adopt(kid *patternNode) {
	if n.kids == nil {
		n.kids = map[string]*patternNode{}
	}
	first, _, _ := strings.Cut(kid.label, ".")
	n.kids[first] = kid
}

// prune takes out a pattern, and the nodes that are not needed without it.
func (n *patternNode) prune(levels string, rest bool) {
	switch {
	case levels != "":
		first, _, _ := strings.Cut(levels, ".")
		kid := n.kids[first]
		kid.prune(strings.TrimPrefix(levels[len(kid.label):], "."), rest)
		switch {
		case kid.exact != nil || kid.rest != nil:
		case len(kid.kids) == 0:
			if delete(n.kids, first); len(n.kids) == 0 {
				n.kids = nil
			}
		case len(kid.kids) == 1:
			for _, only := range kid.kids {
				only.label = kid.label + "." + only.label
				n.adopt(only)
			}
		}
	case rest:
		n.rest = nil
	default:
		n.exact = nil
	}
}

// commonLevels is the length of the whole levels with which two names begin alike, without the dot behind them.
func commonLevels(a, b string) int {
	end := 0
	for i := 0; ; i++ {
		endA, endB := i == len(a) || a[i] == '.', i == len(b) || b[i] == '.'
		if endA && endB {
			end = i
		}
		if i == len(a) || i == len(b) || a[i] != b[i] {
			return end
		}
	}
}

// match appends the patterns that match a topic.
func (x *patternIndex) match(topic string, list []*source) []*source {
	return x.root.match(topic, list)
}

// match appends the patterns below a node that match what of a topic comes behind it.
func (n *patternNode) match(topic string, list []*source) []*source {
	if topic == "" {
		if n.exact != nil {
			list = append(list, n.exact)
		}
		return list
	}
	if n.rest != nil {
		list = append(list, n.rest)
	}
	if n.kids == nil {
		return list
	}
	first, _, _ := strings.Cut(topic, ".")
	for _, key := range [...]string{first, "*"} {
		if kid := n.kids[key]; kid != nil {
			if behind, ok := cutLevels(topic, kid.label); ok {
				list = kid.match(behind, list)
			}
		}
	}
	return list
}

// cutLevels returns what of a topic comes behind levels, which may have wildcards.
func cutLevels(topic, levels string) (behind string, ok bool) {
	for {
		l, moreLevels, more := strings.Cut(levels, ".")
		t, moreTopic, goesOn := strings.Cut(topic, ".")
		switch {
		case l != "*" && l != t:
			return "", false
		case !more:
			return moreTopic, true
		case !goesOn:
			return "", false
		}
		levels, topic = moreLevels, moreTopic
	}
}

// openPattern returns a pattern, which is made if need be, locked.
func (h *hub) openPattern(name string) *source {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.patterns.names.Get(name)
	if p == nil {
		p = &source{name: string([]byte(name))}
		h.cluster.tie(p)
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
	if p.subscribers == 0 && h.patterns.names.Get(p.name) == p && !h.cluster.holds(p) {
		h.removePattern(p)
	}
}

// removePattern takes a pattern out. The caller holds h.mu and p.mu.
func (h *hub) removePattern(p *source) {
	h.patterns.remove(p)
	h.version.Add(1)
	if h.cluster != nil {
		h.cluster.unfollow(p)
	}
}

// patternsOf returns the patterns that match a topic. The list stays as it is. The caller holds the topic's mu.
func (h *hub) patternsOf(t *topic) []*source {
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
func (h *hub) forgetPatternsOf(t *topic) {
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

// matched says whether a pattern matches a topic.
func (h *hub) matched(topic string) bool {
	var some [8]*source
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.patterns.match(topic, some[:0])) > 0
}
