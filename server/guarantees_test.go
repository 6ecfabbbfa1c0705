package server

import (
	"fmt"
	"strings"
	"testing"
)

// What docs/guarantees.md says and no other test shows.

// fallBehind publishes to a topic, which a frozen client has, until enough is so.
func fallBehind(t *testing.T, s *Server, topic string, enough func() bool) {
	t.Helper()
	freezeOn(t, s, topic)
	for end := 10_000; !enough(); end-- {
		if end == 0 {
			t.Fatal("it is never enough")
		}
		mustPublish(t, s, topic, strings.Repeat("x", 10<<10))
		eventually(t, "it was handed out", func() bool { return s.engine.BacklogBytes() == 0 })
	}
}

// Cathy reads a topic and freezes, and some of what is published is dropped for her. When she thaws, her offsets
// jump by as much as was dropped, and nothing else says so.
func TestOffsetsTellWhatAPolicyDropped(t *testing.T) {
	t.Parallel()
	for _, p := range []Policy{PolicyDropOldest, PolicyDropNewest} {
		t.Run(string(p), func(t *testing.T) {
			opts := topics(TopicRule{Match: "log", History: 10_000, MaxBytes: -1})
			opts.Endpoints[0].SlowConsumer = SlowConsumer{Policy: p, MaxQueue: 64 << 10}
			s := start(t, opts)
			cathy := dialFrozen(t, s, "/ws?topic=log", speakJSON)
			cathy.said()
			fallBehind(t, s, "log", func() bool { return dropsOf(s) > 20 })
			newest := s.mustTopic(t, "log").Offset
			cathy.send(`{"id":1,"ping":{}}`)
			last, missed := uint64(0), uint64(0)
			for m := cathy.said(); m.Pong == nil; m = cathy.said() {
				if m.Topic != "log" || m.Offset <= last {
					t.Fatalf("after offset %d: %.100s", last, m.text)
				}
				missed += m.Offset - last - 1
				last = m.Offset
			}
			if reached := last == newest; reached != (p == PolicyDropOldest) {
				t.Errorf("the last was %d of %d", last, newest)
			}
			mustPublish(t, s, "log", "the end")
			if m := cathy.said(); m.Offset != newest+1 {
				t.Errorf("got %.100s, want %d", m.text, newest+1)
			}
			missed += newest - last
			if n := dropsOf(s); uint64(n) != missed {
				t.Errorf("%d offsets are missing, %d drops are counted", missed, n)
			}
		})
	}
}

// Cathy freezes and is closed for it. She comes back with the last position that she has, and then has all of it.
func TestASlowClientComesBack(t *testing.T) {
	opts := topics(TopicRule{Match: "log", History: 10_000, MaxBytes: -1})
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: 64 << 10}
	s := start(t, opts)
	cathy := dialFrozen(t, s, "/ws?topic=log", speakJSON)
	epoch := cathy.said().Subscribed.Epoch
	fallBehind(t, s, "log", func() bool { return s.Count() == 0 })
	last := uint64(0)
	next := func(m said) {
		t.Helper()
		if m.Offset != last+1 {
			t.Fatalf("got %.100s after offset %d", m.text, last)
		}
		last++
	}
	for m, err := cathy.trySaid(); err == nil; m, err = cathy.trySaid() {
		next(m)
	}
	newest := s.mustTopic(t, "log").Offset
	if dropsOf(s) == 0 || last == newest {
		t.Fatalf("nothing is missing: %d of %d", last, newest)
	}
	cathy = dial(t, s, "/ws", speakJSON)
	reply := cathy.ask(`{"id":1,"subscribe":{"topic":"log","since":%s}}`, fmt.Sprintf(`{"offset":%d,"epoch":%q}`, last, epoch))
	if reply.Subscribed == nil || !*reply.Subscribed.Recovered {
		t.Fatalf("the reply is %s", reply.text)
	}
	for last < newest {
		next(cathy.said())
	}
}
