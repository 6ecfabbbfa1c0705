package server

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// nomad is a client that is cut off again and again, and comes back to any server with its last position.
type nomad struct {
	t     *testing.T
	list  []*Server
	r     *rand.Rand
	last  Position
	log   []string // what it got; "gap" where it was told of one
	lives int
}

// life is one connection: it opens it and reads some messages.
func (w *nomad) life(topic string) error {
	c := dialRaw(w.t, w.list[w.r.IntN(len(w.list))])
	defer func() { _ = c.conn.Close() }()
	query := "/ws?topic=" + topic
	if w.last.Epoch != "" {
		query += fmt.Sprintf("&since=%d&epoch=%s", w.last.Offset, w.last.Epoch)
	}
	c.write([]byte(upgradeHead(query, speakJSON)))
	c.response()
	began, err := c.trySaid()
	if err != nil {
		return err
	}
	if began.Error != nil {
		if began.Error.Code == "unavailable" {
			time.Sleep(time.Millisecond)
			return nil
		}
		return fmt.Errorf("instead of a subscription: %s", began.text)
	}
	w.lives++
	w.begins(began, w.last.Epoch == "")
	for range w.r.IntN(100) {
		m, err := c.trySaid()
		if err != nil {
			return err
		}
		if m.Subscribed != nil { // the server itself has missed something
			w.begins(m, false)
			continue
		}
		if m.Offset <= w.last.Offset && w.log[len(w.log)-1] != "gap" {
			return fmt.Errorf("%s after %d", m.text, w.last.Offset)
		}
		w.last.Offset = m.Offset
		w.log = append(w.log, string(m.Data))
	}
	return nil
}

func (w *nomad) begins(m said, first bool) {
	if first || !*m.Subscribed.Recovered {
		w.log = append(w.log, "gap")
		w.last.Offset = *m.Subscribed.Offset
	}
	w.last.Epoch = m.Subscribed.Epoch
}

// Clients wander between three servers while all three publish without pause, and messages between them get lost, come
// twice, late or out of order, loads fail, and now and then a server is cut off for a moment. Between two gaps that are
// reported to it, what each client got is the topic, without a hole, twice or out of order; and when all is well again,
// every subscriber gets the end.
func TestClusterResumeUnderFaults(t *testing.T) {
	lives := 150
	if testenv.Race {
		lives = 60
	}
	const clients = 12
	n := newFakeNet(7)
	n.lost, n.twice, n.late, n.failing = 0.05, 0.1, 0.1, 0.1
	opts := topics(TopicRule{Match: "log", History: 100, MaxBytes: -1})
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: -1}
	list := clustered(t, n, 3, opts, unchanged)
	var stop atomic.Bool
	var publishers, wanderers, faults sync.WaitGroup
	for p, s := range list {
		publishers.Go(func() {
			for i := 0; !stop.Load(); i++ {
				text := fmt.Sprintf("[%d,%d]", p, i)
				if _, err := s.Publish(Publication{Topic: "log", Format: FormatJSON, Payload: []byte(text)}); err != nil {
					time.Sleep(time.Millisecond) // it is cut off
				}
				if i%3 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	faults.Go(func() {
		for r := rand.New(rand.NewPCG(5, 5)); !stop.Load(); {
			b := fakeOf(list[r.IntN(len(list))])
			b.cut(true)
			time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
			b.cut(false)
			time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
		}
	})
	all := make([]*nomad, clients)
	for i := range all {
		w := &nomad{t: t, list: list, r: rand.New(rand.NewPCG(uint64(i), 3))}
		all[i] = w
		wanderers.Go(func() {
			for w.lives < lives {
				if err := w.life("log"); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				if w.r.IntN(10) == 0 {
					time.Sleep(time.Duration(w.r.IntN(100)) * time.Millisecond)
				}
			}
		})
	}
	wanderers.Wait()
	stop.Store(true)
	publishers.Wait()
	faults.Wait()

	n.set(func() { n.lost, n.failing = 0, 0 })
	var ends []*client
	for _, s := range list {
		c := dial(t, s, "/ws", speakJSON)
		c.subscribed("log")
		ends = append(ends, c)
	}
	mustPublish(t, list[0], "log", "end")
	for _, c := range ends {
		for string(c.said().Data) != `"end"` {
		}
	}
	topic := " "
	for _, m := range n.log("log") {
		topic += string(m.Payload) + " "
	}
	gaps, messages := 0, 0
	for i, w := range all {
		for _, part := range strings.Split(" "+strings.Join(w.log, " ")+" ", "gap") {
			messages += strings.Count(part, "[")
			if part != " " && part != "  " && !strings.Contains(topic, part) {
				t.Errorf("client %d: a part of %d bytes between two gaps is no part of the topic", i, len(part))
			}
		}
		gaps += strings.Count(strings.Join(w.log, " "), "gap") - 1
	}
	if gaps == 0 || gaps > clients*lives/2 || messages < clients*lives {
		t.Errorf("%d gaps and %d messages in %d lives: the test is not what it should be", gaps, messages, clients*lives)
	}
	st := list[0].hub.Remote.Counts()
	t.Logf("%d messages published, %d delivered in %d lives, %d gaps; at one server %d holes, %d loads, %d of them failed, %d resyncs",
		len(n.log("log")), messages, clients*lives, gaps, st.SequenceGaps.Load(), st.Loads.Load(), st.LoadFailures.Load(), st.Resyncs.Load())
}

// The application subscribes a connection and ends that again before the topic is there, and another one closes
// meanwhile. Each is told once what became of it, in the order in which it asked.
func TestClusterApplicationSubscribes(t *testing.T) {
	n := newFakeNet(1)
	s := clustered(t, n, 1, topics(TopicRule{Match: "log", History: 10}), unchanged)[0]
	begun, release := n.hold()
	alice := dial(t, s, "/ws")
	conn := onlyConn(t, s, "/ws")
	told := make(chan string, 10)
	subscribe := func(c *Conn, who string) {
		if err := c.Subscribe("log", SubscribeOptions{Done: func(_ Subscribed, err error) { told <- fmt.Sprint(who, " ", err) }}); err != nil {
			t.Fatal(err)
		}
	}
	subscribe(conn, "alice begins")
	conn.Unsubscribe("log", func(err error) { told <- fmt.Sprint("alice ends ", err) })
	bob := dial(t, s, "/ws")
	for c := range s.Conns() {
		if c != conn {
			subscribe(c, "bob begins")
			_ = c.Close(4000, "")
		}
	}
	bob.wantClose(4000, "")
	eventually(t, "the load is asked for", func() bool { return begun() == 1 })
	if len(told) != 0 {
		t.Error("a client was told too early")
	}
	release()
	got := map[string]bool{}
	var order []string
	for range 3 {
		one := <-told
		got[one] = true
		if strings.HasPrefix(one, "alice") {
			order = append(order, one)
		}
	}
	if !got["bob begins connection is closed"] || fmt.Sprint(order) != "[alice begins <nil> alice ends <nil>]" {
		t.Error(got, order)
	}
	mustPublish(t, s, "log", "x")
	past, err := s.History("log", Start{Last: 10}, 10)
	if err != nil || len(past.Messages) != 1 {
		t.Error(past, err)
	}
	if err := conn.Send(Text, []byte("nothing else")); err != nil {
		t.Fatal(err)
	}
	alice.want("nothing else")
	if len(told) != 0 {
		t.Errorf("and %s", <-told)
	}
}
