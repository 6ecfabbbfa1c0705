package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/hub"
)

func idleAfter(linger time.Duration) func(*Server) { return func(s *Server) { s.hub.Linger = linger } }

// A topic that never had a message is gone with its last subscriber, however that goes. A client that comes back goes
// on from the position that it was told, unless there was a message.
func TestATopicWithoutAMessageIsGoneAtOnce(t *testing.T) {
	s, _ := startChanged(t, topics(), idleAfter(time.Hour))
	gone := func(how string) {
		t.Helper()
		eventually(t, how+": no topic is left", func() bool { return s.hub.Count.Load() == 0 })
	}
	c := dial(t, s, "/ws", speakJSON)
	var told Position
	for i := range 300 {
		at := c.subscribed("room")
		if i > 0 && at != told {
			t.Fatalf("%+v, and before %+v", at, told)
		}
		told = at
		c.ask(`{"id":1,"unsubscribe":{"topic":"room"}}`)
		c.subscribed(fmt.Sprint("room.", i))
		c.ask(`{"id":1,"unsubscribe":{"topic":%q}}`, fmt.Sprint("room.", i))
	}
	gone("unsubscribed")
	for _, path := range []string{"/ws?topic=a&topic=b", "/ws?topic=room"} {
		_ = dial(t, s, path).conn.Close()
		gone("a connection that is closed")
	}
	st := openStream(t, s, "/ws?topic=room")
	st.subscribed()
	_ = st.conn.Close()
	gone("a stream of events")

	if got := c.since("room", told); !*got.Subscribed.Recovered || *got.Subscribed.Offset != 0 {
		t.Errorf("nothing was missed: %s", got.text)
	}
	c.ask(`{"id":1,"unsubscribe":{"topic":"room"}}`)
	mustPublish(t, s, "room", "x")
	if got := c.since("room", told); *got.Subscribed.Recovered || *got.Subscribed.Offset != 1 {
		t.Errorf("a message was missed: %s", got.text)
	}
	c.ask(`{"id":1,"unsubscribe":{"topic":"room"}}`)
	s.hub.ForgetIdle(s.engine.Uptime() + 1)
	gone("forgotten")
	if got := c.since("room", told); *got.Subscribed.Recovered {
		t.Errorf("a message was missed that the topic was forgotten with: %s", got.text)
	}
}

// Idle topics leave their places to new ones, the oldest first, and no client is refused for them. Topics in use stay.
func TestIdleTopicsMakeRoom(t *testing.T) {
	opts := topics(TopicRule{Match: "log.>", History: 1})
	opts.Limits.MaxTopics = 10
	s, _ := startChanged(t, opts, idleAfter(time.Hour))
	alice := dial(t, s, "/ws", speakJSON)
	alice.subscribed("used")
	first := mustPublish(t, s, "used", "x")
	alice.said()
	kept := mustPublish(t, s, "log.a", "x")

	mallory := dial(t, s, "/ws", speakJSON)
	var heard []Position
	for i := range 4 { // a client that subscribes, hears something, and leaves
		name := fmt.Sprint("heard.", i)
		mallory.subscribed(name)
		heard = append(heard, position(mustPublish(t, s, name, "x")))
		mallory.said()
		mallory.ask(`{"id":1,"unsubscribe":{"topic":%q}}`, name)
	}
	for i := range 100 { // and topics without a subscriber
		mustPublish(t, s, fmt.Sprint("unheard.", i), "x")
	}
	if n := s.hub.Count.Load(); n != 10 {
		t.Errorf("there are %d topics", n)
	}
	for i, at := range heard { // for which those that were heard have not gone
		if info, ok := s.Topic(fmt.Sprint("heard.", i)); !ok || info.Position != at {
			t.Errorf("heard.%d is %+v, want %+v", i, info.Position, at)
		}
	}
	for i := range 4 { // subscribers take the places of these
		mallory.subscribed(fmt.Sprint("new.", i))
	}
	if _, ok := s.Topic("heard.0"); !ok {
		t.Error("a topic that was heard went before those that were not")
	}
	mallory.subscribed("new.4")
	if _, ok := s.Topic("heard.0"); ok {
		t.Error("the oldest one is still there")
	}
	if _, ok := s.Topic("heard.1"); !ok {
		t.Error("more went than one")
	}
	for i := 5; i < 8; i++ {
		mallory.subscribed(fmt.Sprint("new.", i))
	}
	if got := mallory.ask(`{"id":1,"subscribe":{"topic":"new.8"}}`); errorCodeOf(got) != "too_many_topics" {
		t.Error(got.text)
	}
	if info, _ := s.Topic("used"); info.Position != position(first) {
		t.Errorf("the topic in use is %+v", info)
	}
	if info, _ := s.Topic("log.a"); info.Position != position(kept) || info.History != 1 {
		t.Errorf("the topic with a history is %+v", info)
	}
}

// Topics that are published to and that no subscriber hears are bounded. One that is used all the time goes on.
func TestTopicsThatNobodyHears(t *testing.T) {
	s, _ := startChanged(t, topics(), func(s *Server) { s.hub.MaxUnheard = 100 })
	var last Receipt
	for i := range 5000 {
		mustPublish(t, s, fmt.Sprint("one.", i), "x")
		if i%20 == 0 {
			last = mustPublish(t, s, "often", "x")
		}
	}
	if n := s.hub.Count.Load(); n > 110 {
		t.Errorf("%d topics are left", n)
	}
	if last.Offset != 250 {
		t.Errorf("the topic that is used often is at %d", last.Offset)
	}
	c := dial(t, s, "/ws?topic=>") // a subscriber of a pattern gets all of them
	subscribers(t, s, ">", 1)
	for i := range 500 {
		mustPublish(t, s, fmt.Sprint("two.", i), "x")
		c.want("x")
	}
	if n := s.hub.Count.Load(); n < 500 {
		t.Errorf("%d topics are left", n)
	}
}

// In a cluster topics without a message linger, since another server's messages come only for topics that are
// followed. They are bounded too, and what they followed ends.
func TestClusterIdleTopicsAreBounded(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log.>", History: 5})
	opts.Limits.MaxTopics = 50
	s := clustered(t, n, 1, opts, func(s *Server) { s.hub.Linger, s.hub.MaxUnheard = time.Hour, 10 })[0]
	c := dial(t, s, "/ws", speakJSON)
	for _, name := range []string{"a.%d", "log.%d"} {
		for i := range 100 {
			topic := fmt.Sprintf(name, i)
			c.subscribed(topic)
			c.ask(`{"id":1,"unsubscribe":{"topic":%q}}`, topic)
		}
	}
	if n := s.hub.Count.Load(); n > 20 {
		t.Errorf("%d topics are left", n)
	}
	eventually(t, "the others are not followed", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(fakeOf(s).names) <= 20
	})
	if got := c.ask(`{"id":1,"subscribe":{"topic":"a.1"}}`); got.Subscribed == nil {
		t.Error(got.text)
	}
	mustPublish(t, s, "a.1", "x")
	c.wants("x")
}

// In a cluster patterns linger, too, but only while there are few.
func TestClusterIdlePatternsAreBounded(t *testing.T) {
	opts := topics()
	s := clustered(t, newFakeNet(1), 1, opts, unchanged)[0]
	c := dial(t, s, "/ws", speakJSON)
	for i := range hub.MaxIdlePatterns + 200 {
		c.subscribed(fmt.Sprintf("p.%d.*", i))
		c.ask(`{"id":1,"unsubscribe":{"topic":"p.%d.*"}}`, i)
	}
	if n := len(s.patternNames()); n > hub.MaxIdlePatterns+1 {
		t.Errorf("%d patterns are left", n)
	}
	c.subscribed("x.*")
	mustPublish(t, s, "x.y", "x")
	c.wants("x")
}

// Of many topics at once nothing is left when they are gone, neither of their parts' lists nor of what queues them.
func TestTopicsThatAreGoneLeaveNoMemory(t *testing.T) {
	count := 300_000
	if testenv.Race {
		count = 20_000
	}
	s, _ := startChanged(t, topics(), func(s *Server) { s.hub.Linger, s.hub.MaxUnheard = time.Hour, count })
	before := heapBytes()
	names := strings.Repeat("n", 10)
	for i := range count {
		mustPublish(t, s, fmt.Sprint(names, i), "x")
	}
	full := heapBytes() - before
	eventually(t, "no topic is left", func() bool {
		for part := range s.hub.Parts {
			s.hub.Sweep(time.Now().Add(2*time.Hour), part)
		}
		return s.hub.Count.Load() == 0
	})
	if left := heapBytes() - before; left > full/50 && !testenv.Race {
		t.Errorf("%d B are left of %d B", left, full)
	}
	t.Logf("%d B for each topic", full/int64(count))
}
