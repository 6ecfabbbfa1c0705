package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// replaceReplicas has only this answer a stream's direct gets.
func replaceReplicas(t *testing.T, n *testNode, answer func(nc *nats.Conn, m *nats.Msg, from uint64)) {
	t.Helper()
	nc, err := nats.Connect(n.o.NATS.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	st := n.streams[0]
	c := n.configIn(st, st.epochNow())
	c.AllowDirect = false
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.UpdateStream(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	_, err = nc.Subscribe("$JS.API.DIRECT.GET."+st.name, func(m *nats.Msg) {
		var question struct{ Seq uint64 }
		if err := json.Unmarshal(m.Data, &question); err != nil {
			t.Error(err)
		}
		answer(nc, m, question.Seq)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

// stored is a message as a replica answers with it.
func stored(offset uint64, header ...string) *nats.Msg {
	m := &nats.Msg{Header: nats.Header{"Nats-Sequence": {fmt.Sprint(offset)}, "Nats-Time-Stamp": {"2026-01-02T03:04:05Z"}},
		Data: sealKept(&topic.Publication{Payload: fmt.Append(nil, offset)})}
	for i := 0; i < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	return m
}

func status(code, last string) *nats.Msg {
	return &nats.Msg{Header: nats.Header{"Status": {code}, "Nats-Num-Pending": {"0"}, "Nats-Last-Sequence": {last}}}
}

func TestWhatReplicasDoNotHaveComesFromTheLeader(t *testing.T) {
	const count = 50
	// batch answers with the messages up to one, but for what is left out.
	batch := func(from, to, hole uint64) (list []*nats.Msg) {
		last := uint64(0)
		for offset := from; offset <= to; offset++ {
			if offset != hole {
				list = append(list, stored(offset, "Nats-Num-Pending", fmt.Sprint(to-offset), "Nats-Last-Sequence", fmt.Sprint(last)))
			}
			last = offset
		}
		return append(list, status("204", fmt.Sprint(last)))
	}
	for _, test := range []struct {
		name   string
		answer func(from uint64) []*nats.Msg
		behind bool
	}{
		{"a replica that has none", func(uint64) []*nats.Msg { return []*nats.Msg{status("404", "0")} }, true},
		{"one that has some", func(from uint64) []*nats.Msg {
			if from > 20 {
				return []*nats.Msg{status("404", "0")}
			}
			return batch(from, 20, 0)
		}, true},
		{"one whose answers lose a message on the way", func(from uint64) []*nats.Msg { return batch(from, count, max(30, from+1)) }, true},
		{"one whose answers lose the last one", func(from uint64) []*nats.Msg { return batch(from, count, count) }, true},
		{"one that fails", func(uint64) []*nats.Msg { return []*nats.Msg{{Header: nats.Header{"Status": {"500"}}}} }, true},
		{"one that says nothing", func(uint64) []*nats.Msg { return nil }, true},
		{"one of a version that knows no batches", func(from uint64) []*nats.Msg { return []*nats.Msg{stored(from)} }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := join(t, Options{Timeout: 4 * replicaPatience, NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, topic.Rule{Match: ">", History: 1000})
			var want []string
			for i := range count {
				want = append(want, fmt.Sprint(i+1))
				if _, err := n.store("a", want[i], ""); err != nil {
					t.Fatal(err)
				}
			}
			replaceReplicas(t, n, func(nc *nats.Conn, m *nats.Msg, from uint64) {
				for _, one := range test.answer(from) {
					one.Subject = m.Reply
					if err := nc.PublishMsg(one); err != nil {
						t.Error(err)
					}
				}
			})
			began := time.Now()
			for _, after := range []uint64{0, 7, count} {
				k, err := n.load("a", after)
				if err != nil || k.Since != after || k.Last != count || !slices.Equal(payloads(k.Messages), want[after:]) {
					t.Errorf("after %d: since %d, last %d, %v, %v", after, k.Since, k.Last, payloads(k.Messages), err)
				}
			}
			got := n.Stats().LeaderLoads
			switch {
			case test.behind && got == 0:
				t.Error("nothing was loaded from the leader")
			case !test.behind && got > 0 && time.Since(began) < replicaPatience:
				t.Errorf("%d loads from the leader", got)
			}
		})
	}
}

// The first message of a topic is published while it is loaded, after the leader was asked for the newest one: then it
// is loaded, or it is beyond what the answer is good for, since it comes to those who follow the topic.
func TestTheFirstMessageOfATopicIsNotLostWhileItIsLoaded(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, topic.Rule{Match: "kept.>", History: 100})
	st := n.streams[0]
	at := place{st, "kept.a", n.names.store(st.id, st.epochNow(), "kept.a")}
	for _, topic := range []string{"kept.b", "kept.a", "kept.b"} {
		if _, err := n.store(topic, topic, ""); err != nil {
			t.Fatal(err)
		}
	}
	k, err := n.reach(at, topic.Snapshot{Epoch: st.epochNow()}, 0, 0, time.Now().Add(patience))
	if err != nil || k.Since != 0 || k.Last >= 2 && (len(k.Messages) != 1 || k.Messages[0].Offset != 2) {
		t.Errorf("since %d, last %d, %v, %v", k.Since, k.Last, payloads(k.Messages), err)
	}
}

// A replica's clock is ahead, or its timer was faster: it has removed messages that are not too old by the leader's
// clock.
func TestWhatAReplicaHasRemovedEarlyComesFromTheLeader(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, topic.Rule{Match: "kept.>", History: 100, MaxAge: time.Hour})
	for i := range 50 {
		if _, err := n.store("kept.a", fmt.Sprint(i+1), ""); err != nil {
			t.Fatal(err)
		}
	}
	replaceReplicas(t, n, func(nc *nats.Conn, m *nats.Msg, from uint64) {
		last := uint64(0)
		for offset := max(from, 31); offset <= 50; offset++ {
			if err := m.RespondMsg(stored(offset, "Nats-Num-Pending", fmt.Sprint(50-offset), "Nats-Last-Sequence", fmt.Sprint(last))); err != nil {
				t.Error(err)
			}
			last = offset
		}
		if err := m.RespondMsg(status("204", fmt.Sprint(last))); err != nil {
			t.Error(err)
		}
	})
	for _, after := range []uint64{0, 10, 29, 30, 31, 50} {
		k, err := n.load("kept.a", after)
		if err != nil || k.Since != after || k.Last != 50 || len(k.Messages) != int(50-after) {
			t.Errorf("after %d: since %d, last %d, %d messages, %v", after, k.Since, k.Last, len(k.Messages), err)
			continue
		}
		for i, m := range k.Messages {
			if m.Offset != after+uint64(i)+1 || string(m.Payload) != fmt.Sprint(m.Offset) {
				t.Errorf("after %d, message %d is %q at %d", after, i, m.Payload, m.Offset)
			}
		}
	}
}

// A topic is full, and its oldest messages are removed all the time while it is loaded. Something that is older in the
// stream stays. No client may be told that nothing is missing since then, and what there is has to be without a hole.
func TestWhatIsLoadedWhileMessagesAreRemovedIsHonest(t *testing.T) {
	for _, test := range []struct {
		name      string
		noBatches bool
		history   int
		burst     int
	}{
		{"from replicas, in several batches", false, 3 * batchMessages, 100},
		{"from the leader", true, 300, 2},
		{"from the leader, more at once than the topic keeps", true, 10, 15},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, topic.Rule{Match: ">", History: test.history})
			if _, err := n.store("older", "x", ""); err != nil {
				t.Fatal(err)
			}
			if test.noBatches {
				replaceReplicas(t, n, func(nc *nats.Conn, m *nats.Msg, from uint64) {
					one := stored(from)
					one.Subject = m.Reply
					if err := nc.PublishMsg(one); err != nil {
						t.Error(err)
					}
				})
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					var wait sync.WaitGroup
					for range test.burst {
						wait.Add(1)
						n.PublishPersistent(topic.Publication{Topic: "a", Payload: []byte("x")}, 0, func(topic.Position, error) { wait.Done() })
					}
					wait.Wait()
					select {
					case <-stop:
						return
					case <-time.After(rand.N(20 * time.Millisecond)):
					}
				}
			}()
			defer func() {
				close(stop)
				<-stopped
			}()
			eventually(t, "the topic is full", func() bool {
				return n.Stats().Published > uint64(2*test.history)
			})
			loaded := 0
			for end := time.Now().Add(time.Second); time.Now().Before(end) || loaded < 10; {
				k, err := n.load("a", 1)
				if err != nil {
					if time.Since(end) > patience {
						t.Fatal(err)
					}
					continue // it was removed faster than it could be fetched
				}
				loaded++
				if len(k.Messages) == 0 && k.Since == k.Last {
					continue // all that was fetched has been removed meanwhile
				}
				if len(k.Messages) == 0 || k.Since+1 < k.Messages[0].Offset {
					t.Fatalf("since %d, last %d, and there are %v", k.Since, k.Last, k.Messages[:min(1, len(k.Messages))])
				}
				for i, m := range k.Messages[1:] {
					if m.Offset != k.Messages[i].Offset+1 { // nothing else is published
						t.Fatalf("a hole: %d follows %d", m.Offset, k.Messages[i].Offset)
					}
				}
			}
			t.Logf("%d loads, %d messages published", loaded, n.Stats().Published)
		})
	}
}

func TestMessagesThatAreRemovedWhileOthersAreFetchedLeaveNoHole(t *testing.T) {
	list := func(offsets ...uint64) (f fetched) {
		for _, offset := range offsets {
			f.messages = append(f.messages, topic.Message{Offset: offset})
		}
		return f
	}
	unreadable := func(offset uint64, rest ...uint64) fetched {
		f := list(rest...)
		f.lost = offset
		return f
	}
	for _, test := range []struct {
		name            string
		had, came, want fetched
	}{
		{"the first", fetched{}, list(3, 5), list(3, 5)},
		{"what follows", list(3, 5), list(5, 8, 9), list(3, 5, 8, 9)},
		{"nothing new", list(3, 5), list(5), list(3, 5)},
		{"nothing at all", list(3, 5), fetched{}, list(3, 5)},
		{"the last one is gone", list(3, 5), list(8, 9), list(8, 9)},
		{"one that cannot be read follows", list(3, 5), unreadable(8, 9), unreadable(8, 9)},
		{"something follows one that cannot be read", unreadable(5), unreadable(5, 8), unreadable(5, 8)},
		{"one that could not be read is gone", unreadable(5), list(8), list(8)},
		{"nothing new after one that cannot be read", unreadable(5), unreadable(5), unreadable(5)},
	} {
		test.had.resume(test.came)
		if got := test.had; got.lost != test.want.lost || !slices.EqualFunc(got.messages, test.want.messages, func(a, b topic.Message) bool { return a.Offset == b.Offset }) {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

// The loader of a topic takes what comes up to Last for what it has. A topic's first message may come while it is
// loaded: then it is among what was loaded, or behind that.
func TestTheFirstMessageOfATopicIsLoadedOrFollows(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, topic.Rule{Match: ">", History: 10})
	followed := 0
	for i := 0; i < 2000 && followed < 100; i++ {
		name := fmt.Sprint("topic.", i)
		at := make(chan topic.Position, 1)
		n.PublishPersistent(topic.Publication{Topic: name, Payload: []byte("x")}, 0, func(p topic.Position, err error) {
			if err != nil {
				t.Error(err)
			}
			at <- p
		})
		k, err := n.load(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		if p := <-at; len(k.Messages) == 0 && p.Offset <= k.Last {
			t.Fatalf("%s has nothing up to %d, and its first message is at %d", name, k.Last, p.Offset)
		}
		if len(k.Messages) == 0 {
			followed++
		}
	}
	t.Logf("%d times the first message followed", followed)
}

// What is asked about a number while it cannot be seen alone: at least so many, at most so many.
func TestBoundsOfWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		observed [][2]int
		want     bounds
	}{
		{"exact", [][2]int{{1, 1}, {1, 1}}, bounds{1, 1, 2, 2}},
		{"from both sides", [][2]int{{-2, 3}, {1, 5}, {-1, 1}, {1, 4}}, bounds{1, 1, 2, 1}},
		{"wide ones say nothing", [][2]int{{0, 0}, {-3, 7}, {0, 2}, {-1, 0}}, bounds{0, 0, 2, 2}},
		{"a contradiction starts anew", [][2]int{{0, 0}, {0, 0}, {1, 1}}, bounds{1, 1, 1, 1}},
		{"also from above", [][2]int{{2, 2}, {2, 2}, {0, 1}}, bounds{0, 1, 1, 1}},
	} {
		var k bounds
		for _, o := range test.observed {
			k.observe(o[0], o[1])
		}
		if k != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, k, test.want)
		}
	}
}
