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

	"carillon/server"
	"carillon/server/topic"

	"github.com/coder/websocket"
)

// wanderer is a WebSocket client that comes to one server after another with the position that it has.
type wanderer struct {
	last  topic.Position
	log   []string
	lives int
}

// live is one connection, for some messages.
func (w *wanderer) live(ctx context.Context, s *server.Server, messages int) error {
	url := s.URL("/ws?topic=log")
	if w.last.Epoch != "" {
		url += fmt.Sprintf("&since=%d&epoch=%s", w.last.Offset, w.last.Epoch)
	}
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{Subprotocols: []string{"carillon.v1.json"}})
	if err != nil {
		return nil // a server without the cluster may refuse
	}
	defer func() { _ = c.CloseNow() }()
	for range messages {
		patience, cancel := context.WithTimeout(ctx, time.Second)
		_, text, err := c.Read(patience)
		cancel()
		if err != nil {
			return nil // nothing comes, or the server has closed the connection
		}
		var m struct {
			Subscribed *struct {
				Offset    uint64
				Epoch     string
				Recovered bool
			}
			Offset uint64
			Data   json.RawMessage
			Error  json.RawMessage
		}
		if err := json.Unmarshal(text, &m); err != nil {
			return err
		}
		switch {
		case m.Error != nil:
			return nil
		case m.Subscribed != nil:
			if w.last.Epoch != "" && !m.Subscribed.Recovered {
				return fmt.Errorf("a gap after %v: %s", w.last, text)
			}
			if w.last.Epoch == "" {
				w.last.Offset = m.Subscribed.Offset
			}
			w.last.Epoch = m.Subscribed.Epoch
			w.lives++
		default:
			if m.Offset <= w.last.Offset {
				return fmt.Errorf("%s came after %v", text, w.last)
			}
			w.last.Offset = m.Offset
			w.log = append(w.log, string(m.Data))
		}
	}
	return nil
}

// Three servers with embedded NATS, clients that wander between them, publishers at all of them, and one server after
// another is cut off from the others: what each client gets is the topic, without a hole, a repetition or a change
// of order.
func TestClientsThatWanderBetweenServersGetTheTopic(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	rule := topic.Rule{Match: "log", History: 1_000_000, MaxAge: -1, MaxBytes: -1}
	x := prepareTrio(t, rule)
	var servers [3]*server.Server
	var brokers [3]*Broker
	for i := range 3 {
		o := x.o[i]
		o.Logger, _ = newLog(t)
		b, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		b.tune = onlyLinks
		s, err := server.New(server.Options{Listen: "127.0.0.1:0", Loops: 1, Broker: b, Topics: []topic.Rule{rule}, Logger: o.Logger,
			Endpoints: []server.Endpoint{{Path: "/ws", Mode: server.ModeTopics, SlowConsumer: server.SlowConsumer{MaxQueue: -1}}}})
		if err != nil {
			t.Fatal(err)
		}
		servers[i], brokers[i] = s, b
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	for i, s := range servers {
		select {
		case <-s.Started():
		case <-time.After(patience):
			t.Fatal("a server does not start")
		}
		eventually(t, "the nodes know each other", func() bool { return len(brokers[i].Nodes()) == 3 })
	}

	clients := make([]*wanderer, 8)
	for i := range clients {
		w := &wanderer{}
		clients[i] = w
		eventually(t, "a client is there before the first message", func() bool {
			if err := w.live(t.Context(), servers[i%3], 1); err != nil {
				t.Fatal(err)
			}
			return w.last.Epoch != ""
		})
	}
	stop := make(chan struct{})
	var publishers, wanderers sync.WaitGroup
	var mu sync.Mutex
	acknowledged := map[string]bool{} // guarded by mu
	last := uint64(0)                 // guarded by mu: the highest offset of them
	for p, s := range servers {
		publishers.Go(func() {
			for i := 0; ; i++ {
				text := fmt.Sprintf("[%d,%d]", p, i)
				for {
					select {
					case <-stop:
						return
					default:
					}
					at, err := s.Publish(topic.Publication{Topic: "log", Format: topic.FormatJSON, Payload: []byte(text), Key: text})
					if err == nil {
						mu.Lock()
						acknowledged[text], last = true, max(last, at.Offset)
						mu.Unlock()
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(rand.N(10 * time.Millisecond))
			}
		})
	}
	over := make(chan struct{})
	for i, w := range clients {
		wanderers.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if err := w.live(t.Context(), servers[rand.N(3)], rand.N(50)); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
			}
		})
	}
	for i := range 3 {
		x.isolate(i, true)
		time.Sleep(time.Second)
		x.isolate(i, false)
		eventually(t, "all are well", func() bool {
			return !slices.ContainsFunc(brokers[:], func(b *Broker) bool { return b.PersistentErr(0) != nil || len(b.Nodes()) != 3 })
		})
		time.Sleep(time.Second)
	}
	close(stop)
	publishers.Wait()
	close(over)
	wanderers.Wait()

	var past topic.HistoryPage
	eventually(t, "a server has the topic's end", func() bool {
		var err error
		past, err = servers[0].History("log", topic.Start{Last: 1}, 1)
		return err == nil && past.Offset >= last
	})
	lives := 0
	for i, w := range clients {
		for end := time.Now().Add(patience); w.last.Offset < past.Offset && time.Now().Before(end); {
			if err := w.live(t.Context(), servers[rand.N(3)], 1_000); err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
		}
		lives += w.lives
	}
	for i, w := range clients {
		if !slices.Equal(w.log, clients[0].log) {
			t.Errorf("client %d has %d messages, client 0 %d, and they differ", i, len(w.log), len(clients[0].log))
		}
	}
	got := map[string]bool{}
	for _, text := range clients[0].log {
		if got[text] {
			t.Errorf("%s came twice", text)
		}
		got[text] = true
	}
	for text := range acknowledged {
		if !got[text] {
			t.Errorf("%s was acknowledged and did not come", text)
		}
	}
	t.Logf("%d messages acknowledged, in %d lives of %d clients", len(acknowledged), lives, len(clients))
}
