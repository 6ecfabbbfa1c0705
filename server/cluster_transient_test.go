package server

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/server/internal/hub"
)

// missedAt is how many messages of other servers a server has not had.
func missedAt(s *Server) uint64 { return s.Stats().Drops[DropClusterGap] }

// What is published at one server is for the subscribers at all, by name or by pattern, with the positions of each
// server. A server without subscribers is not bothered.
func TestClusterPassing(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 3, topics(), idleAfter(2*time.Second))
	alice, bob := dial(t, list[0], "/ws", speakJSON), dial(t, list[1], "/ws", speakJSON)
	at := alice.subscribed("room.a")
	bob.subscribed("room.*")
	r := mustPublish(t, list[0], "room.a", "one")
	if r.Epoch != at.Epoch || r.Offset != at.Offset+1 || r.Subscribers != 1 {
		t.Errorf("she is at %+v, and the receipt is %+v", at, r)
	}
	mustPublish(t, list[1], "room.a", "two")
	mustPublish(t, list[2], "room.a", "three")
	bob.ask(`{"id":1,"ping":{}}`) // he may have them in another order
	got := map[string]bool{}
	for range 3 {
		got[string(alice.said().Data)] = true
	}
	if len(got) != 3 {
		t.Errorf("she got %v", got)
	}
	if in := list[2].hub.Remote.Counts().TransientIn.Load(); in != 0 {
		t.Errorf("the third server got %d messages", in)
	}
	alice.ask(`{"id":1,"unsubscribe":{"topic":"room.a"}}`)
	eventually(t, "no server follows the room", func() bool {
		mustPublish(t, list[0], "room.a", "own") // so that the topic lives on
		sweepAll(list[0].hub)
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(fakeOf(list[0]).names) == 0
	})
	mustPublish(t, list[1], "room.a", "four")
	if got := alice.subscribed("room.a"); got.Epoch != at.Epoch {
		t.Errorf("she is at %+v", got)
	}
	mustPublish(t, list[1], "room.a", "five")
	alice.wants("five")
	if missedAt(list[0]) != 0 {
		t.Error("unwanted messages are counted as missed")
	}
}

// Three servers publish at once: what comes from each is in its order, and what is lost is counted.
func TestClusterPassingOrder(t *testing.T) {
	const messages = 500
	n := newFakeNet(3)
	list := clustered(t, n, 3, topics(), unchanged)
	alice, all := dial(t, list[0], "/ws", speakJSON), dial(t, list[0], "/ws", speakJSON)
	alice.subscribed("room")
	all.subscribed(">")
	for p := range 3 { // so that each server is known
		mustPublish(t, list[p], "room", fmt.Sprintf("%d:0", p))
		alice.said()
		all.said()
	}
	n.set(func() { n.lost, n.twice = 0.1, 0.1 })
	var publishers sync.WaitGroup
	for p, s := range list {
		publishers.Go(func() {
			for i := range messages {
				if _, err := s.Publish(Publication{Topic: "room", Payload: fmt.Appendf(nil, "%d:%d", p, i+1)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	publishers.Wait()
	n.set(func() { n.lost, n.twice = 0, 0 })
	for p := range 3 {
		mustPublish(t, list[p], "room", fmt.Sprintf("%d:%d", p, messages+1))
	}
	read := func(c *client) (count int) {
		last, offset := [3]int{}, uint64(0)
		for ends := 0; ends < 3; count++ {
			m := c.said()
			var p, i int
			if _, err := fmt.Sscanf(string(m.Data), `"%d:%d"`, &p, &i); err != nil {
				t.Fatal(m.text)
			}
			if i <= last[p] || offset != 0 && m.Offset != offset+1 {
				t.Fatalf("%s after %d at %d", m.text, last[p], offset)
			}
			if last[p], offset = i, m.Offset; i == messages+1 {
				ends++
			}
		}
		return count
	}
	got, again := read(alice), read(all)
	if missed := missedAt(list[0]); got != again || uint64(3*messages+3-got) != missed || missed == 0 {
		t.Errorf("she got %d of %d, the pattern %d, and %d are counted as missed", got, 3*messages+3, again, missed)
	}
}

// A server that is cut off for a while counts what it has missed when the next one comes; its own clients go on.
func TestClusterPassingOutage(t *testing.T) {
	n := newFakeNet(1)
	opts := topics()
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/broadcast", Mode: ModeBroadcast})
	list := clustered(t, n, 2, opts, unchanged)
	alice, here := dial(t, list[0], "/ws?topic=room"), dial(t, list[0], "/broadcast")
	subscribers(t, list[0], "room", 1)
	say := func(text string) {
		mustPublish(t, list[1], "room", text)
		if err := list[1].Broadcast("/broadcast", Text, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	say("one")
	alice.want("one")
	here.want("one")
	fakeOf(list[0]).cut(true)
	late := dial(t, list[0], "/ws", speakJSON)
	late.subscribed("other") // which is not followed yet
	say("lost")
	say("lost")
	fakeOf(list[0]).cut(false)
	say("two")
	alice.want("two")
	here.want("two")
	eventually(t, "they are counted", func() bool { return missedAt(list[0]) == 4 })
	eventually(t, "what could not be followed is", func() bool {
		mustPublish(t, list[1], "other", "x")
		return list[0].hub.Remote.Counts().TransientIn.Load() > 2
	})
	late.wants("x")
}

// A broadcast reaches all connections of all servers, once: from a client, the application, or the interface.
func TestClusterBroadcast(t *testing.T) {
	n := newFakeNet(1)
	opts := topics()
	opts.Internal.Listen = "127.0.0.1:0"
	opts.Endpoints = append(opts.Endpoints, echoAndBroadcast()...)
	list := clustered(t, n, 2, opts, unchanged)
	alice, bob, echo := dial(t, list[0], "/broadcast"), dial(t, list[1], "/broadcast"), dial(t, list[1], "/echo")
	alice.send("from alice")
	alice.want("from alice")
	bob.want("from alice")
	n.set(func() { n.twice = 1 })
	if err := list[1].Broadcast("/broadcast", Binary, []byte("from the application")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*client{alice, bob} {
		if op, payload, err := c.frame(); op != Binary || string(payload) != "from the application" {
			t.Fatal(op, payload, err)
		}
	}
	if got := string(call(t, list[0], "POST", "/v1/broadcast", "from everywhere", asText).is(t, 200).body); got != `{"connections":1}`+"\n" {
		t.Error(got)
	}
	for _, c := range []*client{alice, bob, echo} {
		c.want("from everywhere")
	}
	fakeOf(list[0]).cut(true)
	call(t, list[0], "POST", "/v1/broadcast", "nobody", asText).isProblem(t, 503, "no-cluster", "the cable is out")
	alice.send("x")
	alice.wantClose(1013, "the cluster cannot be reached")
}

// While the cluster cannot be reached nothing is swallowed: publishers are told, and so are those who look.
func TestClusterOutage(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log", History: 10})
	opts.Internal.Listen = "127.0.0.1:0"
	s := clustered(t, n, 1, opts, unchanged)[0]
	opts.ClusterOptional = true
	optional := clustered(t, n, 1, opts, unchanged)[0]
	call(t, s, "GET", "/readyz", "").is(t, 200)
	batch := `{"topic":"log","data":1}` + "\n" + `{"topic":"passing","data":1}` + "\n" + `{"topic":"a..b","data":1}` + "\n"
	fakeOf(s).cut(true)
	fakeOf(optional).cut(true)
	for _, topic := range []string{"log", "passing"} {
		a := call(t, s, "POST", "/v1/topics/"+topic+"/messages", "x", asText).isProblem(t, 503, "no-cluster", "the cable is out")
		if a.header.Get("Retry-After") == "" {
			t.Error("the answer does not say when to try again")
		}
	}
	if got := string(call(t, s, "POST", "/v1/messages", batch, asLines).is(t, 200).body); strings.Count(got, "/problems/no-cluster") != 2 || strings.Count(got, "/problems/invalid-topic") != 1 {
		t.Error(got)
	}
	call(t, s, "GET", "/v1/topics/log/messages", "").isProblem(t, 503, "no-cluster", "")
	a := call(t, s, "GET", "/readyz", "").isProblem(t, 503, "not-ready", "the cluster cannot be reached")
	if !strings.Contains(string(a.body), `"reason":"cluster"`) {
		t.Errorf("%s", a.body)
	}
	call(t, optional, "GET", "/readyz", "").is(t, 200)
	if up := scrape(t, s)["carillon_cluster_up"]; up != 0 {
		t.Errorf("up is %v", up)
	}
	fakeOf(s).cut(false)
	call(t, s, "GET", "/readyz", "").is(t, 200)
	if up := scrape(t, s)["carillon_cluster_up"]; up != 1 {
		t.Errorf("up is %v", up)
	}
	var results struct{ Results []Receipt }
	call(t, s, "POST", "/v1/messages", batch, asLines).is(t, 200).into(t, &results)
	if len(results.Results) != 3 || results.Results[0].Epoch != "first" || results.Results[1].Offset != 1 {
		t.Errorf("%+v", results)
	}
	t.Run("the same key at another server", func(t *testing.T) {
		fakeOf(optional).cut(false)
		var receipts [2]Receipt
		for i, at := range []*Server{s, optional} {
			call(t, at, "POST", "/v1/topics/log/messages", "once", asText, "Idempotency-Key: k").is(t, 200).into(t, &receipts[i])
		}
		if receipts[0] != receipts[1] {
			t.Errorf("%+v", receipts)
		}
	})
	t.Run("it is not known", func(t *testing.T) {
		n.set(func() { n.unsure = 1 })
		call(t, s, "POST", "/v1/topics/log/messages", "x", asText).isProblem(t, 504, "uncertain", "no word of it")
		c := dial(t, s, "/ws", speakJSON)
		if got := c.ask(`{"id":1,"publish":{"topic":"log","data":1}}`); got.Error == nil || got.Error.Code != "uncertain" {
			t.Error(got.text)
		}
		if errors := scrape(t, s)["carillon_cluster_publish_errors_total"]; errors != 2 {
			t.Errorf("%v errors are counted", errors)
		}
	})
}

// A batch does not wait for one message before it sends the next.
func TestClusterBatch(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log", History: 2000})
	opts.Internal.Listen = "127.0.0.1:0"
	s := clustered(t, n, 1, opts, unchanged)[0]
	var told time.Time
	fakeOf(s).mail.put(func() {
		eventually(t, "all are published", func() bool { return len(n.log("log")) == 1000 })
		told = time.Now()
	})
	var batch strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&batch, `{"topic":"log","data":%d}`+"\n", i)
	}
	var results struct{ Results []Receipt }
	call(t, s, "POST", "/v1/messages", batch.String(), asLines).is(t, 200).into(t, &results)
	if told.IsZero() || len(results.Results) != 1000 {
		t.Fatalf("%d results", len(results.Results))
	}
	for i, m := range n.log("log") {
		if string(m.Payload) != fmt.Sprint(i) || results.Results[i].Offset != m.Offset {
			t.Fatalf("message %d is %s at %d; the receipt is %+v", i, m.Payload, m.Offset, results.Results[i])
		}
	}
}

// silentBroker takes messages for transient topics, and says what becomes of them when the test does.
type silentBroker struct {
	*fakeBroker
	ends chan func(error)
}

func (b *silentBroker) PublishTransient(_ Publication, _, _ uint64, done func(error)) { b.ends <- done }

// A publisher that publishes to a transient topic again, with the key of a message, is told what became of that one: as
// soon as it is known, and neither before nor anything else. The message is handed over once.
func TestClusterKeyOfPassing(t *testing.T) {
	opts := topics()
	b := &silentBroker{newFakeNet(1).newBroker(), make(chan func(error), 10)}
	opts.Broker = b
	s, _ := startChanged(t, opts, unchanged)
	c := dial(t, s, "/ws?topic=room")
	subscribers(t, s, "room", 1)
	failures := uint64(0)
	for _, end := range []error{errors.New("the connection was lost"), nil} {
		for _, waits := range []bool{true, false} {
			p := Publication{Topic: "room", Payload: []byte("x"), Key: fmt.Sprint(end, waits)}
			outcomes := make(chan hub.Published, 10)
			publish := func() {
				s.PublishFunc(p, func(r Receipt, err error) {
					if again, err := s.Publish(p); err != nil || again != r { // nothing is locked
						t.Errorf("%+v, %v, and then %+v", r, err, again)
					}
					outcomes <- hub.Published{Receipt: r, Err: err}
				})
			}
			want := 3
			if waits {
				want++
				publish()
			}
			first, err := s.Publish(p) // a caller that does not wait is not told
			if err != nil {
				t.Fatal(err)
			}
			publish()
			publish()
			if len(outcomes) > 0 {
				t.Fatalf("before anything is known: %+v", <-outcomes)
			}
			(<-b.ends)(end)
			publish()
			for range want {
				if got := <-outcomes; errors.Is(got.Err, ErrUncertain) != (end != nil) || got.Receipt != first {
					t.Errorf("%+v, after %+v whose end was %v", got, first, end)
				}
			}
			if len(b.ends) > 0 {
				t.Errorf("it was handed over %d times more", len(b.ends))
			}
			if c.want("x"); end != nil {
				failures++
			}
		}
	}
	mustPublish(t, s, "room", "end")
	c.want("end") // each came once
	if n := s.hub.Remote.Counts().Failures.Load(); n != failures {
		t.Errorf("%d failures are counted, want %d", n, failures)
	}

	t.Run("one that was not delivered", func(t *testing.T) {
		p, end := Publication{Topic: "room", Key: "k"}, make(chan error, 1)
		b.cut(true)
		s.PublishFunc(p, func(_ Receipt, err error) { end <- err })
		if err := <-end; !errors.Is(err, ErrNoCluster) {
			t.Error(err)
		}
		b.cut(false)
		<-b.ends // of the end
		s.PublishFunc(p, func(_ Receipt, err error) { end <- err })
		(<-b.ends)(nil)
		if err := <-end; err != nil {
			t.Error(err)
		}
	})
}

// A broker may say at once what became of a message, when the topic and its key are still locked.
func TestClusterKeyAtOnce(t *testing.T) {
	s := clustered(t, newFakeNet(1), 1, topics(), unchanged)[0]
	c := dial(t, s, "/ws", speakJSON)
	for range 2 {
		if got := c.ask(`{"id":1,"publish":{"topic":"room","data":1,"key":"k"}}`); got.Published == nil || got.Published.Offset != 1 {
			t.Error(got.text)
		}
	}
}
