package server

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// holding is a server with one loop, which the test can hold, so that what is posted meanwhile is done at
// once.
func holding(t *testing.T, opts Options) (*Server, *hold, *client) {
	t.Helper()
	h := newHold()
	opts.Loops = 1
	opts.Endpoints = append(opts.Endpoints, h.endpoint())
	s := start(t, opts)
	return s, h, dial(t, s, "/hold")
}

// What one goroutine publishes to a topic and sends to a connection arrives there in that order, and a close
// behind it is the last; at all kinds of clients, and with a crowd of others whose turn may come before.
func TestOrderOfPublishAndSend(t *testing.T) {
	opts := topics()
	opts.Loops = 2
	s := start(t, opts)
	for range 300 {
		dial(t, s, "/ws?topic=a")
	}
	raw := dial(t, s, "/ws?topic=a")
	wrapped := dial(t, s, "/ws?topic=a", speakJSON)
	wrapped.said()
	events := openStream(t, s, "/ws?topic=a")
	events.subscribed()
	subscribers(t, s, "a", 303)
	var last [4]*Conn // those who came last, by id
	for c := range s.Conns() {
		if c.ID() > 300 {
			last[c.ID()-300] = c
		}
	}
	const n = 300
	for i := range n {
		if i%2 == 0 {
			mustPublish(t, s, "a", fmt.Sprintf(`{"offset":%d}`, i))
			continue
		}
		for _, c := range last[1:] {
			if err := c.Send(Text, fmt.Appendf(nil, `{"offset":%d}`, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range last[1:] {
		_ = c.Close(4000, "that was all")
	}
	published := uint64(0)
	for i := range n {
		want := fmt.Sprintf(`{"offset":%d}`, i)
		raw.want(want)
		if e, err := events.event(); err != nil || e.data != want {
			t.Fatalf("got %+v, %v; want %s", e, err, want)
		}
		if i%2 == 0 {
			published++
			if m := wrapped.said(); m.Offset != published || m.Topic != "a" {
				t.Fatalf("got %s, want message %d", m.text, published)
			}
		} else if m := wrapped.said(); m.text != want {
			t.Fatalf("got %s, want %s", m.text, want)
		}
	}
	raw.wantClose(4000, "that was all")
	wrapped.wantClose(4000, "that was all")
	events.want("close", "", `{"code":4000,"reason":"that was all"}`)
	events.wantEOF()
}

// The same when the socket is full, so that all of it has to wait.
func TestOrderAtAFrozenReader(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: -1}
	s := start(t, opts)
	cathy := dialFrozen(t, s, "/ws?topic=fill&topic=a")
	subscribers(t, s, "a", 1)
	filled, conn := freezeOn(t, s, "fill"), onlyConn(t, s, "/ws")
	for i := range 100 {
		mustPublish(t, s, "a", words(2*i))
		if err := conn.Send(Text, []byte(words(2*i+1))); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.Close(4000, "that was all")
	for range filled {
		if _, payload, err := cathy.frame(); err != nil || len(payload) != 64<<10 {
			t.Fatal(len(payload), err)
		}
	}
	for i := range 200 {
		cathy.want(words(i))
	}
	cathy.wantClose(4000, "that was all")
}

// A client sends many requests at once. They are done one after the other, and so are the replies: a publish
// behind a subscribe reaches the subscriber, and one behind an unsubscribe does not.
func TestOrderOfRequests(t *testing.T) {
	s, held, holder := holding(t, topics(TopicRule{Match: "a", History: 5}))
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy=%v", busy), func(t *testing.T) {
			c := dial(t, s, "/ws", speakJSON)
			ask := func(requests ...string) {
				var all []byte
				for _, r := range requests {
					all = append(all, text(`{"id":0,`+r+`}`)...)
				}
				if busy {
					held.take(holder)
				}
				c.write(all)
				if busy {
					held.release()
				}
			}
			want := func(replies string, messages string) {
				t.Helper()
				var got, live []string
				for len(got) < strings.Count(replies, ",")+1 || len(live) < len(strings.Fields(messages)) {
					m := c.said()
					if m.Topic != "" {
						live = append(live, string(m.Data))
						continue
					}
					got = append(got, m.brief())
				}
				if strings.Join(got, ", ") != replies || strings.Join(live, " ") != messages {
					t.Fatalf("got  %q and %q\nwant %q and %q", got, live, replies, messages)
				}
			}
			ask(`"publish":{"topic":"a","data":0}`, `"subscribe":{"topic":"a"}`, `"publish":{"topic":"a","data":1}`, `"ping":{}`,
				`"presence":{"topic":"a"}`, `"fly":{}`, `"history":{"topic":"a","limit":1}`, `"publish":{"topic":"a","data":2}`)
			want("published to 0, subscribed, published to 1, pong, present 1, bad_request, history 1, published to 1", "1 2")
			ask(`"unsubscribe":{"topic":"a"}`, `"publish":{"topic":"a","data":3}`, `"subscribe":{"topic":"a"}`, `"unsubscribe":{"topic":"a"}`,
				`"unsubscribe":{"topic":"a"}`, `"ping":{}`)
			want("unsubscribed, published to 0, subscribed, unsubscribed, not_subscribed, pong", "")
		})
	}
}

// brief is a reply in a few words.
func (s said) brief() string {
	switch {
	case s.Subscribed != nil:
		return "subscribed"
	case s.Unsubscribed != nil:
		return "unsubscribed"
	case s.Published != nil:
		return fmt.Sprintf("published to %d", s.Published.Subscribers)
	case s.Present != nil:
		return fmt.Sprintf("present %d", s.Present.Count)
	case s.History != nil:
		return fmt.Sprintf("history %s", s.History.Messages[0].Data)
	case s.Error != nil:
		return s.Error.Code
	case s.Pong != nil:
		return "pong"
	}
	return s.text
}

// A loop that has too much to look at refuses a publish as a whole, which is counted once. What was taken
// before is delivered.
func TestTopicOverload(t *testing.T) {
	opts := topics()
	opts.Limits.MaxBacklog = 64 << 10
	s, held, holder := holding(t, opts)
	c := dial(t, s, "/ws?topic=a", speakJSON)
	c.said()
	raw := dial(t, s, "/ws?topic=a")
	subscribers(t, s, "a", 2)
	held.take(holder)
	payload := []byte(strings.Repeat("x", 1000))
	published, refused := 0, uint64(0)
	for refused < 10 {
		switch r, err := s.Publish(Publication{Topic: "a", Payload: payload}); {
		case err == nil:
			if published++; r.Offset != uint64(published) {
				t.Fatalf("offset %d after %d", r.Offset, published)
			}
		case errors.Is(err, ErrOverloaded):
			refused++
		default:
			t.Fatal(err)
		}
	}
	if published < 25 || published > 31 { // each message counts in two forms
		t.Errorf("%d were published", published)
	}
	if n := s.Stats().Drops[DropOverloaded]; n != refused {
		t.Errorf("%d are counted, %d were refused", n, refused)
	}
	if _, err := s.Publish(Publication{Topic: "nobody", Payload: payload}); err != nil { // is no concern of the loop
		t.Error(err)
	}
	held.release()
	for range published {
		raw.want(string(payload))
	}
	for range published {
		if m := c.said(); m.Topic != "a" {
			t.Fatal(m.text)
		}
	}
	eventually(t, "nothing is left", func() bool { return s.engine.BacklogBytes() == 0 && s.Stats().QueuedBytes == 0 })
}

// A handler publishes on the loop of those who listen. The loop cannot look at it meanwhile, so that the
// limit is reached. A JSON client of the same loop is told so and stays, a raw one is closed.
func TestOverloadIsTold(t *testing.T) {
	opts := topics()
	opts.Limits.MaxBacklog = 64 << 10
	opts.Loops = 1
	var s *Server
	full := Handler{Message: func(*Conn, codec.Opcode, []byte) {
		for {
			if _, err := s.Publish(Publication{Topic: "a", Payload: []byte("x")}); err != nil {
				break
			}
		}
		// The clients' own messages are next, in the same turn.
		for c := range s.Conns() {
			if c.Path() == "/ws" && c.core().Framing() == reactor.FramingEnvelope {
				takeTopicMessage(c, Text, []byte(`{"id":1,"publish":{"topic":"a","data":"xxxxxx"}}`))
				takeTopicMessage(c, Text, []byte(`{"id":2,"ping":{}}`))
				takeTopicMessage(c, Text, []byte(`{"id":3,"subscribe":{"topic":"b"}}`))
			}
		}
		for c := range s.Conns() {
			if c.Path() == "/ws" && c.core().Framing() == reactor.FramingRaw {
				takeTopicMessage(c, Text, []byte("xxxxxx"))
			}
		}
	}}
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/fill", Handler: full})
	s = start(t, opts)
	c := dial(t, s, "/ws?topic=a", speakJSON)
	c.said()
	raw := dial(t, s, "/ws?topic=c")
	subscribers(t, s, "c", 1)
	dial(t, s, "/fill").send("go")
	var replies []string
	for len(replies) < 3 {
		if m := c.said(); m.ID != nil {
			replies = append(replies, string(m.ID)+errorCodeOf(m))
		}
	}
	if fmt.Sprint(replies) != "[1overloaded 2 3overloaded]" {
		t.Errorf("the replies are %q", replies)
	}
	raw.wantClose(codec.CloseTryAgainLater, "server is overloaded")
	if n := s.Stats().Drops[DropOverloaded]; n != 3 {
		t.Errorf("%d refusals are counted, want the handler's and the clients'", n)
	}
}

// Clients publish to a topic, with JSON and all, faster than it can be handed out. As with a broadcast, TCP
// slows them down: nothing is refused and nothing is lost.
func TestTopicPublishersOutrunTheWalk(t *testing.T) {
	messages := 6000
	if testenv.Race {
		messages = 2000
	}
	const publishers, subscribing = 3, 10
	opts := topics()
	opts.Loops = 1
	opts.Limits.MaxBacklog = 1 << 20
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: -1}
	s := start(t, opts)
	var all sync.WaitGroup
	for i := range subscribing {
		if i%2 == 0 {
			st := openStream(t, s, "/ws?topic=room&envelope=true")
			st.subscribed()
			all.Go(func() {
				for n := range publishers * messages {
					if e, err := st.event(); err != nil || e.offset() != uint64(n+1) {
						t.Errorf("event %d: %+v, %v", n, e, err)
						return
					}
				}
			})
			continue
		}
		c := dial(t, s, "/ws?topic=room", speakJSON)
		c.said()
		all.Go(func() {
			for n := range publishers * messages {
				if m, err := c.trySaid(); err != nil || m.Offset != uint64(n+1) {
					t.Errorf("message %d: %s, %v", n, m.text, err)
					return
				}
			}
		})
	}
	for p := range publishers {
		c := dial(t, s, "/ws?topic=mine", speakJSON)
		c.said()
		all.Go(func() {
			for range messages {
				m, err := c.trySaid()
				if err != nil || m.Published == nil {
					t.Errorf("publisher %d: %s, %v", p, m.text, err)
					return
				}
			}
		})
		all.Go(func() {
			request := text(`{"id":1,"publish":{"topic":"room","data":{"price":187.25,"at":"XETRA"}}}`)
			for range messages / 100 {
				if _, err := c.conn.Write([]byte(strings.Repeat(string(request), 100))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if n := s.Stats().Drops[DropOverloaded]; n > 0 {
		t.Errorf("%d messages were refused", n)
	}
}
