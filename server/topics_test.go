package server

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/codec"
)

func topicsEndpoint() Endpoint {
	return Endpoint{Path: "/ws", Mode: ModeTopics, Topics: TopicAccess{Publish: []string{">"}, Patterns: true, Presence: true}}
}

const speakJSON = "Sec-WebSocket-Protocol: carillon.v1.json"

// said is any message of the JSON protocol.
type said struct {
	ID         json.RawMessage
	Topic      string
	Offset     uint64
	Time       int64
	Data       json.RawMessage
	Subscribed *struct {
		Topic     string
		Offset    uint64
		Epoch     string
		Recovered *bool
	}
	Published *struct {
		Offset      uint64
		Epoch       string
		Subscribers int
	}
	Error *struct{ Code, Message string }
}

func (c *client) said() said {
	c.t.Helper()
	op, payload, err := c.frame()
	if err != nil || op != Text {
		c.t.Fatalf("got %v %.80q, %v", op, payload, err)
	}
	var s said
	if err := json.Unmarshal(payload, &s); err != nil {
		c.t.Fatalf("%s: %v", payload, err)
	}
	return s
}

// Alice and bob listen to prices, cathy to scores. Each gets what was published to its topics, as it was.
func TestTopicsRaw(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{topicsEndpoint()}})
	alice, bob := dial(t, s, "/ws?topic=prices"), dial(t, s, "/ws?topic=prices&topic=other")
	cathy := dial(t, s, "/ws?topic=scores")
	eventually(t, "they are subscribed", func() bool { return len(s.Subscribers("prices")) == 2 && len(s.Subscribers("scores")) == 1 })
	for i, format := range []Format{FormatText, FormatJSON, FormatBinary} {
		r, err := s.Publish(Publication{Topic: "prices", Format: format, Payload: []byte(`{"a":1}`)})
		if err != nil || r.Offset != uint64(i+1) || r.Subscribers != 2 {
			t.Fatal(r, err)
		}
	}
	if _, err := s.Publish(Publication{Topic: "scores", Payload: []byte("1:0")}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*client{alice, bob} {
		c.want(`{"a":1}`)
		c.want(`{"a":1}`)
		if op, payload, err := c.frame(); op != codec.OpBinary || string(payload) != `{"a":1}` {
			t.Fatal(op, payload, err)
		}
	}
	cathy.want("1:0")
}

// Clients are cut off at random moments while publishers publish without pause, and come back with their
// last position. What each of them has got in the end is the topic, without a gap, twice or out of order.
func TestResumeUnderPublishing(t *testing.T) {
	const clients, cuts = 20, 60
	s := start(t, Options{Endpoints: []Endpoint{topicsEndpoint()}, Topics: []TopicRule{{Match: "log", History: 1_000_000, MaxBytes: -1}}})
	var stop atomic.Bool
	var publishers sync.WaitGroup
	for p := range 3 {
		publishers.Go(func() {
			for i := 0; !stop.Load(); i++ {
				if _, err := s.Publish(Publication{Topic: "log", Format: FormatJSON, Payload: fmt.Appendf(nil, "[%d,%d]", p, i)}); err != nil {
					t.Error(err)
					return
				}
				if i%7 == 0 {
					time.Sleep(200 * time.Microsecond)
				}
			}
		})
	}
	logs := make([][]string, clients)
	var all sync.WaitGroup
	for n := range clients {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 3))
			since, epoch := uint64(0), ""
			for range cuts {
				c := dial(t, s, "/ws", speakJSON)
				if epoch == "" {
					c.send(`{"id":1,"subscribe":{"topic":"log","last":10000}}`)
				} else {
					c.send(fmt.Sprintf(`{"id":1,"subscribe":{"topic":"log","since":{"offset":%d,"epoch":%q}}}`, since, epoch))
				}
				reply := c.said()
				if reply.Subscribed == nil || epoch != "" && !*reply.Subscribed.Recovered {
					t.Errorf("client %d: %+v", n, reply)
					return
				}
				epoch = reply.Subscribed.Epoch
				for range r.IntN(200) {
					m := c.said()
					if since != 0 && m.Offset != since+1 {
						t.Errorf("client %d: message %d after %d", n, m.Offset, since)
						return
					}
					since = m.Offset
					logs[n] = append(logs[n], string(m.Data))
				}
				_ = c.conn.Close()
			}
		})
	}
	all.Wait()
	stop.Store(true)
	publishers.Wait()
	past, err := s.History("log", Start{Last: 1_000_000}, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	var topic []string
	for _, m := range past.Messages {
		topic = append(topic, string(m.Payload))
	}
	whole := strings.Join(topic, " ")
	for n, log := range logs {
		if !strings.Contains(whole, strings.Join(log, " ")) {
			t.Errorf("client %d: its log of %d messages is no part of the topic", n, len(log))
		}
	}
}
