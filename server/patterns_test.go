package server

import (
	"fmt"
	"slices"
	"testing"

	"carillon/server/internal/hub"
)

// A pattern that comes or goes makes a topic look again, but not at the patterns of others, and a list that stays the
// same is not made again.
func TestPatternsOfOthersCostNothing(t *testing.T) {
	s := start(t, topics())
	dial(t, s, "/ws?topic=t.*")
	subscribers(t, s, "t.*", 1)
	mustPublish(t, s, "t.1", "x")
	topic := s.hub.Find("t.1")
	defer topic.Mu.Unlock()
	other := &hub.Source{Name: "other.*"}
	allocations := testing.AllocsPerRun(100, func() {
		s.hub.Mu.Lock()
		s.hub.Version.Add(1)
		s.hub.Mu.Unlock()
		if list := s.hub.PatternsOf(topic); len(list) != 1 || list[0] == other {
			t.Errorf("%v", list)
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

// A topic lets go of patterns that are gone, so that they do not take up memory, and does not look for others
// meanwhile. The list that a publication may hold stays as it is.
func TestTopicsLetGoOfPatterns(t *testing.T) {
	s := start(t, topics())
	leaves := dial(t, s, "/ws", speakJSON)
	leaves.ask(`{"id":1,"subscribe":{"topic":"t.>"}}`)
	dial(t, s, "/ws?topic=t.*")
	subscribers(t, s, "t.*", 1)
	mustPublish(t, s, "t.1", "x")
	topic := s.hub.Find("t.1")
	list := topic.Patterns
	topic.Mu.Unlock()
	if len(list) != 2 {
		t.Fatalf("%d patterns", len(list))
	}
	before := slices.Clone(list)

	dial(t, s, "/ws?topic=*.1")
	subscribers(t, s, "*.1", 1)
	leaves.ask(`{"id":2,"unsubscribe":{"topic":"t.>"}}`)
	subscribers(t, s, "t.>", 0)
	s.hub.Find("t.1")
	defer topic.Mu.Unlock()
	if s.hub.ForgetPatternsOf(topic); len(topic.Patterns) != 1 || topic.Patterns[0].Name != "t.*" {
		t.Errorf("%d patterns are left", len(topic.Patterns))
	}
	if !slices.Equal(list, before) {
		t.Error("the list that was in use has changed")
	}
	if list := s.hub.PatternsOf(topic); len(list) != 2 {
		t.Errorf("a message goes to %d patterns", len(list))
	}
}

// BenchmarkPublishWhilePatternsChange publishes to a thousand topics while a pattern comes and goes before each
// publish, with so many patterns of others.
func BenchmarkPublishWhilePatternsChange(b *testing.B) {
	for _, others := range []int{0, 1000, 10_000} {
		b.Run(fmt.Sprintf("patterns=%d", others), func(b *testing.B) {
			s, err := New(topics())
			if err != nil {
				b.Fatal(err)
			}
			h := s.hub
			for i := range others {
				h.OpenPattern(fmt.Sprintf("others.%d.*", i)).Mu.Unlock()
			}
			names := make([]string, 1000)
			for i := range names {
				names[i] = fmt.Sprintf("prices.eu.%d", i)
			}
			payload := []byte("x")
			for i := 0; b.Loop(); i++ {
				p := h.OpenPattern("mine.*")
				p.Mu.Unlock()
				h.ForgetPattern(p)
				if _, err := s.Publish(Publication{Topic: names[i%1000], Payload: payload}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
