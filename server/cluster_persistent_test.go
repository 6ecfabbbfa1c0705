package server

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
)

// quickly has servers of a test forget unused topics soon.
func quickly(s *Server) { s.hub.Linger = 20 * time.Millisecond }

func unchanged(*Server) {}

// since asks for a topic after a position.
func (c *client) since(topic string, at Position) said {
	c.t.Helper()
	return c.ask(`{"id":1,"subscribe":{"topic":%q,"since":{"offset":%d,"epoch":%q}}}`, topic, at.Offset, at.Epoch)
}

func position(r Receipt) Position { return Position{Offset: r.Offset, Epoch: r.Epoch} }

// wants reads messages of the JSON protocol with these texts.
func (c *client) wants(texts ...string) (last said) {
	c.t.Helper()
	for _, want := range texts {
		if last = c.said(); string(last.Data) != fmt.Sprintf("%q", want) {
			c.t.Fatalf("got %s, want %q", last.text, want)
		}
	}
	return last
}

// Alice is at one server, bob at another. What is published at a third one comes to both with the same positions,
// and cathy gets what was before.
func TestClusterKept(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 3, topics(TopicRule{Match: "log.*", History: 10}), unchanged)
	first := mustPublish(t, list[2], "log.a", "before")
	alice, bob := dial(t, list[0], "/ws", speakJSON), dial(t, list[1], "/ws", speakJSON)
	at := alice.subscribed("log.a")
	if at.Epoch != "first" || at.Offset < first.Offset {
		t.Fatalf("she begins at %v; the first message is %v", at, first)
	}
	bob.subscribed("log.a")
	r := mustPublish(t, list[2], "log.a", "one")
	for _, c := range []*client{alice, bob} {
		if m := c.wants("one"); m.Offset != r.Offset || r.Epoch != "first" {
			t.Fatalf("%s, and the receipt is %+v", m.text, r)
		}
	}
	mustPublish(t, list[0], "log.a", "two")
	alice.wants("two")
	bob.wants("two")
	cathy := dial(t, list[2], "/ws", speakJSON)
	if got := cathy.since("log.a", position(first)); got.Subscribed == nil || !*got.Subscribed.Recovered {
		t.Fatal(got.text)
	}
	cathy.wants("one", "two")
	if got := cathy.ask(`{"id":2,"history":{"topic":"log.a"}}`); got.History == nil || len(got.History.Messages) != 3 {
		t.Fatal(got.text)
	}
}

// Clients that come later to a topic are served from memory.
func TestClusterLoadsOnce(t *testing.T) {
	n := newFakeNet(1)
	s := clustered(t, n, 1, topics(TopicRule{Match: "log", History: 10}), unchanged)[0]
	r := mustPublish(t, s, "log", "one")
	mustPublish(t, s, "log", "two")
	for range 10 {
		c := dial(t, s, "/ws", speakJSON)
		if got := c.since("log", position(r)); !*got.Subscribed.Recovered {
			t.Fatal(got.text)
		}
		c.wants("two")
	}
	n.set(func() {
		if n.loads != 1 {
			t.Errorf("%d loads", n.loads)
		}
	})
}

// Bob was at another server, and comes with a position that this one has not heard of: it lost the message. It looks,
// and he gets nothing twice.
func TestClusterSinceAhead(t *testing.T) {
	t.Parallel() // most of it is waiting
	n := newFakeNet(1)
	list := clustered(t, n, 2, topics(TopicRule{Match: "log", History: 10}), unchanged)
	alice := dial(t, list[0], "/ws", speakJSON)
	alice.subscribed("log")
	mustPublish(t, list[1], "log", "one")
	alice.wants("one")
	n.set(func() { n.lost = 1 })
	two := mustPublish(t, list[1], "log", "two")
	mustPublish(t, list[1], "log", "three")
	n.set(func() { n.lost = 0 })
	bob := dial(t, list[0], "/ws", speakJSON)
	if got := bob.since("log", position(two)); got.Subscribed == nil || !*got.Subscribed.Recovered {
		t.Fatal(got.text)
	}
	bob.wants("three")
	alice.wants("two", "three")
	r := mustPublish(t, list[1], "log", "four")
	bob.wants("four")
	alice.wants("four")

	t.Run("the leader stood still", func(t *testing.T) {
		n.set(func() { n.lost, n.behind, n.shown = 1, 3, r.Offset })
		five := mustPublish(t, list[1], "log", "five")
		six := mustPublish(t, list[1], "log", "six")
		n.set(func() { n.lost = 0 })
		fred := dial(t, list[0], "/ws", speakJSON)
		if got := fred.since("log", position(five)); !*got.Subscribed.Recovered || *got.Subscribed.Offset != six.Offset {
			t.Fatal(got.text)
		}
		fred.wants("six")
		alice.wants("five", "six")
		r = six
	})
	t.Run("no server has been there", func(t *testing.T) {
		cathy := dial(t, list[0], "/ws", speakJSON)
		if got := cathy.since("log", Position{Offset: r.Offset + 1000, Epoch: r.Epoch}); *got.Subscribed.Recovered {
			t.Fatal(got.text)
		}
		cathy.wants("one", "two", "three", "four", "five", "six")
	})
	t.Run("another epoch", func(t *testing.T) {
		dora := dial(t, list[0], "/ws", speakJSON)
		if got := dora.since("log", Position{Offset: two.Offset, Epoch: "other"}); *got.Subscribed.Recovered {
			t.Fatal(got.text)
		}
		dora.wants("one", "two", "three", "four", "five", "six")
	})
	t.Run("raw", func(t *testing.T) {
		ed := dial(t, list[1], fmt.Sprintf("/ws?topic=log&since=%d&epoch=%s", two.Offset, two.Epoch))
		for _, text := range []string{"three", "four", "five", "six"} {
			ed.want(text)
		}
	})
}

// What a client asks for while a topic is loaded waits, and is answered in its order.
func TestClusterRepliesInOrder(t *testing.T) {
	n := newFakeNet(1)
	s := clustered(t, n, 1, topics(TopicRule{Match: "log", History: 10}), unchanged)[0]
	begun, release := n.hold()
	c := dial(t, s, "/ws", speakJSON)
	for i, what := range []string{
		`"subscribe":{"topic":"log"}`, `"ping":{}`, `"publish":{"topic":"log","data":1}`, `"publish":{"topic":"log","data":2}`,
		`"publish":{"topic":"other","data":2}`, `"publish":{"topic":"a..b","data":2}`, `"history":{"topic":"log"}`,
		`"unsubscribe":{"topic":"log"}`, `"publish":{"topic":"log","data":3}`, `"publish":{"topic":"log","data":4}`, `"fly":{}`, `"ping":{}`,
	} {
		c.send(fmt.Sprintf(`{"id":%d,%s}`, i, what))
	}
	eventually(t, "the load is asked for", func() bool { return begun() == 1 })
	release()
	for i := range 12 {
		m := c.said()
		for m.ID == nil {
			m = c.said() // a message
		}
		if string(m.ID) != fmt.Sprint(i) {
			t.Fatalf("instead of reply %d: %s", i, m.text)
		}
		if (i == 5 || i == 10) != (m.Error != nil) {
			t.Fatal(m.text)
		}
	}
	if all := n.log("log"); len(all) != 4 || string(all[3].Payload) != "4" {
		t.Errorf("%d were published", len(all))
	}
}

// What fails at once does not overtake the replies to messages that are on their way.
func TestClusterFailuresInOrder(t *testing.T) {
	t.Parallel()
	const burst = 10 // seconds
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log", History: 10})
	opts.Limits.RequestsPerSecond = 1
	s := clustered(t, n, 1, opts, unchanged)[0]
	hold := make(chan struct{})
	fakeOf(s).mail.put(func() { <-hold })
	c := dial(t, s, "/ws", speakJSON)
	var requests []byte
	ask := func(request string) { requests = append(requests, text(request)...) }
	ask(`{"id":0,"publish":{"topic":"log","data":1}}`)
	ask(`{"id":1,"publishh":{}}`)
	ask(`{"id":2,"publish":{"topic":"log","data":2}}`)
	ask(`{"id":{},"ping":{}}`) // its id cannot be repeated
	for i := range 3 * burst {
		ask(fmt.Sprintf(`{"id":%d,"presence":{"topic":"log"}}`, i+4))
	}
	ask(fmt.Sprintf(`{"id":%d,"ping":{}}`, 4+3*burst))
	c.write(requests)
	eventually(t, "they have come", func() bool { return s.Stats().MessagesIn == 5+3*burst })
	close(hold)
	limited := 0
	for i := range 5 + 3*burst {
		m := c.said()
		code := ""
		if m.Error != nil {
			code = m.Error.Code
		}
		if string(m.ID) != fmt.Sprint(i) && i != 3 {
			t.Fatalf("instead of reply %d: %s", i, m.text)
		}
		switch {
		case i == 0 || i == 2 || i == 4+3*burst:
			if code != "" {
				t.Error(m.text)
			}
		case i == 1 || i == 3:
			if code != "bad_request" {
				t.Error(m.text)
			}
		case code == "rate_limited":
			limited++
		}
	}
	if limited == 0 {
		t.Error("nothing was too much")
	}

	for _, test := range []struct {
		what, request string
		most          uint64
	}{
		{"publications", `{"id":1,"publish":{"topic":"log","data":1}}`, reactor.MaxPublishing},
		{"other requests", `{"id":1,"presence":{"topic":"log"}}`, reactor.MaxSlots},
	} {
		t.Run("too many wait: "+test.what, func(t *testing.T) {
			hold := make(chan struct{})
			fakeOf(s).mail.put(func() { <-hold })
			n.set(func() { n.holdAnswers = hold })
			c := dial(t, s, "/ws", speakJSON)
			before := s.Stats().MessagesIn
			c.write(repeat(text(test.request), 2*reactor.MaxSlots))
			c.write(text(`{"id":2,"ping":{}}`))
			eventually(t, "the queue is full", func() bool { return s.Stats().MessagesIn-before >= test.most })
			time.Sleep(100 * time.Millisecond)
			if n := s.Stats().MessagesIn - before; n > test.most+1 {
				t.Errorf("%d messages were taken while %d may wait", n, test.most)
			}
			n.set(func() { n.holdAnswers = nil })
			close(hold)
			for range 2 * reactor.MaxSlots {
				if m := c.said(); string(m.ID) != "1" {
					t.Fatal(m.text)
				}
			}
			if m := c.said(); string(m.ID) != "2" {
				t.Error(m.text)
			}
		})
	}
}

// A message that is larger than the broker takes is refused like one that is larger than the server takes.
func TestClusterTooLarge(t *testing.T) {
	n := newFakeNet(1)
	n.largest = 10
	s := clustered(t, n, 1, internalOf(topics(TopicRule{Match: "log", History: 10})), unchanged)[0]
	raw, c := dial(t, s, "/ws?topic=log"), dial(t, s, "/ws", speakJSON)
	c.subscribed("log")
	subscribers(t, s, "log", 2)
	large := strings.Repeat("x", 11)
	if _, err := s.Publish(Publication{Topic: "log", Payload: []byte(large)}); !errors.Is(err, ErrTooLarge) || errors.Is(err, ErrUncertain) {
		t.Error(err)
	}
	call(t, s, "POST", "/v1/topics/log/messages", large, asText).isProblem(t, 413, "too-large", "than the net takes")
	if got := c.ask(`{"id":1,"publish":{"topic":"log","data":%q}}`, large); got.Error == nil || got.Error.Code != "too_large" {
		t.Error(got.text)
	}
	raw.send(large)
	raw.wantClose(1009, "larger than this server accepts")
	mustPublish(t, s, "log", "small")
	c.wants("small")
}

// Of a thousand messages that a client publishes in one go, as many as may be are on their way before the first is
// answered.
func TestClusterPublishesInARow(t *testing.T) {
	n := newFakeNet(1)
	s := clustered(t, n, 1, topics(TopicRule{Match: "log", History: 2000}), unchanged)[0]
	b := fakeOf(s)
	b.mail.put(func() { // no answer before they are all there
		eventually(t, "many are published", func() bool { return len(n.log("log")) == reactor.MaxPublishing })
	})
	c := dial(t, s, "/ws", speakJSON)
	for i := range 1000 {
		c.send(fmt.Sprintf(`{"id":%d,"publish":{"topic":"log","data":%d}}`, i, i))
	}
	last := uint64(0)
	for i := range 1000 {
		m := c.said()
		if string(m.ID) != fmt.Sprint(i) || m.Published == nil || m.Published.Offset <= last {
			t.Fatalf("instead of reply %d: %s", i, m.text)
		}
		last = m.Published.Offset
	}
}

// Every client is told when a topic cannot be had: those that ask, and those that came with a request line. When it can
// be had again, all is well.
func TestClusterUnavailable(t *testing.T) {
	n := newFakeNet(1)
	s := clustered(t, n, 1, topics(TopicRule{Match: "log.*", History: 10}), unchanged)[0]
	old := dial(t, s, "/ws", speakJSON)
	at := old.subscribed("log.old")
	check := func(t *testing.T) {
		c := dial(t, s, "/ws", speakJSON)
		if got := c.ask(`{"id":1,"subscribe":{"topic":"log.a"}}`); got.Error == nil || got.Error.Code != "unavailable" {
			t.Fatal(got.text)
		}
		if got := c.ask(`{"id":1,"history":{"topic":"log.a"}}`); got.Error == nil || got.Error.Code != "unavailable" {
			t.Fatal(got.text)
		}
		dial(t, s, "/ws?topic=log.b").wantClose(1013, "the cluster cannot be reached")
		if e, err := openStream(t, s, "/ws?topic=log.c").event(); err != nil || e.kind != "close" || !strings.Contains(e.data, "1013") {
			t.Fatal(e, err)
		}
		other := dial(t, s, "/ws", speakJSON) // nothing is missing there
		if got := other.since("log.old", at); got.Subscribed == nil || !*got.Subscribed.Recovered {
			t.Fatal(got.text)
		}
	}
	t.Run("a load fails", func(t *testing.T) {
		n.set(func() { n.failing = 1 })
		defer n.set(func() { n.failing = 0 })
		check(t)
	})
	t.Run("outage", func(t *testing.T) {
		fakeOf(s).cut(true)
		defer fakeOf(s).cut(false)
		check(t)
		c := dial(t, s, "/ws", speakJSON)
		for _, topic := range []string{"log.a", "passing"} {
			if got := c.ask(`{"id":1,"publish":{"topic":%q,"data":1}}`, topic); got.Error == nil || got.Error.Code != "unavailable" {
				t.Fatal(got.text)
			}
			if _, err := s.Publish(Publication{Topic: topic}); !errors.Is(err, ErrNoCluster) {
				t.Fatal(err)
			}
			raw := dial(t, s, "/ws?topic="+strings.Replace(topic, "a", "old", 1))
			raw.send("x")
			raw.wantClose(1013, "the cluster cannot be reached")
		}
	})
	c := dial(t, s, "/ws", speakJSON)
	c.subscribed("log.a")
	mustPublish(t, s, "log.a", "x")
	c.wants("x")
}

// A server has missed messages of a topic, and cannot load them. Clients that read the topic there are told so, and
// none gets what is left for the whole. It goes on trying, also without a subscriber.
func TestClusterReadsTheWhole(t *testing.T) {
	n := newFakeNet(1)
	log := &logBuffer{}
	opts := topics(TopicRule{Match: "log.*", History: 10})
	opts.Logger = slog.New(slog.NewTextHandler(log, nil))
	list := clustered(t, n, 2, opts, unchanged)
	s := list[0]
	for _, topic := range []string{"log.a", "log.b"} {
		mustPublish(t, list[1], topic, "one")
		if past, err := s.History(topic, Start{Last: 10}, 10); err != nil || len(past.Messages) != 1 {
			t.Fatal(past, err)
		}
	}
	fakeOf(s).cut(true)
	for _, topic := range []string{"log.a", "log.b"} {
		mustPublish(t, list[1], topic, "two")
	}
	if past, err := s.History("log.a", Start{Last: 10}, 10); err != nil || len(past.Messages) != 1 {
		t.Errorf("before anything is known to be missing: %v, %v", past, err)
	}
	n.set(func() { n.failing = 1 })
	fakeOf(s).cut(false)
	eventually(t, "it says that it cannot load", func() bool { return strings.Contains(log.String(), "could not load a persistent topic") })
	if _, err := s.History("log.a", Start{Last: 10}, 10); !errors.Is(err, ErrNoCluster) {
		t.Errorf("while it cannot be loaded: %v", err)
	}
	n.set(func() { n.failing = 0 })
	if past, err := s.History("log.a", Start{Last: 10}, 10); err != nil || len(past.Messages) != 2 {
		t.Errorf("when it can be: %v, %v", past, err)
	}
	eventually(t, "it has been loaded unasked", func() bool { i, _ := s.Topic("log.b"); return i.History == 2 })

	fakeOf(s).cut(true)
	last := mustPublish(t, list[1], "log.a", "three")
	begun, release := n.hold()
	fakeOf(s).cut(false)
	eventually(t, "it is being loaded", func() bool { return begun() >= 2 })
	reader, reads := dial(t, s, "/ws", speakJSON), make(chan Past, 1)
	reader.send(`{"id":1,"history":{"topic":"log.a"}}`)
	go func() {
		past, _ := s.History("log.a", Start{Last: 10}, 10)
		reads <- past
	}()
	other := dial(t, s, "/ws", speakJSON)
	other.subscribed("log.a") // a subscriber, which gets the rest later, need not wait
	release()
	if past := <-reads; past.Offset != last.Offset || len(past.Messages) != 3 {
		t.Errorf("after the load: %v", past)
	}
	if m := reader.said(); m.History == nil || len(m.History.Messages) != 3 {
		t.Error(m.text)
	}
	other.wants("three")

	t.Run("before its turn", func(t *testing.T) {
		const number = 2 * hub.MaxPaced
		read := func(i int) Past {
			past, err := s.History(fmt.Sprint("log.", i), Start{Last: 10}, 10)
			if err != nil {
				t.Error(err)
			}
			return past
		}
		for i := range number {
			mustPublish(t, list[1], fmt.Sprint("log.", i), "one")
			read(i)
		}
		fakeOf(s).cut(true)
		for i := range number {
			mustPublish(t, list[1], fmt.Sprint("log.", i), "two")
		}
		begun, release := n.hold()
		fakeOf(s).cut(false)
		eventually(t, "as many are being loaded as may be", func() bool { return begun() == hub.MaxPaced })
		var readers sync.WaitGroup
		for i := range number {
			readers.Go(func() {
				if past := read(i); len(past.Messages) != 2 {
					t.Errorf("topic %d has %d messages", i, len(past.Messages))
				}
			})
		}
		eventually(t, "what is read is being loaded", func() bool { return begun() >= number })
		release()
		readers.Wait()
	})
}

// While no server of the cluster can take messages for persistent topics, others pass, and the servers are ready.
func TestClusterWithoutALeader(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log.*", History: 10})
	opts.Internal.Listen = "127.0.0.1:0"
	servers := clustered(t, n, 2, opts, unchanged)
	s, c := servers[0], dial(t, servers[1], "/ws", speakJSON)
	c.subscribed("passing")
	n.set(func() { n.leaderless = true })

	call(t, s, "POST", "/v1/topics/log.a/messages", "x", asText).isProblem(t, 503, "no-cluster", "no leader")
	if got := dial(t, s, "/ws", speakJSON).ask(`{"id":1,"subscribe":{"topic":"log.b"}}`); got.Error == nil || got.Error.Code != "unavailable" {
		t.Error(got.text)
	}
	call(t, s, "POST", "/v1/topics/passing/messages", "x", asText).is(t, 200)
	c.wants("x")
	call(t, s, "GET", "/readyz", "").is(t, 200)
	if up := scrape(t, s)["carillon_cluster_up"]; up != 1 {
		t.Errorf("up is %v", up)
	}

	n.set(func() { n.leaderless = false })
	c.subscribed("log.a")
	call(t, s, "POST", "/v1/topics/log.a/messages", "y", asText).is(t, 200)
	c.wants("y")
}

// A server misses more than the broker keeps. Each subscriber there is told in its own way, and goes on.
func TestClusterGap(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 2, topics(TopicRule{Match: "log", History: 3}), unchanged)
	s := list[0]
	alice, raw, events := dial(t, s, "/ws", speakJSON), dial(t, s, "/ws?topic=log"), openStream(t, s, "/ws?topic=log")
	alice.subscribed("log")
	events.subscribed()
	subscribers(t, s, "log", 3)
	mustPublish(t, list[1], "log", "0")
	alice.wants("0")
	raw.want("0")
	fakeOf(s).cut(true)
	var last Receipt
	after := uint64(0) // the offset of the last message that is not kept
	for i := range 5 {
		if last = mustPublish(t, list[1], "log", fmt.Sprint(i+1)); i == 1 {
			after = last.Offset
		}
	}
	fakeOf(s).cut(false)
	gap := fmt.Sprintf(`{"topic":"log","offset":%d,"epoch":"first","after":%d,"recovered":false}`, last.Offset, after)
	if m := alice.said(); m.text != `{"subscribed":`+gap+`}` {
		t.Fatalf("got %s, want %s", m.text, gap)
	}
	alice.wants("3", "4", "5")
	raw.wantClose(4010, "gap")
	if e, err := events.event(); err != nil || e.data != "0" {
		t.Fatal(e, err)
	}
	events.want("subscribed", fmt.Sprintf("first:%d", after), gap)
	if e, err := events.event(); err != nil || e.data != "3" || !strings.HasPrefix(e.id, "first:") {
		t.Fatal(e, err)
	}
	mustPublish(t, list[1], "log", "6")
	alice.wants("6")

	t.Run("the broker begins anew", func(t *testing.T) {
		begun, release := n.hold()
		fakeOf(s).node.Resync("to have a load under way that is of no use")
		eventually(t, "it is under way", func() bool { return begun() > 0 })
		n.set(func() {
			n.epoch, n.offset = "second", 3
			clear(n.topics)
		})
		r := mustPublish(t, list[1], "log", "7")
		release()
		if m := alice.said(); m.Subscribed == nil || m.Subscribed.Epoch != "second" || *m.Subscribed.Offset != r.Offset || *m.Subscribed.Recovered {
			t.Fatal(m.text)
		}
		if m := alice.wants("7"); m.Offset != r.Offset {
			t.Fatal(m.text)
		}
		bob := dial(t, s, "/ws", speakJSON)
		if got := bob.since("log", position(last)); *got.Subscribed.Recovered {
			t.Fatal(got.text)
		}
		bob.wants("7")
	})
}

// The newest value is there at every server, also at one that no client has asked before.
func TestClusterLatest(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 2, topics(TopicRule{Match: "price.*", Latest: true}), unchanged)
	for i := range 3 {
		mustPublish(t, list[0], "price.a", fmt.Sprint(i))
	}
	c := dial(t, list[1], "/ws", speakJSON)
	c.subscribed("price.a")
	c.wants("2")
	mustPublish(t, list[0], "price.a", "3")
	c.wants("3")
	dial(t, list[1], "/ws?topic=price.a").want("3")
}

// A subscriber of a pattern gets persistent topics that no client has asked for by name: in order, once, and without a
// hole once something of a topic has come. So does one that has a topic of them by name.
func TestClusterPatterns(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 2, topics(TopicRule{Match: "log.*", History: 1000}), quickly)
	all := dial(t, list[0], "/ws", speakJSON)
	all.subscribed("log.*")
	mustPublish(t, list[1], "log.a", "0")
	mustPublish(t, list[1], "log.b", "0")
	all.wants("0", "0")
	one := dial(t, list[0], "/ws", speakJSON)
	first := mustPublish(t, list[1], "log.a", "1")
	if got := one.since("log.a", position(first)); !*got.Subscribed.Recovered {
		t.Fatal(got.text)
	}
	all.wants("1")
	n.set(func() { n.lost, n.twice, n.late = 0.2, 0.2, 0.2 })
	for i := range 100 {
		mustPublish(t, list[1], "log.a", fmt.Sprint(i+2))
		mustPublish(t, list[1], "log.b", fmt.Sprint(i+1))
	}
	n.set(func() { n.lost = 0 })
	mustPublish(t, list[1], "log.a", "end")
	mustPublish(t, list[1], "log.b", "end")
	want := map[string][]string{}
	for i := range 100 {
		want["log.a"] = append(want["log.a"], fmt.Sprintf(`"%d"`, i+2))
		want["log.b"] = append(want["log.b"], fmt.Sprintf(`"%d"`, i+1))
	}
	got := map[string][]string{}
	for ends := 0; ends < 2; {
		m := all.said()
		if string(m.Data) == `"end"` {
			ends++
			continue
		}
		got[m.Topic] = append(got[m.Topic], string(m.Data))
	}
	for topic := range want {
		if !slices.Equal(got[topic], want[topic]) {
			t.Errorf("%s: got %v", topic, got[topic])
		}
	}
	for i := range 100 {
		one.wants(fmt.Sprint(i + 2))
	}
	one.wants("end")

	// It goes away, and comes again later: what was meanwhile is not for it.
	all.ask(`{"id":1,"unsubscribe":{"topic":"log.*"}}`)
	one.ask(`{"id":1,"unsubscribe":{"topic":"log.a"}}`)
	eventually(t, "nothing is followed", func() bool {
		sweepAll(list[0].hub)
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(fakeOf(list[0]).names) == 0
	})
	n.set(func() { n.twice, n.late = 0, 0 })
	mustPublish(t, list[1], "log.a", "nobody")
	all.subscribed("log.*")
	mustPublish(t, list[1], "log.a", "again")
	all.wants("again")
	eventually(t, "the topics are forgotten", func() bool {
		all.ask(`{"id":1,"unsubscribe":{"topic":"log.*"}}`)
		sweepAll(list[0].hub)
		return list[0].hub.Count.Load() == 0
	})
	if messages, bytes := list[0].hub.MessageCount(); messages != 0 || bytes != 0 {
		t.Errorf("%d messages of %d bytes are kept", messages, bytes)
	}
}

// A client that may not have a topic does not make the server ask for it.
func TestClusterAsksForNothingInVain(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log.*", History: 10})
	opts.Endpoints[0].Topics.MaxSubscriptions = 1
	s := clustered(t, n, 1, opts, unchanged)[0]
	c := dial(t, s, "/ws", speakJSON)
	c.subscribed("log.a")
	for _, topic := range []string{"log.b", "room", "room.*"} {
		if got := c.ask(`{"id":1,"subscribe":{"topic":%q}}`, topic); got.Error == nil || got.Error.Code != "too_many_subscriptions" {
			t.Error(got.text)
		}
	}
	n.set(func() {
		if n.loads != 1 || len(fakeOf(s).names) != 1 {
			t.Errorf("%d loads, and it follows %v", n.loads, fakeOf(s).names)
		}
	})
}

// Publish waits, which no loop may do: it says so.
func TestClusterPublishOnLoop(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log", History: 10})
	said := make(chan string, 3)
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/app", Handler: Handler{Message: func(c *Conn, _ Opcode, _ []byte) {
		_, err := c.Server().Publish(Publication{Topic: "log"})
		said <- fmt.Sprint(errors.Is(err, ErrOnLoop))
		_, err = c.Server().Publish(Publication{Topic: "other"})
		said <- fmt.Sprint(err)
		c.Server().PublishFunc(Publication{Topic: "log"}, func(r Receipt, err error) { said <- fmt.Sprint(r.Offset > 100, err) })
	}}})
	s := clustered(t, n, 1, opts, unchanged)[0]
	dial(t, s, "/app").send("x")
	for _, want := range []string{"true", "<nil>", "true <nil>"} {
		if got := <-said; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	n.set(func() { n.unsure = 1 })
	if _, err := s.Publish(Publication{Topic: "log"}); !errors.Is(err, ErrUncertain) {
		t.Error(err)
	}
}

// A loop is busy, and more is published elsewhere than may wait for it. What had no room is loaded when there is.
func TestClusterOverload(t *testing.T) {
	const messages, size = 300, 1000
	n := newFakeNet(1)
	held := newHold()
	opts := topics(TopicRule{Match: "log", History: messages, MaxBytes: -1})
	opts.Loops, opts.Limits.MaxBacklog = 1, 64<<10
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: -1}
	opts.Endpoints = append(opts.Endpoints, held.endpoint())
	list := clustered(t, n, 2, opts, unchanged)
	alice, all, holder := dial(t, list[0], "/ws", speakJSON), dial(t, list[0], "/ws", speakJSON), dial(t, list[0], "/hold")
	alice.subscribed("log")
	all.subscribed("*")
	held.take(holder)
	for i := range messages {
		mustPublish(t, list[1], "log", fmt.Sprintf("%d %s", i, strings.Repeat("x", size)))
	}
	eventually(t, "all have come", func() bool { return list[0].hub.Remote.Counts().PersistentIn.Load() == messages })
	loads := list[0].hub.Remote.Counts().Loads.Load()
	eventually(t, "it has tried again", func() bool { return list[0].hub.Remote.Counts().Loads.Load() >= loads+3 })
	if backlog := list[0].engine.BacklogBytes(); backlog > 80<<10 { // the topic and the pattern are looked at by themselves
		t.Errorf("%d bytes wait", backlog)
	}
	held.release()
	for _, c := range []*client{alice, all} {
		for i := range messages {
			if m := c.said(); !strings.HasPrefix(string(m.Data), fmt.Sprintf(`"%d x`, i)) {
				t.Fatalf("instead of message %d: %.100s", i, m.text)
			}
		}
	}
}

// When all topics have to be looked at again, that is done little by little.
func TestClusterResyncIsPaced(t *testing.T) {
	const number = 100
	n := newFakeNet(1)
	list := clustered(t, n, 2, topics(TopicRule{Match: ">", History: 10}), unchanged)
	c := dial(t, list[0], "/ws", speakJSON)
	for i := range number {
		c.subscribed(fmt.Sprintf("topic.%d", i))
	}
	fakeOf(list[0]).cut(true)
	for i := range number {
		mustPublish(t, list[1], fmt.Sprintf("topic.%d", i), "x")
	}
	begun, release := n.hold()
	fakeOf(list[0]).cut(false)
	eventually(t, "it begins", func() bool { return begun() == hub.MaxPaced })
	time.Sleep(50 * time.Millisecond)
	if now := begun(); now != hub.MaxPaced {
		t.Errorf("%d topics are looked at at once", now)
	}
	release()
	got := map[string]bool{}
	for range number {
		got[c.said().Topic] = true
	}
	if len(got) != number {
		t.Errorf("%d topics were looked at", len(got))
	}
}
