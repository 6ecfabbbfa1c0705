package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/topic"
)

// Alice asked for the pattern before the topics were there, bob after. Both get every message once, each
// topic's in its order; cathy, who has the topic itself, gets the same.
func TestPatterns(t *testing.T) {
	s := start(t, topics())
	alice := dial(t, s, "/ws?topic=prices.*.AAPL", speakJSON)
	alice.said()
	cathy := dial(t, s, "/ws?topic=prices.eu.AAPL")
	subscribers(t, s, "prices.eu.AAPL", 1)
	for topic, n := range map[string]int{"prices.eu.AAPL": 2, "prices.us.AAPL": 1, "prices.AAPL": 0, "prices.eu.x.AAPL": 0, "prices.eu.MSFT": 0} {
		if r := mustPublish(t, s, topic, "one"); r.Subscribers != n || r.Offset != 1 {
			t.Errorf("%s: %+v, want %d subscribers", topic, r, n)
		}
	}
	got := map[string]bool{}
	for range 2 {
		m := alice.said()
		got[m.Topic] = true
		if m.Offset != 1 || string(m.Data) != `"one"` {
			t.Error(m.text)
		}
	}
	if !got["prices.eu.AAPL"] || !got["prices.us.AAPL"] {
		t.Error(got)
	}
	cathy.want("one")
	bob := dial(t, s, "/ws", speakJSON)
	if p := bob.subscribed("prices.>"); p != (Position{}) {
		t.Errorf("a pattern is at %v", p)
	}
	if r := mustPublish(t, s, "prices.eu.AAPL", "two"); r.Subscribers != 3 {
		t.Error(r)
	}
	for _, c := range []*client{alice, bob} {
		if m := c.said(); m.Topic != "prices.eu.AAPL" || m.Offset != 2 {
			t.Error(m.text)
		}
	}
	cathy.want("two")
	if n := len(s.Subscribers("prices.>")); n != 1 {
		t.Errorf("%d are on the pattern", n)
	}
	for _, c := range []*client{alice, bob} {
		_ = c.conn.Close()
	}
	eventually(t, "the patterns are forgotten", func() bool { return len(s.patternNames()) == 0 })
	if r := mustPublish(t, s, "prices.eu.AAPL", "three"); r.Subscribers != 1 {
		t.Error(r)
	}
	cathy.want("three")
}

func (s *Server) patternNames() (names []string) {
	s.hub.Mu.RLock()
	defer s.hub.Mu.RUnlock()
	for name := range s.hub.Patterns.Names.All() {
		names = append(names, name)
	}
	return names
}

// No message comes twice: what overlaps is refused, whichever was first.
func TestOverlaps(t *testing.T) {
	s := start(t, topics())
	for _, row := range []struct {
		first, second string
		code          string
	}{
		{"a.b", "a.*", "overlap"},
		{"a.*", "a.b", "overlap"},
		{"a.*", "*.b", "overlap"},
		{"a.>", "a.*.c", "overlap"},
		{">", "x", "overlap"},
		{"a.*", "a.*", "already_subscribed"},
		{"a.b", "a.b.c", ""},
		{"a.*", "a.*.c", ""},
		{"a.>", "a", ""},
		{"a.*.c", "a.b.*.d", ""},
	} {
		c := dial(t, s, "/ws", speakJSON)
		c.subscribed(row.first)
		got := c.ask(`{"id":1,"subscribe":{"topic":%q}}`, row.second)
		if code := errorCodeOf(got); code != row.code {
			t.Errorf("%s and then %s: %s", row.first, row.second, got.text)
		}
		if row.code == "overlap" { // and after the first has ended it may come
			c.ask(`{"id":2,"unsubscribe":{"topic":%q}}`, row.first)
			c.subscribed(row.second)
		}
	}
}

func errorCodeOf(m said) string {
	if m.Error == nil {
		return ""
	}
	return m.Error.Code
}

// While publishers publish to ten topics without pause, patterns and topics are subscribed to and left again, and all
// clients ask all there is to ask. None waits for ever, every stream is in its order, and in the end nothing is left.
func TestPatternsComeAndGo(t *testing.T) {
	opts := topics(TopicRule{Match: "t.>", History: 10})
	opts.Loops = 3
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: -1}
	s, _ := startChanged(t, opts, func(s *Server) { s.hub.Linger = time.Millisecond })
	var stop atomic.Bool
	var background, clients sync.WaitGroup
	for p := range 3 {
		background.Go(func() {
			for i := 0; !stop.Load(); i++ {
				if _, err := s.Publish(Publication{Topic: fmt.Sprintf("t.%d.x", (i+p)%10), Payload: []byte("x")}); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(50 * time.Microsecond)
			}
		})
	}
	for _, look := range []func(){
		func() { s.Subscribers("t.1.x"); s.Subscribers("t.>") },
		func() { _, _ = s.Topics("t.>"); s.Topic("t.2.x"); s.Stats() },
		func() { _, _ = s.History("t.3.x", Start{Last: 5}, 5); sweepAll(s.hub) },
		func() {
			for c := range s.Conns() {
				c.Subscriptions()
			}
		},
	} {
		background.Go(func() {
			for !stop.Load() {
				look()
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	names := []string{"t.1.x", "t.2.x", "t.*.x", "t.>", "*.3.x", ">"}
	rounds := 100
	if testenv.Race {
		rounds = 40
	}
	for n := range 12 {
		c := dial(t, s, "/ws", speakJSON)
		clients.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 11))
			for i := range rounds {
				name := names[r.IntN(len(names))]
				c.send(fmt.Sprintf(`{"id":"in","subscribe":{"topic":%q}}`, name))
				if err := c.follows(name, `"in"`, 0); err != nil {
					t.Errorf("client %d, round %d: %v", n, i, err)
					return
				}
				err := c.follows(name, "", r.IntN(20))
				c.send(fmt.Sprintf(`{"id":"out","unsubscribe":{"topic":%q}}`, name))
				c.send(`{"id":"ping","ping":{}}`)
				err = errors.Join(err, c.follows(name, `"out"`, 0))
				if m, _ := c.trySaid(); err != nil || m.Pong == nil {
					t.Errorf("client %d, round %d: %v; behind the end came %s", n, i, err, m.text)
					return
				}
			}
		})
	}
	clients.Wait()
	stop.Store(true)
	background.Wait()
	if names := s.patternNames(); len(names) > 0 {
		t.Errorf("the patterns %v are left", names)
	}
	eventually(t, "the loops have done it all", func() bool { return s.engine.BacklogBytes() == 0 })
	for part := range s.hub.Parts {
		for name, topic := range s.hub.Parts[part].Topics.All() {
			if len(topic.Locals) > 0 || topic.Subscribers > 0 {
				t.Errorf("%s has %d locals and %d subscribers", name, len(topic.Locals), topic.Subscribers)
			}
		}
	}
}

// follows reads messages of topics that match a name, in their order, until the reply to a request comes, or
// so many.
func (c *client) follows(name, id string, n int) error {
	next := map[string]uint64{}
	for i := 0; id != "" || i < n; i++ {
		m, err := c.trySaid()
		if err != nil {
			return err
		}
		if m.ID != nil {
			if string(m.ID) != id || m.Error != nil {
				return fmt.Errorf("instead of the reply to %s: %s", id, m.text)
			}
			return nil
		}
		if want := next[m.Topic]; !topic.Matches(name, m.Topic) || want != 0 && m.Offset != want {
			return fmt.Errorf("on %s came %s, want number %d", name, m.text, want)
		}
		next[m.Topic] = m.Offset + 1
	}
	return nil
}
