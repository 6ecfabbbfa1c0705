package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go/jetstream"
)

func TestAKeptMessageComesToEveryFollowerWithItsPlace(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := topic.Rule{Match: ">", History: 10}
	alice, bob := join(t, o, rule), join(t, o, rule)
	alice.follow("a.b")
	bob.follow("a.*", "*.b")
	var first topic.Position
	for i := range 5 {
		p, err := alice.store("a.b", fmt.Sprint(i), "")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = p
		}
		if _, err := bob.store("other", "x", ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*testNode{alice, bob} {
		eventually(t, "all come", func() bool { return len(n.allKept()) >= 5 })
		prev := uint64(0)
		for i, m := range n.allKept() {
			if m.topic != "a.b" || m.payload != fmt.Sprint(i) || m.prev != prev || m.offset <= prev || m.epoch != first.Epoch {
				t.Fatalf("message %d is %+v after offset %d in epoch %s", i, m, prev, first.Epoch)
			}
			prev = m.offset
		}
	}
	if first.Epoch == "" || first.Offset != 1 {
		t.Errorf("the first position is %+v", first)
	}
}

func TestAMessageWithTheSameKeyIsStoredOnce(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := topic.Rule{Match: ">", History: 10}
	alice, bob := join(t, o, rule), join(t, o, rule)
	one, err := alice.store("a", "x", "key")
	if err != nil {
		t.Fatal(err)
	}
	two, err := bob.store("a", "x", "key")
	if err != nil || two != one {
		t.Errorf("the second answer is %v, %v, want %v", two, err, one)
	}
	if other, err := bob.store("b", "x", "key"); err != nil || other == one {
		t.Errorf("the same key of another topic: %v, %v", other, err)
	}
	if k, err := bob.load("a", 0); err != nil || len(k.Messages) != 1 {
		t.Errorf("kept: %+v, %v", k, err)
	}
}

func TestWhatIsLoadedSaysHonestlyWhatIsMissing(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	n := join(t, o, topic.Rule{Match: ">", History: 3})
	store := func(topic, text string) {
		t.Helper()
		if _, err := n.store(topic, text, ""); err != nil {
			t.Fatal(err)
		}
	}
	check := func(topic string, after uint64, since, last uint64, want ...string) {
		t.Helper()
		k, err := n.load(topic, after)
		if err != nil {
			t.Fatal(err)
		}
		if k.Since != since || k.Last != last || !slices.Equal(payloads(k.Messages), want) || k.Epoch == "" {
			t.Errorf("%s after %d: since %d, last %d, %v; want since %d, last %d, %v", topic, after, k.Since, k.Last, payloads(k.Messages), since, last, want)
		}
	}
	check("a", 0, 0, 0)
	check("a", 7, 7, 0) // nothing was ever removed
	store("a", "1")     // 1
	store("b", "1")     // 2
	check("a", 0, 0, 1, "1")
	check("a", 1, 1, 1)
	check("a", 2, 2, 2) // a position of the stream, not of a message
	check("c", 0, 0, 2)
	check("c", 2, 2, 2)
	store("a", "2") // 3
	store("a", "3") // 4
	check("a", 0, 0, 4, "1", "2", "3")
	check("a", 2, 2, 4, "2", "3")
	store("b", "2") // 5
	store("a", "4") // 6: a has lost 1
	check("a", 0, 2, 6, "2", "3", "4")
	check("a", 1, 2, 6, "2", "3", "4")
	check("a", 2, 2, 6, "2", "3", "4")
	check("a", 3, 3, 6, "3", "4")
	check("a", 5, 5, 6, "4")
	check("a", 6, 6, 6)
	check("b", 0, 1, 5, "1", "2") // 1 is gone, whatever it was of
}

func TestWhatIsTooOldIsAGap(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	n := join(t, o, topic.Rule{Match: ">", History: 3, MaxAge: time.Second})
	p, err := n.store("a", "1", "")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the message is too old", func() bool {
		k, err := n.load("a", 0)
		return err == nil && len(k.Messages) == 0
	})
	k, err := n.load("a", 0)
	if err != nil || k.Since != p.Offset || k.Last != p.Offset {
		t.Errorf("kept is %+v, %v, want since %d", k, err, p.Offset)
	}
	if k, err := n.load("a", p.Offset); err != nil || k.Since != p.Offset {
		t.Errorf("after the last message: %+v, %v", k, err)
	}
}

func TestManyMessagesAreLoadedInOrder(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	n := join(t, o, topic.Rule{Match: ">", History: 5000})
	const count = 3*batchMessages + 1
	var wait sync.WaitGroup
	for i := range count {
		wait.Add(1)
		n.PublishPersistent(topic.Publication{Topic: "a", Payload: []byte(fmt.Sprint(i))}, 0, func(_ topic.Position, err error) {
			if err != nil {
				t.Error(err)
			}
			wait.Done()
		})
	}
	wait.Wait()
	k, err := n.load("a", 0)
	if err != nil || len(k.Messages) != count {
		t.Fatalf("loaded %d messages, %v", len(k.Messages), err)
	}
	for i, m := range k.Messages {
		if string(m.Payload) != fmt.Sprint(i) || m.Offset != uint64(i+1) || time.Since(m.Time) > time.Hour {
			t.Fatalf("message %d is %q at %d, %v", i, m.Payload, m.Offset, m.Time)
		}
	}
	if k, err = n.load("a", 100); err != nil || len(k.Messages) != count-100 || k.Since != 100 {
		t.Errorf("after 100: %d messages since %d, %v", len(k.Messages), k.Since, err)
	}
}

// A model of one subscriber that leaves and comes back at another node at any time: it has what it is handed,
// and loads what is missing, as package server does.
type model struct {
	t    *testing.T
	last uint64
	log  []string

	visits int // that were not in vain
}

func (m *model) take(list []topic.Message) {
	for _, one := range list {
		if one.Offset > m.last {
			m.last = one.Offset
			m.log = append(m.log, string(one.Payload))
		}
	}
}

func TestResumingAtAnyNodeAtAnyTimeGivesTheTopicsLog(t *testing.T) {
	t.Parallel()
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}, Timeout: 10 * time.Second}
	rule := topic.Rule{Match: ">", History: 100_000, MaxAge: -1}
	nodes := []*testNode{join(t, o, rule), join(t, o, rule), join(t, o, rule)}
	publisher := join(t, o, rule)
	stop, stopped := make(chan struct{}), make(chan []string, 1)
	var running sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(stop)
		running.Wait()
	})
	defer end() // also when the test fails
	running.Go(func() {
		var sent []string
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- sent
				return
			default:
			}
			text := fmt.Sprint(i)
			if _, err := publisher.store("a.b", text, ""); err != nil {
				t.Error(err)
			}
			sent = append(sent, text)
			if rand.N(3) == 0 {
				_, _ = publisher.store(fmt.Sprintf("other.%d", rand.N(10)), "x", "")
			}
			time.Sleep(rand.N(time.Millisecond))
		}
	})
	m := &model{t: t}
	rounds := 500
	if testing.Short() {
		rounds = 50
	}
	for range rounds {
		m.visit(nodes[rand.N(len(nodes))], []string{"a.b", "a.*", ">"}[rand.N(3)], rand.N(4))
	}
	end()
	sent := <-stopped
	m.visit(nodes[0], "a.b", 0)
	if !slices.Equal(m.log, sent) {
		t.Fatalf("the log has %d messages, and %d were published", len(m.log), len(sent))
	}
}

// visit follows the topic at a node, takes what it has missed, and some live messages.
func (m *model) visit(n *testNode, name string, live int) {
	m.t.Helper()
	n.fake.mu.Lock()
	begin := len(n.fake.kept)
	n.fake.mu.Unlock()
	n.follow(name)
	k, err := n.load("a.b", m.last)
	for end := time.Now().Add(patience); err != nil && time.Now().Before(end); { // as a server does it
		time.Sleep(10 * time.Millisecond)
		k, err = n.load("a.b", m.last)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if k.Since > m.last {
		m.t.Fatalf("a gap: since %d, want %d", k.Since, m.last)
	}
	m.take(k.Messages)
	at := begin
	for live > 0 {
		eventually(m.t, "a live message", func() bool { return len(n.allKept()) > at })
		one := n.allKept()[at]
		at++
		if one.topic != "a.b" || one.offset <= m.last {
			continue
		}
		if one.prev > m.last {
			m.t.Fatalf("message %d comes after %d, and the last was %d", one.offset, one.prev, m.last)
		}
		m.take([]topic.Message{{Offset: one.offset, Payload: []byte(one.payload)}})
		live--
	}
	n.Unfollow(name)
}

func TestRulesThatChangeChangeTheStream(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	old := join(t, o, topic.Rule{Match: ">", History: 2})
	for i := range 3 {
		if _, err := old.store("a", fmt.Sprint(i), ""); err != nil {
			t.Fatal(err)
		}
	}
	before := old.streams[0].epochNow()
	n := join(t, o, topic.Rule{Match: "b"}, topic.Rule{Match: ">", History: 3, MaxAge: time.Hour})
	st := n.streams[1]
	if st.epochNow() != before {
		t.Error("the epoch changed with the rules")
	}
	if !old.log.has("different topic rules") && !n.log.has("different topic rules") {
		eventually(t, "one of the nodes warns", func() bool { return old.log.has("different topic rules") || n.log.has("different topic rules") })
	}
	for i := range 3 {
		if _, err := old.store("a", fmt.Sprint(i+3), ""); err != nil {
			t.Fatal(err)
		}
	}
	if k, err := n.loadRule(1, "a", 0); err != nil || len(k.Messages) != 3 {
		t.Errorf("kept are %v, %v, want 3", payloads(k.Messages), err)
	}
	o.Storage = "memory"
	if _, err := tryJoin(t, o, topic.Rule{Match: ">", History: 3}); err == nil || !strings.Contains(err.Error(), "JetStream cannot change it") {
		t.Errorf("another storage: %v", err)
	}
}

// A history is raised. What was removed while it was shorter is a gap, although fewer messages are there than it allows
// now.
func TestARaisedHistoryDoesNotHideWhatWasRemoved(t *testing.T) {
	t.Parallel()
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := func(history int) topic.Rule { return topic.Rule{Match: ">", History: history} }
	check := func(n *testNode, topic string, after, since uint64, want ...string) {
		t.Helper()
		if k, err := n.load(topic, after); err != nil || k.Since != since || !slices.Equal(payloads(k.Messages), want) {
			t.Errorf("after %d of topic %s: since %d, %v, %v, want %d, %v", after, topic, k.Since, payloads(k.Messages), err, since, want)
		}
	}
	short := join(t, o, rule(3))
	store := func(n *testNode, topic, payload string) {
		t.Helper()
		if _, err := n.store(topic, payload, ""); err != nil {
			t.Fatal(err)
		}
	}
	store(short, "z", "1")
	for i := range 50 {
		store(short, "a", fmt.Sprint(i+2))
	}
	check(short, "a", 5, 48, "49", "50", "51")

	long := join(t, o, rule(100))
	check(long, "a", 5, 48, "49", "50", "51")
	check(long, "a", 48, 48, "49", "50", "51")
	check(long, "a", 50, 50, "51")
	check(long, "none", 5, 51) // it may have had some
	check(short, "a", 5, 48, "49", "50", "51")
	store(long, "a", "52")
	store(long, "new", "53")
	check(long, "a", 5, 48, "49", "50", "51", "52")
	check(long, "new", 51, 51, "53")
	check(long, "new", 52, 52, "53")

	t.Run("it is lowered while a node thinks otherwise", func(t *testing.T) {
		join(t, o, rule(2))
		check(long, "a", 5, 50, "51", "52")
		for i := range 4 {
			store(long, "a", fmt.Sprint(i+54))
		}
		check(long, "a", 53, 55, "56", "57")
	})
	t.Run("it is raised by a node that does not come to the end of it", func(t *testing.T) {
		c := long.configIn(long.streams[0], long.streams[0].epochNow())
		c.Metadata = metadata(beingRaised, "")
		js, err := jetstream.New(long.nc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		store(long, "new", "58")
		check(long, "new", 0, 52, "53", "58")
		check(long, "none", 53, 58)
		after := join(t, o, rule(100))
		store(after, "new", "59")
		check(after, "none", 53, 58)
		check(after, "none", 59, 59)
	})
}

func TestHistoryNeedsJetStream(t *testing.T) {
	t.Parallel() // it waits
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}, StartTimeout: 5 * time.Second}
	_, err := tryJoin(t, o, topic.Rule{Match: ">", History: 3})
	if err == nil || !strings.Contains(err.Error(), "is JetStream enabled") || !strings.Contains(err.Error(), "start_timeout") {
		t.Errorf("the error is %v", err)
	}
}
