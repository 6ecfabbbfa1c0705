package server

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/codec"
)

// citizen is a client that does nothing wrong, on three connections: one sends messages to /echo and reads
// them back; two are subscribed to a topic, publish to it in turn, and both read all of it. Every message has
// to come, in order and whole, whatever else the server has to bear. That one takes its time is no mistake,
// unless it takes longer than the test's patience.
type citizen struct {
	t       testing.TB
	clients []*client
	echoes  atomic.Int64
	heard   atomic.Int64 // messages of the topic
	stop    chan struct{}
	living  sync.WaitGroup
}

// besieged are the endpoints that a citizen needs, and others.
func besieged(more ...Endpoint) []Endpoint {
	return append([]Endpoint{
		{Path: "/echo", Mode: ModeEcho},
		{Path: "/ws", Mode: ModeTopics, Topics: TopicAccess{Publish: []string{"beat"}}},
		{Path: "/broadcast", Mode: ModeBroadcast, SlowConsumer: SlowConsumer{MaxQueue: 256 << 10}},
	}, more...)
}

// settle has a citizen live on a server until the test ends or leave is called.
func settle(t testing.TB, s *Server) *citizen {
	t.Helper()
	z := &citizen{t: t, stop: make(chan struct{})}
	z.clients = []*client{dial(t, s, "/echo"), dial(t, s, "/ws?topic=beat"), dial(t, s, "/ws?topic=beat")}
	if s.hub != nil { // otherwise the server is another process
		subscribers(t, s, "beat", 2)
	}
	z.living.Go(z.echo)
	z.living.Go(z.subscribe)
	z.serves(1)
	return z
}

func (z *citizen) over() bool {
	select {
	case <-z.stop:
		return true
	case <-time.After(time.Millisecond): // the attack is to have the processor, mostly
		return false
	}
}

func (z *citizen) echo() {
	for i := 0; !z.over(); i++ {
		if err := z.clients[0].tell(words(i)); err != nil {
			z.t.Errorf("echo %d: %v", i, err)
			return
		}
		if err := z.clients[0].hear(words(i)); err != nil {
			z.t.Errorf("echo %d: %v", i, err)
			return
		}
		z.echoes.Add(1)
	}
}

func (z *citizen) subscribe() {
	// Both are there when each has heard the other.
	for i := 0; !z.over(); i++ {
		word := fmt.Sprintf("beat %d", i)
		if err := z.clients[1+i%2].tell(word); err != nil {
			z.t.Errorf("publish %d: %v", i, err)
			return
		}
		for _, c := range z.clients[1:] {
			if err := c.hear(word); err != nil {
				z.t.Errorf("topic, message %d: %v", i, err)
				return
			}
		}
		z.heard.Add(1)
	}
}

// serves waits until so many more echoes and messages of the topic have come.
func (z *citizen) serves(n int64) {
	z.t.Helper()
	echoes, heard := z.echoes.Load()+n, z.heard.Load()+n
	eventually(z.t, "the citizen is served", func() bool { return z.echoes.Load() >= echoes && z.heard.Load() >= heard })
}

// leave ends the citizen's life. Whatever went wrong has failed the test.
func (z *citizen) leave() {
	close(z.stop)
	z.living.Wait()
	for _, c := range z.clients {
		_ = c.conn.Close()
	}
}

// tell is send, for any goroutine.
func (c *client) tell(s string) error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(patience))
	_, err := c.conn.Write(text(s))
	return err
}

// hear is want, for any goroutine. Pings are answered.
func (c *client) hear(s string) error {
	for {
		op, payload, err := c.frame()
		switch {
		case err != nil:
			return err
		case op == codec.OpPing:
			if _, err := c.conn.Write(masked(0x8a, payload)); err != nil {
				return err
			}
		case op != Text || string(payload) != s:
			return fmt.Errorf("got %v %.80q, want %.80q", op, payload, s)
		default:
			return nil
		}
	}
}

// footprint is what a server, and the process around it, takes.
type footprint struct {
	heap       int64
	goroutines int
	sockets    int64
	queued     int64
	backlog    int64
}

func footprintOf(s *Server) footprint {
	st := s.Stats()
	return footprint{heapBytes(), goroutines(), st.Sockets, st.QueuedBytes, s.engine.BacklogBytes()}
}

// Pools of the server and of gnet, which are bounded, may have grown for good.
const (
	heapSlack      = 6 << 20
	goroutineSlack = 8
)

// wantBack waits until everything is as it was.
func (f footprint) wantBack(t testing.TB, s *Server) {
	t.Helper()
	var now footprint
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		now = footprintOf(s)
		if now.heap <= f.heap+heapSlack && now.goroutines <= f.goroutines+goroutineSlack && now.sockets == f.sockets && now.queued == 0 && now.backlog < 1<<10 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("before it was %+v, now it is %+v", f, now)
			var b bytes.Buffer
			buf := make([]byte, 1<<20)
			b.Write(buf[:runtime.Stack(buf, true)])
			t.Logf("%.20000s", &b)
			return
		}
	}
}
