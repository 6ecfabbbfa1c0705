package server

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// The index finds what looking at each pattern would, whatever came and went before, and keeps nothing of what is gone.
func TestPatternIndexAgainstMatches(t *testing.T) {
	var index patternIndex
	r := rand.New(rand.NewPCG(1, 2))
	name := func(wild bool) string {
		levels := make([]string, 1+r.IntN(5))
		for i := range levels {
			levels[i] = []string{"a", "b", "ab", "c"}[r.IntN(4)]
			if wild && r.IntN(3) == 0 {
				levels[i] = "*"
			}
		}
		if wild && r.IntN(3) == 0 {
			levels[len(levels)-1] = ">"
		}
		return strings.Join(levels, ".")
	}
	live := map[string]*source{}
	look := func() {
		t.Helper()
		for range 20 {
			topic := name(false)
			var got, want []string
			for _, p := range index.match(topic, nil) {
				got = append(got, p.name)
			}
			for p := range live {
				if matches(p, topic) {
					want = append(want, p)
				}
			}
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Fatalf("%s matches %v, want %v, of %d", topic, got, want, len(live))
			}
		}
	}
	for range 1000 {
		p := name(true)
		if live[p] == nil {
			live[p] = &source{name: p}
			index.add(live[p])
		} else {
			index.remove(live[p])
			delete(live, p)
		}
		look()
		if n := index.root.nodes(); n > 2*len(live)+1 {
			t.Fatalf("%d nodes for %d patterns", n, len(live))
		}
	}
	for _, p := range live {
		index.remove(p)
	}
	if n := index.root.nodes(); n != 1 || index.names.Len() != 0 || index.root.kids != nil {
		t.Errorf("%d nodes and %d names are left", n, index.names.Len())
	}
}

// nodes counts a node and what is below it.
func (n *patternNode) nodes() int {
	count := 1
	for _, kid := range n.kids {
		count += kid.nodes()
	}
	return count
}

// A pattern that comes or goes makes a topic look again, but not at the patterns of others, and a list that stays the
// same is not made again.
func TestPatternsOfOthersCostNothing(t *testing.T) {
	s := start(t, topics())
	dial(t, s, "/ws?topic=t.*")
	subscribers(t, s, "t.*", 1)
	mustPublish(t, s, "t.1", "x")
	topic := s.hub.find("t.1")
	defer topic.mu.Unlock()
	other := &source{name: "other.*"}
	allocations := testing.AllocsPerRun(100, func() {
		s.hub.mu.Lock()
		s.hub.version.Add(1)
		s.hub.mu.Unlock()
		if list := s.hub.patternsOf(topic); len(list) != 1 || list[0] == other {
			t.Errorf("%v", list)
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

// A topic lets go of patterns that are gone, so that they do not take up memory, and does not look for others meanwhile. The
// list that a publication may hold stays as it is.
func TestTopicsLetGoOfPatterns(t *testing.T) {
	s := start(t, topics())
	leaves := dial(t, s, "/ws", speakJSON)
	leaves.ask(`{"id":1,"subscribe":{"topic":"t.>"}}`)
	dial(t, s, "/ws?topic=t.*")
	subscribers(t, s, "t.*", 1)
	mustPublish(t, s, "t.1", "x")
	topic := s.hub.find("t.1")
	list := topic.patterns
	topic.mu.Unlock()
	if len(list) != 2 {
		t.Fatalf("%d patterns", len(list))
	}
	before := slices.Clone(list)

	dial(t, s, "/ws?topic=*.1")
	subscribers(t, s, "*.1", 1)
	leaves.ask(`{"id":2,"unsubscribe":{"topic":"t.>"}}`)
	subscribers(t, s, "t.>", 0)
	s.hub.find("t.1")
	defer topic.mu.Unlock()
	if s.hub.forgetPatternsOf(topic); len(topic.patterns) != 1 || topic.patterns[0].name != "t.*" {
		t.Errorf("%d patterns are left", len(topic.patterns))
	}
	if !slices.Equal(list, before) {
		t.Error("the list that was in use has changed")
	}
	if list := s.hub.patternsOf(topic); len(list) != 2 {
		t.Errorf("a message goes to %d patterns", len(list))
	}
}

// BenchmarkPublishWhilePatternsChange publishes to a thousand topics while a pattern comes and goes before each publish,
// beside so many patterns of others.
func BenchmarkPublishWhilePatternsChange(b *testing.B) {
	for _, others := range []int{0, 1000, 10_000} {
		b.Run(fmt.Sprintf("patterns=%d", others), func(b *testing.B) {
			s, err := New(topics())
			if err != nil {
				b.Fatal(err)
			}
			h := s.hub
			for i := range others {
				h.openPattern(fmt.Sprintf("others.%d.*", i)).mu.Unlock()
			}
			names := make([]string, 1000)
			for i := range names {
				names[i] = fmt.Sprintf("prices.eu.%d", i)
			}
			payload := []byte("x")
			for i := 0; b.Loop(); i++ {
				p := h.openPattern("mine.*")
				p.mu.Unlock()
				h.forgetPattern(p)
				if _, err := s.Publish(Publication{Topic: names[i%1000], Payload: payload}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
