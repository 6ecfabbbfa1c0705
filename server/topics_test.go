package server

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/hub"
)

func topicsEndpoint() Endpoint {
	return Endpoint{Path: "/ws", Mode: ModeTopics, Topics: TopicAccess{Publish: []string{">"}, Patterns: true, Presence: true}}
}

// topics are options with nothing but topics. There are no pings, which a test on a busy machine may not
// expect.
func topics(rules ...TopicRule) Options {
	return Options{Endpoints: []Endpoint{topicsEndpoint()}, Topics: rules, Ping: Ping{Interval: -1}}
}

const speakJSON = "Sec-WebSocket-Protocol: carillon.v1.json"

// said is any message of the JSON protocol.
type said struct {
	ID         json.RawMessage
	Topic      string
	Offset     uint64
	Time       int64
	Data       json.RawMessage
	Encoding   string
	Subscribed *struct {
		Topic     string
		Offset    *uint64
		Epoch     string
		Recovered *bool
	}
	Unsubscribed *struct{ Topic string }
	Published    *struct {
		Topic       string
		Offset      uint64
		Epoch       string
		Subscribers int
	}
	History *struct {
		Topic     string
		Offset    uint64
		Epoch     string
		Recovered bool
		Messages  []said
	}
	Present *struct {
		Topic       string
		Count       int
		Connections []struct{ ID string }
	}
	Pong  *struct{}
	Error *struct{ Code, Message string }

	text string // as it came
}

func (c *client) said() said {
	c.t.Helper()
	s, err := c.trySaid()
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// trySaid is for other goroutines than the test's.
func (c *client) trySaid() (s said, err error) {
	op, payload, err := c.frame()
	if err != nil || op != Text {
		return s, fmt.Errorf("got %v %.80q, %w", op, payload, err)
	}
	return sayAgain(string(payload)), nil
}

// sayAgain reads a message.
func sayAgain(text string) (s said) {
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		panic(fmt.Errorf("%s: %w", text, err))
	}
	s.text = text
	return s
}

// ask sends a request and reads the reply, which must come next.
func (c *client) ask(request string, args ...any) said {
	c.t.Helper()
	c.send(fmt.Sprintf(request, args...))
	return c.said()
}

// subscribed asks for a subscription, which must succeed.
func (c *client) subscribed(topic string) Position {
	c.t.Helper()
	reply := c.ask(`{"id":0,"subscribe":{"topic":%q}}`, topic)
	if reply.Subscribed == nil {
		c.t.Fatalf("%+v", reply)
	}
	p := Position{Epoch: reply.Subscribed.Epoch}
	if reply.Subscribed.Offset != nil {
		p.Offset = *reply.Subscribed.Offset
	}
	return p
}

// mustPublish publishes text.
func mustPublish(t testing.TB, s *Server, topic, text string) Receipt {
	t.Helper()
	r, err := s.Publish(Publication{Topic: topic, Payload: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func subscribers(t testing.TB, s *Server, topic string, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d are subscribed to %s", n, topic), func() bool { return len(s.Subscribers(topic)) == n })
}

// stream is a client of server-sent events.
type stream struct {
	*client
	head  string
	retry string // the last that was asked for
}

// sse is an event as it came.
type sse struct{ kind, id, data string }

// openStream opens a stream of events.
func openStream(t testing.TB, s *Server, target string, headers ...string) *stream {
	t.Helper()
	return openStreamOn(dialRaw(t, s), target, headers...)
}

func eventsHead(target string, headers ...string) string {
	head := "GET " + target + " HTTP/1.1\r\nHost: example.com\r\nAccept: text/event-stream\r\n"
	for _, h := range headers {
		head += h + "\r\n"
	}
	return head + "\r\n"
}

func openStreamOn(c *client, target string, headers ...string) *stream {
	c.t.Helper()
	c.write([]byte(eventsHead(target, headers...)))
	st := &stream{client: c}
	for !strings.HasSuffix(st.head, "\r\n\r\n") {
		line, err := c.r.ReadString('\n')
		if st.head += line; err != nil {
			c.t.Fatalf("%q, %v", st.head, err)
		}
	}
	if !strings.HasPrefix(st.head, "HTTP/1.1 200 OK\r\n") {
		rest, _ := io.ReadAll(c.r)
		c.t.Fatalf("%s%s", st.head, rest)
	}
	return st
}

// event reads the next event as a browser would, or a comment, whose kind is ":".
func (st *stream) event() (e sse, err error) {
	_ = st.conn.SetReadDeadline(time.Now().Add(patience))
	var data []string
	for {
		line, err := st.r.ReadString('\n')
		if err != nil {
			return e, fmt.Errorf("in the midst of %+v %q: %w", e, line, err)
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "\n":
			e.data = strings.Join(data, "\n")
			return e, nil
		case name == "data":
			data = append(data, value)
		case name == "id":
			e.id = value
		case name == "event":
			e.kind = value
		case name == "retry":
			st.retry = value
		case name == "":
			e.kind = ":"
		default:
			return e, fmt.Errorf("the line %q", line)
		}
	}
}

func (st *stream) want(kind, id, data string) {
	st.t.Helper()
	e, err := st.event()
	if err != nil || e != (sse{kind, id, data}) {
		st.t.Fatalf("got %+v, %v; want %q %q %q", e, err, kind, id, data)
	}
}

// subscribed reads the event that begins a subscription.
func (st *stream) subscribed() said {
	st.t.Helper()
	e, err := st.event()
	if err != nil || e.kind != "subscribed" {
		st.t.Fatalf("instead of a subscription: %+v, %v", e, err)
	}
	return sayAgain(`{"subscribed":` + e.data + "}")
}

func (e *sse) offset() uint64 {
	_, text, _ := strings.Cut(e.id, ":")
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// Alice and bob listen to prices, cathy to scores. Each gets what was published to its topics, as it was.
func TestTopicsRaw(t *testing.T) {
	s := start(t, topics())
	alice, bob := dial(t, s, "/ws?topic=prices"), dial(t, s, "/ws?topic=prices&topic=other")
	cathy := dial(t, s, "/ws?topic=scores")
	subscribers(t, s, "prices", 2)
	subscribers(t, s, "scores", 1)
	for i, format := range []Format{FormatText, FormatJSON, FormatBinary} {
		r, err := s.Publish(Publication{Topic: "prices", Format: format, Payload: []byte(`{"a":1}`)})
		if err != nil || r.Offset != uint64(i+1) || r.Subscribers != 2 {
			t.Fatal(r, err)
		}
	}
	mustPublish(t, s, "scores", "1:0")
	for _, c := range []*client{alice, bob} {
		c.want(`{"a":1}`)
		c.want(`{"a":1}`)
		if op, payload, err := c.frame(); op != codec.OpBinary || string(payload) != `{"a":1}` {
			t.Fatal(op, payload, err)
		}
	}
	cathy.want("1:0")
}

// What a raw client with one topic sends is published there, text as text and binary as binary; all subscribers of the
// topic get it, however they listen.
func TestRawPublishes(t *testing.T) {
	s := start(t, topics())
	alice, bob, events := dial(t, s, "/ws?topic=room"), dial(t, s, "/ws", speakJSON), openStream(t, s, "/ws?topic=room")
	events.subscribed()
	epoch := bob.subscribed("room").Epoch
	subscribers(t, s, "room", 3)
	alice.send("hello")
	alice.write(masked(0x82, []byte{0, 255}))
	alice.want("hello")
	if op, payload, err := alice.frame(); op != Binary || string(payload) != "\x00\xff" {
		t.Fatal(op, payload, err)
	}
	if m := bob.said(); string(m.Data) != `"hello"` || m.Encoding != "" || m.Offset != 1 || m.Topic != "room" {
		t.Fatal(m.text)
	}
	if m := bob.said(); string(m.Data) != `"AP8="` || m.Encoding != "base64" || time.Since(time.UnixMilli(m.Time)).Abs() > patience {
		t.Fatal(m.text)
	}
	events.want("", epoch+":1", "hello")
	events.want("binary", epoch+":2", "AP8=")
}

// A client that has no topic, two topics, a pattern, or a topic that clients may not publish to, has nowhere to
// publish.
func TestRawPublishIsRefused(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Topics.Publish = []string{"mine.>"}
	s := start(t, opts)
	for target, why := range map[string]string{
		"/ws": "exactly one topic", "/ws?topic=mine.a&topic=mine.b": "exactly one topic", "/ws?topic=mine.*": "exactly one topic", "/ws?topic=other": "topics.publish",
	} {
		t.Run(target, func(t *testing.T) {
			c := dial(t, s, target)
			eventually(t, "its subscriptions have been made", func() bool { return s.engine.BacklogBytes() == 0 })
			c.send("hello")
			c.wantClose(codec.ClosePolicyViolation, why)
		})
	}
}

// The loop is busy when dora opens her connection, so that her subscription has to wait. What she sends
// meanwhile waits behind it, in its order.
func TestRawPublishWaitsForItsSubscription(t *testing.T) {
	held := newHold()
	opts := topics()
	opts.Loops = 1
	opts.Endpoints = append(opts.Endpoints, held.endpoint())
	s := start(t, opts)
	holder := dial(t, s, "/hold")
	held.take(holder)
	dora := dialRaw(t, s)
	all := []byte(upgradeHead("/ws?topic=room"))
	for i := range 100 {
		all = append(all, text(words(i))...)
	}
	dora.write(all)
	held.release()
	if resp := dora.response(); resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	for i := range 100 {
		dora.want(words(i))
	}
}

// sweepAll looks through all topics at once.
func sweepAll(h *hub.Hub) {
	for part := range h.Parts {
		h.Sweep(time.Now(), part)
	}
}
