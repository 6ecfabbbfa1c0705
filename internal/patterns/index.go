// Package patterns finds which of very many patterns of topics match a topic, or cover another pattern.
package patterns

import (
	"strings"

	"carillon/internal/shrink"
)

// Index is a set of patterns with a value for each. It is a radix tree over levels, so it has at most two nodes for
// each pattern, however long that is. A topic of n levels meets at most 2^(n+1) nodes, and only those of patterns that
// begin as it does: about 50 ns for each. Names have to be those of topics or patterns; a pattern without wildcards is
// a topic. Its zero value is empty. It is not safe for concurrent use.
type Index[T any] struct{ root node[T] }

// node stands for the levels from the root to the end of its label.
type node[T any] struct {
	label string                       // one level or more, wildcards included, without the > at the end of a pattern
	kids  shrink.Map[string, *node[T]] // by the first level of their labels
	exact *T                           // the value of the pattern that ends here
	rest  *T                           // the value of the pattern that goes on with > here
}

// Add puts a pattern in, or changes its value, which is not nil.
func (x *Index[T]) Add(pattern string, value *T) {
	levels, rest := cut(pattern)
	n := x.root.grow(levels)
	if rest {
		n.rest = value
	} else {
		n.exact = value
	}
}

// Remove takes a pattern out that is in.
func (x *Index[T]) Remove(pattern string) {
	levels, rest := cut(pattern)
	x.root.prune(levels, rest)
}

// Match appends the values of the patterns that match a topic.
func (x *Index[T]) Match(topic string, list []*T) []*T {
	return x.root.match(topic, list)
}

// Covers reports whether another pattern of the index than name itself stands for all that name does.
func (x *Index[T]) Covers(name string) bool {
	return x.root.covers(name, true)
}

// cut splits off the > at the end.
func cut(pattern string) (levels string, rest bool) {
	if pattern == ">" {
		return "", true
	}
	return strings.CutSuffix(pattern, ".>")
}

// grow returns the node at the end of some levels, which is made if need be.
func (n *node[T]) grow(levels string) *node[T] {
	for levels != "" {
		first, _, _ := strings.Cut(levels, ".")
		kid := n.kids.Get(first)
		if kid == nil {
			kid = &node[T]{label: levels}
			n.adopt(kid)
			return kid
		}
		same := commonLevels(kid.label, levels)
		if same < len(kid.label) {
			upper := &node[T]{label: kid.label[:same]}
			kid.label = kid.label[same+1:]
			upper.adopt(kid)
			n.adopt(upper)
			kid = upper
		}
		n, levels = kid, strings.TrimPrefix(levels[same:], ".")
	}
	return n
}

func (n *node[T]) adopt(kid *node[T]) {
	first, _, _ := strings.Cut(kid.label, ".")
	n.kids.Set(first, kid)
}

// prune takes out a pattern, and the nodes that are not needed without it.
func (n *node[T]) prune(levels string, rest bool) {
	switch {
	case levels != "":
		first, _, _ := strings.Cut(levels, ".")
		kid := n.kids.Get(first)
		kid.prune(strings.TrimPrefix(levels[len(kid.label):], "."), rest)
		switch {
		case kid.exact != nil || kid.rest != nil:
		case kid.kids.Len() == 0:
			if n.kids.Delete(first); n.kids.Len() == 0 {
				n.kids.Clear()
			}
		case kid.kids.Len() == 1:
			for _, only := range kid.kids.All() {
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

// match appends the values of the patterns below a node that match what of a topic comes behind it.
func (n *node[T]) match(topic string, list []*T) []*T {
	if topic == "" {
		if n.exact != nil {
			list = append(list, n.exact)
		}
		return list
	}
	if n.rest != nil {
		list = append(list, n.rest)
	}
	if n.kids.Len() == 0 {
		return list
	}
	first, _, _ := strings.Cut(topic, ".")
	for _, key := range [...]string{first, "*"} {
		if kid := n.kids.Get(key); kid != nil {
			if behind, ok := cutLevels(topic, kid.label); ok {
				list = kid.match(behind, list)
			}
		}
	}
	return list
}

// covers reports whether a pattern below a node covers what of a name comes behind it. It is the name itself that is
// found at the end if all levels before were the same.
func (n *node[T]) covers(name string, same bool) bool {
	switch {
	case name == "":
		return n.exact != nil && !same
	case n.rest != nil && !(same && name == ">"):
		return true
	case n.kids.Len() == 0 || name == ">":
		return false
	}
	first, _, _ := strings.Cut(name, ".")
	if kid := n.kids.Get(first); kid != nil {
		if behind, ok := cutLevels(name, kid.label); ok && kid.covers(behind, same && strings.HasPrefix(name, kid.label)) {
			return true
		}
	}
	if first == "*" {
		return false // they are the same
	}
	if kid := n.kids.Get("*"); kid != nil {
		if behind, ok := cutLevels(name, kid.label); ok {
			return kid.covers(behind, false)
		}
	}
	return false
}

// cutLevels returns what of a name comes behind levels, which may have wildcards. Only > itself stands for a > in the
// name.
func cutLevels(topic, levels string) (behind string, ok bool) {
	for {
		l, moreLevels, more := strings.Cut(levels, ".")
		t, moreTopic, goesOn := strings.Cut(topic, ".")
		switch {
		case l != t && (l != "*" || t == ">"):
			return "", false
		case !more:
			return moreTopic, true
		case !goesOn:
			return "", false
		}
		levels, topic = moreLevels, moreTopic
	}
}
