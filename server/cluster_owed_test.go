package server

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
)

// followedByPattern is two servers that forget unused topics, and a client that follows log.* at the first. It has had
// the first message of log.a.
func followedByPattern(t *testing.T) (n *fakeNet, list []*Server, c *client) {
	t.Helper()
	n = newFakeNet(1)
	list = clustered(t, n, 2, topics(TopicRule{Match: "log.*", History: 10}), quickly)
	c = dial(t, list[0], "/ws", speakJSON)
	c.subscribed("log.*")
	mustPublish(t, list[1], "log.a", "0")
	c.wants("0")
	return n, list, c
}

// Only a pattern is followed, and NATS is away for so long that the topic would be forgotten.
func TestClusterPatternAfterALongOutage(t *testing.T) {
	_, list, c := followedByPattern(t)
	fakeOf(list[0]).cut(true)
	mustPublish(t, list[1], "log.a", "1")
	time.Sleep(50 * time.Millisecond)
	sweepAll(list[0].hub)
	fakeOf(list[0]).cut(false)
	c.wants("1")
	eventually(t, "and then it is forgotten", func() bool {
		sweepAll(list[0].hub)
		_, exists := list[0].Topic("log.a")
		return !exists
	})
}

// A topic is followed by a pattern and by its name, and by the pattern alone when a hole is known and cannot be filled
// yet.
func TestClusterHoleWhileATopicIsLetGoOf(t *testing.T) {
	n, list, c := followedByPattern(t)
	s := list[0]
	if _, err := s.History("log.a", Start{}, 1); err != nil {
		t.Fatal(err)
	}
	n.set(func() { n.failing, n.lost = 1, 1 })
	mustPublish(t, list[1], "log.a", "1")
	n.set(func() { n.lost = 0 })
	mustPublish(t, list[1], "log.a", "2")
	eventually(t, "it is let go of", func() bool {
		sweepAll(s.hub)
		a := s.hub.Find("log.a")
		if a == nil {
			t.Fatal("it is forgotten")
		}
		defer a.Mu.Unlock()
		return a.Link.State == hub.LinkNone
	})
	n.set(func() { n.failing = 0 })
	c.wants("1", "2")
}

// lateBroker hands over later what it has loaded at first.
type lateBroker struct {
	*fakeBroker
	loaded, hand chan struct{}
	once         bool
}

func (b *lateBroker) Load(topic string, rule int, after uint64, done func(Kept, error)) {
	if b.once {
		b.fakeBroker.Load(topic, rule, after, done)
		return
	}
	b.once = true
	go func() {
		got, err := b.load(topic, after)
		close(b.loaded)
		<-b.hand
		done(got, err)
	}()
}

// A message is lost, and all has to be looked at again, while a topic is loaded for the first time.
func TestClusterResyncDuringTheFirstLoad(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log.*", History: 10})
	other := clustered(t, n, 1, opts, unchanged)[0]
	b := &lateBroker{fakeBroker: n.newBroker(), loaded: make(chan struct{}), hand: make(chan struct{})}
	opts.Broker = b
	s, _ := startChanged(t, opts, unchanged)
	c := dial(t, s, "/ws", speakJSON)
	// From a position on: it may take a moment from the end of the load until it subscribes.
	c.send(fmt.Sprintf(`{"id":1,"subscribe":{"topic":"log.a","since":{"offset":%d,"epoch":%q}}}`, n.offset, n.epoch))
	<-b.loaded
	n.set(func() { n.lost = 1 })
	mustPublish(t, other, "log.a", "1")
	n.set(func() { n.lost = 0 })
	b.node.Resync("messages were lost")
	eventually(t, "all has been looked at", func() bool {
		f := s.hub.Remote.(*hub.Follower)
		f.Mu.Lock()
		defer f.Mu.Unlock()
		return !f.Resyncing
	})
	close(b.hand)
	if m := c.said(); m.Subscribed == nil {
		t.Fatal(m.text)
	}
	c.wants("1")
}

// There is no room for another topic: a client that reads one is told so, and does not get an empty one.
func TestClusterReadWithoutRoom(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log.*", History: 10})
	other := clustered(t, n, 1, opts, unchanged)[0]
	opts.Limits.MaxTopics = 1
	s := clustered(t, n, 1, opts, unchanged)[0]
	mustPublish(t, other, "log.a", "1")
	dial(t, s, "/ws?topic=passing")
	subscribers(t, s, "passing", 1)
	if past, err := s.History("log.a", Start{Last: 10}, 10); !errors.Is(err, ErrTooManyTopics) {
		t.Errorf("%v, %v", past, err)
	}
	c := dial(t, s, "/ws", speakJSON)
	for _, what := range []string{"history", "subscribe"} {
		if got := c.ask(`{"id":1,%q:{"topic":"log.a"}}`, what); got.Error == nil || got.Error.Code != "too_many_topics" {
			t.Error(got.text)
		}
	}
}

// Readers do not wait for the next try, and whether that is of use or not, there is one chain of tries and not one for
// each.
func TestClusterReadersDoNotMultiplyLoads(t *testing.T) {
	t.Parallel()
	const readers = 300
	n := newFakeNet(1)
	s := clustered(t, n, 1, topics(TopicRule{Match: "log", History: 10}), unchanged)[0]
	mustPublish(t, s, "log", "x")
	if _, err := s.History("log", Start{}, 1); err != nil {
		t.Fatal(err)
	}
	n.set(func() { n.failing = 1 })
	fakeOf(s).node.Resync("it has to be looked at")
	eventually(t, "it is tried", func() bool { return s.hub.Remote.Counts().LoadFailures.Load() > 0 })
	for range readers {
		if _, err := s.History("log", Start{}, 1); !errors.Is(err, ErrNoCluster) {
			t.Fatal(err)
		}
	}
	before := s.hub.Remote.Counts().Loads.Load()
	time.Sleep(6 * time.Second) // by when each has been tried again
	if more := s.hub.Remote.Counts().Loads.Load() - before; more > 10 {
		t.Errorf("%d loads without readers", more)
	}
}

// Only subscribers that were there before a gap are told of it. Those that have joined since, when the loop comes to
// it, are not.
func TestClusterGapConcernsWhoWasThere(t *testing.T) {
	opts := topics()
	opts.Loops = 1
	s := start(t, opts)
	before := dial(t, s, "/ws?topic=room")
	c := onlyConn(t, s, "/ws")
	subscribers(t, s, "room", 1)
	room := s.hub.Find("room")
	room.Seq++ // the gap's
	l := room.Locals[0]
	gap := &reactor.Command{Kind: reactor.CommandGap, Seq: room.Seq, Payload: (&hub.Message{Topic: room, Gap: true, Epoch: new(string)}).WithRaw(codec.NewFrame(codec.OpText, nil))}
	room.Mu.Unlock()
	since := dial(t, s, "/ws?topic=room")
	subscribers(t, s, "room", 2)
	l.Shard.PostDo(c.core(), 0, func() { l.Publish(gap) })
	before.wantClose(4010, "gap")
	mustPublish(t, s, "room", "two")
	since.want("two")
}

// A topic is quiet for so long that all its messages have become too old, while others of its rule are not. Its next
// message does not say which was before it. Nothing is missing, and no client is told of a gap.
func TestClusterTopicThatWasQuiet(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 2, topics(TopicRule{Match: "log.*", History: 10}), unchanged)
	alice, bob := dial(t, list[0], "/ws", speakJSON), dial(t, list[1], "/ws", speakJSON)
	alice.subscribed("log.a")
	bob.subscribed("log.*")
	for _, text := range []string{"1", "2"} {
		mustPublish(t, list[1], "log.a", text)
		alice.wants(text)
		bob.wants(text)
		mustPublish(t, list[1], "log.b", "b")
		bob.wants("b")
		n.expire("log.a")
		n.expire("log.b")
	}
	for i, s := range list {
		if st := s.hub.Remote.Counts(); st.Gaps.Load()+st.SequenceGaps.Load()+st.Lost.Load() != 0 {
			t.Errorf("server %d has counted %d gaps, %d holes and %d lost messages", i, st.Gaps.Load(), st.SequenceGaps.Load(), st.Lost.Load())
		}
	}
}
