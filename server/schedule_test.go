package server

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// A delayed echo, with a copy of each payload: every client gets its own messages, in order, and none before its time.
func TestAfterDelaysInOrder(t *testing.T) {
	const clients, messages, delay = 8, 50, 20 * time.Millisecond
	s := start(t, Options{Loops: 2, Endpoints: []Endpoint{{Path: "/", Handler: Handler{Message: func(c *Conn, op Opcode, b []byte) {
		kept := bytes.Clone(b)
		if _, err := c.After(delay, func() { _ = c.Send(op, kept) }); err != nil {
			t.Error(err)
		}
	}}}}})
	var all sync.WaitGroup
	for n := range clients {
		all.Go(func() {
			c := dial(t, s, "/")
			began := time.Now()
			for i := range messages {
				c.send(words(n*messages + i))
			}
			for i := range messages {
				c.want(words(n*messages + i))
			}
			if took := time.Since(began); took < delay {
				t.Errorf("answered after %v, want %v at least", took, delay)
			}
		})
	}
	all.Wait()
	wantNoTimers(t, s)
}

// wantNoTimers waits until no loop knows of a timer any more.
func wantNoTimers(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, "all timers are gone", func() bool {
		for _, sh := range s.engine.AllShards() {
			if sh.Timers.Bytes.Load() != 0 {
				return false
			}
		}
		return true
	})
	eventually(t, "all work is done", func() bool { return s.engine.BacklogBytes() == 0 })
}

// What Do is given comes behind what was sent and before a close, on the loop's goroutine, from wherever it is asked.
func TestDoTakesItsTurn(t *testing.T) {
	for _, from := range []string{"a handler", "a goroutine"} {
		t.Run(from, func(t *testing.T) {
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Message: func(c *Conn, op Opcode, _ []byte) {
				ask := func() {
					_ = c.Send(op, []byte("before"))
					if err := c.Do(func() {
						c.shard().Check()
						_ = c.Send(op, []byte("in Do"))
					}); err != nil {
						t.Error(err)
					}
					_ = c.Send(op, []byte("after"))
				}
				if from == "a handler" {
					ask()
				} else {
					go ask()
				}
			}}}}})
			c := dial(t, s, "/")
			c.send("go")
			for _, want := range []string{"before", "after", "in Do"} { // what f sends is asked for last
				c.want(want)
			}
		})
	}
}

// Do and Close of one goroutine happen in that order, and then Handler.Close is the last call.
func TestDoBeforeClose(t *testing.T) {
	calls := make(chan string, 10)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Message: func(c *Conn, _ Opcode, _ []byte) {
			_ = c.Do(func() { calls <- "do" })
			_ = c.Close(codec.CloseNormal, "")
			if err := c.Do(func() { calls <- "too late" }); err != ErrClosed {
				t.Errorf("Do after Close: %v", err)
			}
			if timer, err := c.After(0, func() { calls <- "too late" }); err != ErrClosed || timer != nil {
				t.Errorf("After after Close: %v", err)
			}
		},
		Close: func(c *Conn, _ error) {
			calls <- "close"
			if err := c.Do(func() { calls <- "too late" }); err != ErrClosed {
				t.Errorf("Do in Close: %v", err)
			}
		},
	}}}})
	c := dial(t, s, "/")
	c.send("go")
	c.wantClose(codec.CloseNormal, "")
	_ = c.conn.Close()
	if got := drainCalls(s, t, calls); got != "do, close" {
		t.Errorf("called %s", got)
	}
}

// A connection that is gone has nothing called, and what its timers hold is collected long before they would be due.
func TestTimersEndWithTheConnection(t *testing.T) {
	for _, end := range []struct {
		how string
		do  func(c *client, conn *Conn)
	}{
		{"the client closes", func(c *client, _ *Conn) { c.write(masked(0x88, nil)); _ = c.conn.Close() }},
		{"it is lost", func(c *client, _ *Conn) { c.kill() }},
		{"the application closes", func(c *client, conn *Conn) { _ = conn.Close(codec.CloseNormal, ""); _ = c.conn.Close() }},
	} {
		t.Run(end.how, func(t *testing.T) {
			var called, collected atomic.Int32
			s := start(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/", Handler: Handler{Open: func(c *Conn) {
				held := new([64]byte)
				runtime.AddCleanup(held, func(int) { collected.Add(1) }, 0)
				for range 10 {
					_, _ = c.After(time.Hour, func() { held[0]++; called.Add(1) })
				}
			}}}}})
			c := dial(t, s, "/")
			conn := onlyConn(t, s, "/")
			bystander := dial(t, s, "/")
			end.do(c, conn)
			eventually(t, "it is closed", func() bool { return conn.core().State().Load() == reactor.StateClosed })
			eventually(t, "its timers are collected", func() bool {
				runtime.GC()
				return collected.Load() == 1
			})
			if n := s.engine.AllShards()[0].Timers.Bytes.Load(); n != 10*reactor.TimerCost {
				t.Errorf("timers of %d bytes are counted, want those of the other connection: %d", n, 10*reactor.TimerCost)
			}
			_ = bystander.conn.Close()
			wantNoTimers(t, s)
			if called.Load() != 0 {
				t.Errorf("%d timers ran", called.Load())
			}
			runtime.KeepAlive(conn)
		})
	}
}

// A timer that is stopped does not run and gives its place back; Stop tells who came first.
func TestTimerStop(t *testing.T) {
	result := make(chan bool, 3)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Message: func(c *Conn, _ Opcode, b []byte) {
		timer, _ := c.After(time.Hour, func() { t.Error("it runs") })
		result <- timer.Stop()
		result <- timer.Stop()
		var ran *Timer
		ran, _ = c.After(time.Millisecond, func() { result <- ran.Stop() })
	}}}}})
	c := dial(t, s, "/")
	for range reactor.MaxTimers + 1 { // more than there may be at once
		c.send("go")
		if first, second, late := <-result, <-result, <-result; !first || second || late {
			t.Fatalf("Stop returns %v, %v, and %v in the function itself", first, second, late)
		}
	}
	wantNoTimers(t, s)
}

// Both are bounded, and say by what.
func TestTimersAreBounded(t *testing.T) {
	s := start(t, Options{Loops: 1, Limits: Limits{MaxBacklog: 4000 * reactor.TimerCost}, Endpoints: []Endpoint{{Path: "/", Handler: Handler{}, Mode: ModeEcho}}})
	errorsOf := map[error]int{}
	for range 5 {
		dial(t, s, "/")
	}
	for c := range s.Conns() {
		for range reactor.MaxTimers + 1 {
			timer, err := c.After(time.Hour, func() {})
			if errorsOf[err]++; (timer == nil) != (err != nil) {
				t.Fatalf("%v and %v", timer, err)
			}
		}
	}
	if errorsOf[nil] != 4000 || errorsOf[ErrTooManyTimers] != 3 || errorsOf[ErrOverloaded] == 0 {
		t.Errorf("got %v; want 4000 timers, 3 connections full and then the loop", errorsOf)
	}
}

func TestDoIsBounded(t *testing.T) {
	free, entered := make(chan struct{}), make(chan struct{}, 1)
	s := start(t, Options{Loops: 1, Limits: Limits{MaxBacklog: 64 * (reactor.CommandCost + reactor.DoCost)}, Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Message: func(*Conn, Opcode, []byte) { entered <- struct{}{}; <-free },
	}}}})
	c := dial(t, s, "/")
	conn := onlyConn(t, s, "/")
	c.send("block")
	<-entered
	var ran atomic.Int32
	var err error
	n := 0
	for ; n < 1000 && err == nil; n++ {
		err = conn.Do(func() { ran.Add(1) })
	}
	close(free)
	if !errors.Is(err, ErrOverloaded) || n != 65 {
		t.Errorf("call %d fails with %v; want the 65th with %v", n, err, ErrOverloaded)
	}
	eventually(t, "the others run", func() bool { return ran.Load() == 64 })
}

// Thousands of timers that are due at once do not keep the loop from its sockets, and one that is due long before the
// first is not late because of it.
func TestTimersOfDifferentLengths(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/", Mode: ModeEcho}}})
	var conns []*Conn
	for range 8 {
		dial(t, s, "/")
	}
	for c := range s.Conns() {
		conns = append(conns, c)
	}
	order, done := []int(nil), make(chan struct{})
	for i, d := range []time.Duration{time.Hour, 60, 20, 40, -5} { // milliseconds but for the first
		if d < time.Hour {
			d *= time.Millisecond
		}
		_, _ = conns[0].After(d, func() {
			if order = append(order, i); len(order) == 4 {
				close(done)
			}
		})
	}
	<-done
	if order[0] != 4 || order[1] != 2 || order[2] != 3 || order[3] != 1 {
		t.Errorf("they run in the order %v", order)
	}
	var ran atomic.Int32
	for _, c := range conns[1:] {
		for range reactor.MaxTimers {
			_, _ = c.After(time.Millisecond, func() { ran.Add(1) })
		}
	}
	eventually(t, "all run", func() bool { return ran.Load() == 7*reactor.MaxTimers })
	if _, err := conns[0].After(1<<63-1, func() { t.Error("it runs") }); err != nil {
		t.Error(err)
	}
}

// A server that has ended lets go of its timers, although they would be due much later.
func TestTimersEndWithTheServer(t *testing.T) {
	s := start(t, Options{Loops: 1, Limits: Limits{CloseTimeout: 50 * time.Millisecond}, Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Open: func(c *Conn) { _, _ = c.After(time.Hour, func() {}) },
	}}}})
	dial(t, s, "/")
	s.Shutdown(t.Context())
	<-s.engine.LoopsEnded
	if l := &s.engine.AllShards()[0].Timers; len(l.Heap) != 0 || l.Set != 0 {
		t.Errorf("%d timers are left, and the alarm is set for %v", len(l.Heap), l.Set)
	}
}
