package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
)

// Thousands of random things happen at once, from clients and from the application: connections of all kinds
// come, subscribe, unsubscribe, publish, freeze, are closed and cut off. When they are gone nothing is left
// of them: no topic, no pattern, no byte, no memory.
func TestNothingIsLeftOfTopics(t *testing.T) {
	steps := 1500
	if testenv.Race {
		steps = 500
	}
	opts := topics(TopicRule{Match: "n.1.>", History: 20}, TopicRule{Match: "n.2.>", Latest: true}, TopicRule{Match: ">", History: 5, MaxAge: 50 * time.Millisecond})
	for i := range opts.Topics {
		opts.Topics[i].MaxAge = 50 * time.Millisecond
	}
	opts.Loops = 3
	opts.Endpoints[0].Compression = Compression{Enabled: true}
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: 64 << 10}
	opts.Ping = Ping{Interval: 50 * time.Millisecond, Timeout: patience}
	opts.Limits.WriteTimeout = 500 * time.Millisecond
	s, _ := startChanged(t, opts, func(s *Server) { s.hub.Linger = 50 * time.Millisecond })
	storm := func(seed uint64) {
		var all sync.WaitGroup
		for n := range uint64(8) {
			all.Go(func() { wander(t, s, rand.New(rand.NewPCG(seed, n)), steps) })
		}
		all.Wait()
		eventually(t, "all connections are gone", func() bool { return s.Stats().Sockets == 0 })
		eventually(t, "all topics are forgotten", func() bool { return s.hub.Count.Load() == 0 })
	}
	storm(1) // the memory that loops keep for themselves is there now
	before := heapBytes()
	storm(2)
	if names := s.patternNames(); len(names) > 0 {
		t.Errorf("the patterns %v are left", names)
	}
	for i := range s.hub.Parts {
		if n := s.hub.Parts[i].Topics.Len(); n > 0 {
			t.Errorf("%d topics are left that are not counted", n)
		}
	}
	st := s.Stats()
	if st.Open != 0 || st.QueuedBytes != 0 || s.engine.BacklogBytes() != 0 || st.Panics != 0 {
		t.Errorf("%+v, and %d bytes of backlog", st, s.engine.BacklogBytes())
	}
	if !testenv.Race {
		eventually(t, "the memory is given back", func() bool { return heapBytes()-before <= 2<<20 })
	}
}

// wander does random things.
func wander(t *testing.T, s *Server, r *rand.Rand, steps int) {
	topic := func() string { return fmt.Sprintf("n.%d.%d", r.IntN(4), r.IntN(30)) }
	name := func() string {
		return []string{topic(), topic(), "n.*." + fmt.Sprint(r.IntN(3)), fmt.Sprintf("n.%d.>", r.IntN(4))}[r.IntN(4)]
	}
	big := strings.Repeat("b", 20<<10)
	var mine []*client
	leave := func() {
		i := r.IntN(len(mine))
		c := mine[i]
		mine[i] = mine[len(mine)-1]
		mine = mine[:len(mine)-1]
		if r.IntN(2) == 0 {
			_, _ = c.conn.Write(masked(0x88, []byte{0x03, 0xe8}))
		}
		_ = c.conn.Close()
	}
	for range steps {
		for len(mine) > 10 || len(mine) > 0 && r.IntN(20) == 0 {
			leave()
		}
		switch r.IntN(12) {
		case 0:
			mine = append(mine, wanderer(t, s, r, "/ws?topic="+topic()))
		case 1:
			mine = append(mine, wanderer(t, s, r, fmt.Sprintf("/ws?topic=%s&last=%d", topic(), r.IntN(30))))
		case 2, 3, 4:
			payload := "small"
			if r.IntN(4) == 0 {
				payload = big
			}
			if _, err := s.Publish(Publication{Topic: topic(), Payload: []byte(payload)}); err != nil && !errors.Is(err, ErrOverloaded) {
				t.Error(err)
			}
		case 5, 6, 7:
			if len(mine) > 0 {
				c := mine[r.IntN(len(mine))]
				_, _ = c.conn.Write(text(fmt.Sprintf([]string{
					`{"id":1,"subscribe":{"topic":%q}}`, `{"subscribe":{"topic":%q,"last":20}}`, `{"id":1,"unsubscribe":{"topic":%q}}`,
					`{"id":1,"publish":{"topic":%q,"data":1,"key":"k"}}`, `{"id":1,"history":{"topic":%q}}`, `{"id":1,"presence":{"topic":%q}}`,
				}[r.IntN(6)], name())))
			}
		case 8:
			for c := range s.Conns() {
				subscriptions := c.Subscriptions()
				switch what := r.IntN(5); {
				case what == 0:
					_ = c.Subscribe(name(), SubscribeOptions{Envelope: r.IntN(2) == 0, Done: func(Subscribed, error) {}})
				case what == 1 && len(subscriptions) > 0:
					c.Unsubscribe(subscriptions[0], func(error) {})
				case what == 2:
					_ = c.Send(Text, []byte("{}"))
				}
			}
		case 9:
			for c := range s.Conns() {
				if r.IntN(30) == 0 {
					_ = c.Close(codec.CloseNormal, "enough")
				}
			}
		case 10:
			if len(mine) > 0 { // reads what is there
				c := mine[r.IntN(len(mine))]
				_ = c.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
				_, _ = c.conn.Read(make([]byte, 256<<10))
			}
		case 11:
			_, _ = s.Topics("n.*.1")
			s.Subscribers(name())
		}
	}
	for len(mine) > 0 {
		leave()
	}
}

// wanderer opens a connection of any kind, without waiting for the answer.
func wanderer(t *testing.T, s *Server, r *rand.Rand, target string) *client {
	c := dialSmall(t, s)
	head := upgradeHead(target, speakJSON)
	switch r.IntN(4) {
	case 0:
		head = upgradeHead(target)
	case 1:
		head = upgradeHead(target, speakJSON, "Sec-WebSocket-Extensions: permessage-deflate")
	case 2:
		head = eventsHead(target)
	}
	_, _ = c.conn.Write([]byte(head))
	return c
}

// Under a policy that drops messages, replies to requests are kept, whatever the queue is full of. A client that
// reads none of them either is closed in the end.
func TestRepliesAreNotDropped(t *testing.T) {
	for _, p := range []Policy{PolicyDropOldest, PolicyDropNewest, PolicyLatest} {
		t.Run(string(p)+", behind many small messages", func(t *testing.T) {
			askBehind(t, p, func(s *Server) {
				freezeOn(t, s, "fill")
				for dropsOf(s) == 0 {
					mustPublish(t, s, "fill", strings.Repeat("x", 100))
				}
			})
		})
		t.Run(string(p)+", behind one that is larger than the queue", func(t *testing.T) {
			askBehind(t, p, func(s *Server) {
				mustPublish(t, s, "fill", strings.Repeat("x", 1<<20))
				eventually(t, "it waits", func() bool { return s.Stats().QueuedBytes > 64<<10 })
			})
		})
	}
}

// Cathy asks for much more history than her queue holds, in one go, and reads late. The requests wait for her, and what
// is published meanwhile counts alone.
func TestLargeRepliesWaitForTheClient(t *testing.T) {
	opts := topics(TopicRule{Match: "log", History: 1000})
	opts.Limits.WriteTimeout, opts.Ping.Interval = -1, -1
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: 64 << 10}
	s := start(t, opts)
	for range 1000 {
		mustPublish(t, s, "log", strings.Repeat("x", 100))
	}
	const asked, published = 100, 100
	cathy := dialFrozen(t, s, "/ws?topic=news", speakJSON)
	cathy.said()
	cathy.write(repeat(text(`{"id":1,"history":{"topic":"log","limit":1000}}`), asked))
	eventually(t, "a reply waits", func() bool { return s.Stats().QueuedBytes > 64<<10 })
	for range published {
		mustPublish(t, s, "news", strings.Repeat("x", 100))
	}
	eventually(t, "they are posted", func() bool { return s.engine.BacklogBytes() == 0 })
	if n := s.Stats().QueuedBytes; n > 512<<10 {
		t.Errorf("%d B wait, want one reply and %d messages", n, published)
	}
	for replies, messages := 0, 0; replies < asked || messages < published; {
		if m := cathy.said(); m.ID != nil {
			replies++
		} else {
			messages++
		}
	}
}

// askBehind is the story of cathy, for whom too much waits when she asks.
func askBehind(t *testing.T, p Policy, fill func(*Server)) {
	opts := topics()
	opts.Limits.WriteTimeout, opts.Ping.Interval = -1, -1 // she reads late, on a busy machine very late
	opts.Endpoints[0].SlowConsumer = SlowConsumer{Policy: p, MaxQueue: 64 << 10}
	s := start(t, opts)
	cathy := dialFrozen(t, s, "/ws?topic=fill", speakJSON)
	cathy.said()
	fill(s)
	const asked = 20
	for i := range asked {
		request := fmt.Sprintf(`"subscribe":{"topic":"t.%d"}`, i) // its reply is sent at once
		if i%2 == 1 {
			request = `"ping":{}` // and this one's goes through the mailbox
		}
		cathy.send(fmt.Sprintf(`{"id":%d,%s}`, i, request))
		eventually(t, "it came", func() bool { return s.Stats().MessagesIn == uint64(i+1) })
		for range 5 {
			mustPublish(t, s, "fill", strings.Repeat("x", 10<<10))
		}
	}
	eventually(t, "it was her turn", func() bool { return s.engine.BacklogBytes() == 0 })
	if dropsOf(s) == 0 {
		t.Fatal("nothing was dropped")
	}
	for i := 0; i < asked; {
		if m := cathy.said(); m.ID != nil {
			if string(m.ID) != fmt.Sprint(i) || m.Error != nil {
				t.Fatalf("got %s, want the reply to %d", m.text, i)
			}
			i++
		}
	}
	eventually(t, "nothing waits", func() bool { return s.Stats().QueuedBytes == 0 })

	freezeOn(t, s, "fill")
	go func() {
		for i := 0; s.Count() == 1; i++ {
			_, _ = cathy.conn.Write(text(`{"id":"` + strings.Repeat("i", 60) + `","history":{"topic":"no"}}`))
		}
	}()
	eventually(t, "she is closed", func() bool { return s.Count() == 0 })
	if n := s.Stats().Closes[codec.CloseTryAgainLater]; n != 1 {
		t.Errorf("%v", s.Stats().Closes)
	}
}

// A client asks and asks and does not wait for the answers. What its requests hold in the mailbox is part of
// the backlog and stays bounded: TCP slows it down.
func TestRequestsAreBounded(t *testing.T) {
	opts := topics(TopicRule{Match: "log", History: 1000, MaxBytes: -1})
	opts.Loops = 1
	opts.Limits.MaxBacklog = 1 << 20
	s := start(t, opts)
	fill(t, s, "log", 1000)
	eager := dial(t, s, "/ws", speakJSON)
	rounds := 10
	if testenv.Race {
		rounds = 3
	}
	go func() {
		requests := []byte(strings.Repeat(string(text(`{"id":1,"history":{"topic":"log","limit":20}}`)), 1000))
		for range rounds {
			_, _ = eager.conn.Write(requests)
		}
	}()
	most := int64(0)
	for range 1000 * rounds {
		if _, reply, err := eager.frame(); err != nil || !strings.HasPrefix(string(reply), `{"id":1,"history":`) {
			t.Fatalf("%.100s, %v", reply, err)
		}
		most = max(most, s.engine.BacklogBytes())
	}
	if most > 512<<10 {
		t.Errorf("%d bytes were in the mailbox", most)
	}
}

// However long the history is, one reply has about a megabyte of it: the oldest after a position, or the
// newest.
func TestHistoryReplyIsBounded(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "log", History: 1000, MaxBytes: -1}, TopicRule{Match: "huge", History: 5, MaxBytes: -1}))
	var epoch string
	for range 100 {
		epoch = mustPublish(t, s, "log", strings.Repeat("x", 100<<10)).Epoch
	}
	c := dial(t, s, "/ws", speakJSON)
	if m := c.ask(`{"id":1,"history":{"topic":"log","limit":1000}}`); fmt.Sprint(offsets(m.History.Messages)) != "[91 92 93 94 95 96 97 98 99 100]" {
		t.Error(offsets(m.History.Messages))
	}
	if m := c.ask(`{"id":1,"history":{"topic":"log","limit":1000,"since":{"offset":50,"epoch":%q}}}`, epoch); fmt.Sprint(offsets(m.History.Messages)) != "[51 52 53 54 55 56 57 58 59 60]" || !m.History.Recovered {
		t.Error(offsets(m.History.Messages))
	}
	for range 3 {
		mustPublish(t, s, "huge", strings.Repeat("x", 1<<20))
	}
	if m := c.ask(`{"id":1,"history":{"topic":"huge"}}`); fmt.Sprint(offsets(m.History.Messages)) != "[3]" {
		t.Error(offsets(m.History.Messages))
	}
}
