package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// A handler that is set takes over with the very next message, be it in the same packet, and is the one
// whose Close is called.
func TestSetHandler(t *testing.T) {
	calls := make(chan string, 100)
	second := &Handler{
		Upgrade: func(*Request) error { calls <- "second upgrade"; return nil },
		Open:    func(*Conn) { calls <- "second open" },
		Message: func(c *Conn, _ Opcode, b []byte) { calls <- "second " + string(b); _ = c.Close(codec.CloseNormal, "") },
		Close:   func(*Conn, error) { calls <- "second close" },
	}
	for _, row := range []struct {
		name string
		open func(*Conn)
		want string
	}{
		{"in Message", nil, "first one, second two, second close"},
		{"in Open", func(c *Conn) { _ = c.SetHandler(second) }, "second one, second close"},
		{"and taken back", func(c *Conn) { _, _ = c.SetHandler(second), c.SetHandler(nil) }, "first one, second two, second close"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
				Open: row.open,
				Message: func(c *Conn, _ Opcode, b []byte) {
					calls <- "first " + string(b)
					if err := c.SetHandler(second); err != nil {
						t.Error(err)
					}
				},
				Close: func(*Conn, error) { calls <- "first close" },
			}}}})
			c := dialRaw(t, s)
			c.write(join([]byte(upgradeHead("/")), text("one"), text("two"), text("three")))
			c.response()
			c.wantClose(codec.CloseNormal, "")
			_ = c.conn.Close()
			if got := drainCalls(s, t, calls); got != row.want {
				t.Errorf("called %s; want %s", got, row.want)
			}
		})
	}
}

// drainCalls waits until no client is connected and lists what was called.
func drainCalls(s *Server, t *testing.T, calls chan string) string {
	t.Helper()
	eventually(t, "all are gone", func() bool { return s.Stats().Sockets == 0 })
	var all []string
	for len(calls) > 0 {
		all = append(all, <-calls)
	}
	return strings.Join(all, ", ")
}

// It also takes the place of a mode. Others on the endpoint keep it.
func TestSetHandlerReplacesAMode(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	alice := dial(t, s, "/echo")
	conn := onlyConn(t, s, "/echo")
	bob := dial(t, s, "/echo")
	alice.send("plain")
	alice.want("plain")
	if err := conn.SetHandler(&Handler{Message: func(c *Conn, op Opcode, b []byte) { _ = c.Send(op, append(b, '!')) }}); err != nil {
		t.Fatal(err)
	}
	alice.send("loud")
	alice.want("loud!")
	bob.send("plain")
	bob.want("plain")
	if err := conn.SetHandler(nil); err != nil {
		t.Fatal(err)
	}
	alice.send("plain")
	alice.want("plain")
}

// Another goroutine changes handlers while messages come and connections end. Every message has one
// handler, and every connection one Close: that of the last handler whose SetHandler succeeded.
func TestSetHandlerUnderTraffic(t *testing.T) {
	const clients, messages = 30, 300
	type count struct{ closed, by atomic.Int64 }
	counts := map[*Conn]*count{}
	var mu sync.Mutex
	of := func(c *Conn) *count {
		mu.Lock()
		defer mu.Unlock()
		if counts[c] == nil {
			counts[c] = &count{}
		}
		return counts[c]
	}
	handler := func(number int64) Handler {
		return Handler{
			Message: func(c *Conn, op Opcode, b []byte) { _ = c.Send(op, b) },
			Close:   func(c *Conn, _ error) { of(c).closed.Add(1); of(c).by.Store(number) },
		}
	}
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: handler(0)}}})
	var done sync.WaitGroup
	var changers sync.WaitGroup
	last := map[*Conn]int64{}
	var lastMu sync.Mutex
	for n := range clients {
		done.Go(func() {
			c := dial(t, s, "/")
			for i := range messages {
				c.send(words(i))
				c.want(words(i))
				if i == n {
					changers.Go(func() { changeUntilClosed(t, s, handler, last, &lastMu) })
				}
			}
			if n%2 == 0 {
				c.kill()
			} else {
				_ = c.conn.Close()
			}
		})
	}
	done.Wait()
	eventually(t, "all are gone", func() bool { return s.Stats().Sockets == 0 })
	changers.Wait()
	if len(counts) != clients {
		t.Errorf("%d connections were closed, want %d", len(counts), clients)
	}
	for c, n := range counts {
		if n.closed.Load() != 1 || n.by.Load() != last[c] {
			t.Errorf("connection %d: %d calls of Close, by handler %d; want one, by %d", c.ID(), n.closed.Load(), n.by.Load(), last[c])
		}
	}
}

// changeUntilClosed sets one handler after the other on a connection that no other goroutine changes.
func changeUntilClosed(t *testing.T, s *Server, handler func(int64) Handler, last map[*Conn]int64, mu *sync.Mutex) {
	var conn *Conn
	mu.Lock()
	for c := range s.Conns() {
		if _, taken := last[c]; !taken {
			conn = c
			last[c] = 0
			break
		}
	}
	mu.Unlock()
	if conn == nil {
		return
	}
	for i := int64(1); ; i++ {
		h := handler(i)
		err := conn.SetHandler(&h)
		conn.SetValue(i)
		if err != nil {
			if err != ErrClosed || conn.SetHandler(nil) != ErrClosed {
				t.Errorf("SetHandler: %v, want ErrClosed from now on", err)
			}
			return
		}
		mu.Lock()
		last[conn] = i
		mu.Unlock()
		runtime.Gosched()
	}
}

// What several goroutines attach at once does not get lost.
func TestAttachAtOnce(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	dial(t, s, "/echo")
	conn := onlyConn(t, s, "/echo")
	h := &Handler{}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() { conn.SetValue(i) })
		all.Go(func() { _ = conn.SetHandler(h) })
		all.Go(func() { conn.Context() })
	}
	all.Wait()
	if _, ok := conn.Value().(int); !ok || conn.handler() != h || conn.core().Attached().Life == nil {
		t.Errorf("%+v is attached", conn.core().Attached())
	}
}

// A connection's context ends before its Close is called, and says why.
func TestContext(t *testing.T) {
	states := make(chan error, 10)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Open:  func(c *Conn) { c.SetValue(c.Context()) },
		Close: func(c *Conn, err error) { states <- c.Value().(context.Context).Err(); states <- err },
	}}}})
	c := dial(t, s, "/")
	conn := onlyConn(t, s, "/")
	ctx := conn.Context()
	if ctx.Err() != nil || ctx != conn.Context() {
		t.Fatalf("an open connection has the context %v, then %v", ctx, conn.Context())
	}
	_ = conn.Close(codec.CloseNormal, "that is all")
	c.wantClose(codec.CloseNormal, "that is all")
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal("the context does not end")
	}
	if err := <-states; err != context.Canceled {
		t.Errorf("in Close the context says %v", err)
	}
	if err := <-states; context.Cause(ctx) != err {
		t.Errorf("the cause is %v, want %v", context.Cause(ctx), err)
	}
	if conn.Context() != ctx {
		t.Error("the context is another one after the close")
	}
}

// A caller that asks for the context late, or while the connection closes, gets one that ends.
func TestContextOfAClosedConnection(t *testing.T) {
	closing := make(chan *Conn)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Close: func(c *Conn, why error) {
		if cause := context.Cause(c.Context()); cause != ErrClosed && cause != why {
			t.Errorf("in Close the cause is %v; want ErrClosed or %v", cause, why)
		}
		closing <- c
	}}}}})
	for range 20 {
		c := dial(t, s, "/")
		conn := onlyConn(t, s, "/")
		asked := make(chan context.Context, 1)
		go func() {
			_ = c.conn.Close()
			asked <- conn.Context()
		}()
		<-closing
		select {
		case <-(<-asked).Done():
		case <-time.After(patience):
			t.Fatal("the context does not end")
		}
		if conn.Context().Err() == nil {
			t.Error("asked for later, the context is alive")
		}
		eventually(t, "it is gone", func() bool { return s.Count() == 0 })
	}
}

// Values outlive the connection, and what it had is still replaced.
func TestValueAfterClose(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Upgrade: func(r *Request) error { r.Value = "alice"; return nil },
	}}}})
	c := dial(t, s, "/")
	conn := onlyConn(t, s, "/")
	c.kill()
	eventually(t, "it is gone", func() bool { return s.Stats().Sockets == 0 })
	if conn.Value() != "alice" {
		t.Errorf("the value is %v", conn.Value())
	}
	conn.SetValue("nobody")
	if conn.Value() != "nobody" || conn.SetHandler(&Handler{}) != ErrClosed {
		t.Errorf("the value is %v", conn.Value())
	}
}

// One connection more costs what its size class costs: 112 bytes. An application that attaches nothing
// pays nothing for being able to.
func TestConnSize(t *testing.T) {
	if size := unsafe.Sizeof(Conn{}); unsafe.Sizeof(uintptr(0)) == 8 && size > 112 {
		t.Errorf("a Conn takes %d B, want at most 112", size)
	}
	c := reactor.Assemble(reactor.Parts{Endpoint: &reactor.LoopEndpoint{}})
	why := errors.New("test")
	if n := testing.AllocsPerRun(100, func() { c.ResetAttachment(); c.Detach(why) }); n != 0 {
		t.Errorf("with nothing attached a life takes %v allocations", n)
	}
}

// A connection with a handler of its own is as cheap as any other: an echo allocates nothing.
func TestAllocationsWithSetHandler(t *testing.T) {
	if testenv.Race {
		t.Skip("the race detector allocates")
	}
	reactor.CheckOwner = false
	defer func() { reactor.CheckOwner = true }()
	own := &Handler{Message: echo, Error: func(_ *Conn, err error) { panic(fmt.Sprint("unexpected: ", err)) }}
	for _, row := range []struct {
		name     string
		endpoint Endpoint
	}{
		{"the endpoint's", Endpoint{Path: "/", Handler: Handler{Message: echo}}},
		{"its own", Endpoint{Path: "/", Handler: Handler{Open: func(c *Conn) { _ = c.SetHandler(own) }}}},
	} {
		s := start(t, Options{Loops: 1, Endpoints: []Endpoint{row.endpoint}, Ping: Ping{Interval: -1}})
		c := dial(t, s, "/")
		request := masked(0x82, make([]byte, 100))
		answer := make([]byte, 102)
		echoed := func() {
			if _, err := c.conn.Write(request); err != nil {
				t.Fatal(err)
			}
			for read := 0; read < len(answer); {
				n, err := c.r.Read(answer[read:])
				if err != nil {
					t.Fatal(err)
				}
				read += n
			}
		}
		echoed()
		if n := testing.AllocsPerRun(2000, echoed); n != 0 {
			t.Errorf("with a handler that is %s an echo takes %v allocations", row.name, n)
		}
	}
}
