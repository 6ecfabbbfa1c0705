package demo

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/internal/testenv"
	"carillon/server"
)

const patience = time.Minute

var eventually = testenv.Eventually

// start runs a server with a demo, and with the endpoints that the page tells how to try.
func start(t testing.TB, o Options) (*Demo, *server.Server) {
	t.Helper()
	d := New(o)
	s, err := server.New(server.Options{
		Listen: "127.0.0.1:0",
		Endpoints: append(d.Endpoints(),
			server.Endpoint{Path: "/echo", Mode: server.ModeEcho},
			server.Endpoint{Path: "/broadcast", Mode: server.ModeBroadcast},
			server.Endpoint{Path: "/ws", Mode: server.ModeTopics, Topics: server.TopicAccess{Publish: []string{">"}}}),
		Topics: append(d.Topics(), server.TopicRule{Match: ">", History: 10}),
		Drain:  server.Drain{Duration: -1, Deadline: time.Second},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Attach(s)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Started()
	t.Cleanup(func() {
		d.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return d, s
}

// front puts the pages and the server behind one address, as they are in the program.
func front(t testing.TB, d *Demo, s *server.Server) *httptest.Server {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.Addr().String()})
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	f := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			proxy.ServeHTTP(w, r)
			return
		}
		d.Handler().ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// person is a guest of the chat, without a browser.
type person struct {
	t    testing.TB
	conn *websocket.Conn
}

// welcomed is a welcome as clients read it.
type welcomed struct {
	welcome
	People []string
}

// heard is any message of the chat.
type heard struct {
	Welcome *welcomed
	Refused *refusal
	Topic   string
	Offset  uint64
	Time    int64
	Data    event

	Subscribed *struct {
		Offset    uint64
		Epoch     string
		Recovered *bool
	}
}

func arrive(t testing.TB, s *server.Server) *person {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/demo/chat", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &person{t: t, conn: conn}
}

func (p *person) send(v any) {
	p.t.Helper()
	if err := p.conn.WriteJSON(v); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) sendText(text string) {
	p.t.Helper()
	if err := p.conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) say(ref, text string) {
	p.t.Helper()
	p.send(map[string]any{"say": saying{ref, text}})
}

func (p *person) hear() heard {
	p.t.Helper()
	h, err := p.listen()
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

func (p *person) listen() (h heard, err error) {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	_, payload, err := p.conn.ReadMessage()
	if err == nil {
		err = json.Unmarshal(payload, &h)
	}
	return h, err
}

// next returns the next message of the topic.
func (p *person) next() heard {
	p.t.Helper()
	for {
		if h := p.hear(); h.Topic != "" {
			return h
		}
	}
}

// enter joins and returns the welcome and the reply to the subscription.
func (p *person) enter(name, session string, since *server.Position) (welcomed, heard) {
	p.t.Helper()
	p.send(map[string]any{"join": joining{name, session, since}})
	h := p.hear()
	if h.Welcome == nil {
		p.t.Fatalf("no welcome for %s: %+v", name, h.Refused)
	}
	sub := p.hear()
	if sub.Subscribed == nil {
		p.t.Fatalf("not subscribed: %+v", sub)
	}
	return *h.Welcome, sub
}

func (p *person) want(kind, name, text string) heard {
	p.t.Helper()
	h := p.next()
	if h.Data.Kind != kind || h.Data.Name != name || h.Data.Text != text {
		p.t.Fatalf("got %+v, want %s %s %q", h.Data, kind, name, text)
	}
	return h
}
