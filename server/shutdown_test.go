package server

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/codec"
)

// runUntil runs a server until cancel is called; ended then says how that went.
func runUntil(t *testing.T, opts Options) (s *Server, cancel context.CancelFunc, ended chan error) {
	t.Helper()
	if opts.Listen == "" {
		opts.Listen = "127.0.0.1:0"
	}
	if opts.Drain == (Drain{}) {
		opts.Drain.Duration = -1
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	select {
	case <-s.Started():
	case err := <-ended:
		t.Fatal(err)
	}
	return s, cancel, ended
}

func wantEnd(t *testing.T, ended chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Run does not end")
	}
}

// A hundred messages are on their way to fifty clients, one of whom is slow, when the server is told to stop. All
// clients get all of them, and then the close frame.
func TestShutdownFlushes(t *testing.T) {
	const listeners, messages = 50, 100
	s, cancel, ended := runUntil(t, Options{Endpoints: policy(SlowConsumer{MaxQueue: -1})})
	clients := []*client{dialFrozen(t, s, "/broadcast")}
	for range listeners {
		clients = append(clients, dial(t, s, "/broadcast"))
	}
	eventually(t, "all are open", func() bool { return s.Count() == len(clients) })
	fill := 0
	for ; s.Stats().QueuedBytes == 0; fill++ {
		publish(t, s, "/broadcast", fill)
		for _, c := range clients[1:] {
			c.wantBlock(fill)
		}
	}
	for i := range messages {
		if err := s.Broadcast("/broadcast", Text, []byte(words(i))); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	for i := range fill {
		clients[0].wantBlock(i)
	}
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			for n := range messages {
				if op, payload, err := c.frame(); op != Text || string(payload) != words(n) || err != nil {
					t.Errorf("client %d, message %d: %v %q, %v", i, n, op, payload, err)
					return
				}
			}
			op, payload, err := c.frame()
			if op != codec.OpClose || !strings.HasPrefix(string(payload), "\x03\xe9server is shutting down; retry=") || err != nil {
				t.Errorf("client %d got %v %q, %v; want 1001", i, op, payload, err)
			}
			_, _ = c.conn.Write(masked(0x88, []byte{0x03, 0xe9}))
			_, _ = io.Copy(io.Discard, c.r)
			_ = c.conn.Close()
		})
	}
	wg.Wait()
	wantEnd(t, ended)
	st := s.Stats()
	if st.Closes[codec.CloseGoingAway] != uint64(len(clients)) || dropsOf(s) > 0 || st.Sockets != 0 || st.QueuedBytes != 0 {
		t.Errorf("closes %v, drops %v, %d sockets", st.Closes, st.Drops, st.Sockets)
	}
}

// While alice takes her time to close, no new client comes in: bob cannot connect, and cathy, who was in the middle of
// her handshake, gets a 503. Alice is served until she goes.
func TestShutdownRefuses(t *testing.T) {
	s, cancel, ended := runUntil(t, Options{Listen: freeAddress(t), Endpoints: echoAndBroadcast(), Drain: Drain{Duration: -1, Deadline: patience}})
	alice, cathy, dave := dial(t, s, "/echo"), dialRaw(t, s), dialRaw(t, s)
	cathy.write([]byte(upgradeHead("/echo")[:60]))
	eventually(t, "the server has seen them all", func() bool { return s.Stats().Accepted == 3 })
	cancel()
	for _, c := range []*client{cathy, dave} {
		resp := c.response()
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != 503 || !strings.Contains(string(body), "shutting down") || err != nil {
			t.Errorf("%s, %q, %v; want 503", resp.Status, body, err)
		}
		c.wantEOF()
		_ = c.conn.Close()
	}
	if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("bob could connect")
	}
	successor, err := net.Listen("tcp", s.Addr().String())
	if err != nil {
		t.Errorf("a successor cannot listen: %v", err)
	} else {
		_ = successor.Close()
	}
	alice.wantClose(codec.CloseGoingAway, "server is shutting down")
	_ = alice.conn.Close()
	wantEnd(t, ended)
	if n := s.Stats().Refusals[RefuseDraining]; n != 2 {
		t.Errorf("%d refusals counted, want 2", n)
	}
}

// A client that never answers, and one that does not even read, are cut at whichever bound is first.
func TestShutdownIsBounded(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name            string
		close, shutdown time.Duration
	}{
		{"limits.close_timeout", 300 * time.Millisecond, patience},
		{"drain.deadline", patience, 300 * time.Millisecond},
	} {
		t.Run(row.name, func(t *testing.T) {
			limits, ping := off()
			limits.CloseTimeout = row.close
			s, cancel, ended := runUntil(t, Options{Loops: 1, Endpoints: policy(SlowConsumer{MaxQueue: -1}),
				Limits: limits, Ping: ping, Drain: Drain{Duration: -1, Deadline: row.shutdown}})
			silent, frozen := dial(t, s, "/other"), dialFrozen(t, s, "/broadcast")
			published := 0
			for ; s.Stats().QueuedBytes < 10*blockSize; published++ {
				publish(t, s, "/broadcast", published)
				eventually(t, "it is handed out", func() bool { return s.Stats().Deliveries == uint64(published+1) })
			}
			began := time.Now()
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(patience / 2):
				t.Fatal("Run does not end")
			}
			if took := time.Since(began); took < 200*time.Millisecond {
				t.Errorf("they had %v, not 300ms", took)
			}
			silent.wantClose(codec.CloseGoingAway, "")
			arrived := 0
			for frozen.block() == arrived {
				arrived++
			}
			if st := s.Stats(); st.Drops[DropShutdown] < 9 || int(st.Drops[DropShutdown])+arrived != published || st.QueuedBytes != 0 {
				t.Errorf("%d arrived of %d, drops %v", arrived, published, st.Drops)
			}
		})
	}
}

// Shutdown may be called instead of ending Run's context, also before Run and more than once.
func TestShutdownCalled(t *testing.T) {
	t.Run("while it serves", func(t *testing.T) {
		s, _, ended := runUntil(t, Options{Endpoints: echoAndBroadcast()})
		c := dial(t, s, "/echo")
		conn := onlyConn(t, s, "/echo")
		s.Shutdown(t.Context())
		s.Shutdown(t.Context())
		c.wantClose(codec.CloseGoingAway, "server is shutting down")
		_ = c.conn.Close()
		wantEnd(t, ended)
		useEnded(t, s, conn)
	})
	t.Run("with no time left", func(t *testing.T) {
		limits, ping := off()
		closed := make(chan error, 10)
		endpoint := Endpoint{Path: "/", Handler: Handler{Close: func(_ *Conn, err error) { closed <- err }}}
		s, _, ended := runUntil(t, Options{Endpoints: []Endpoint{endpoint}, Limits: limits, Ping: ping})
		c := dial(t, s, "/")
		onlyConn(t, s, "/")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.Shutdown(ctx)
		wantEnd(t, ended)
		if err := (<-closed).(*CloseError); err.Remote || len(closed) > 0 {
			t.Errorf("Close got %v and %d more; want one by the server", err, len(closed))
		}
		_, _ = io.Copy(io.Discard, c.r)
	})
	t.Run("before Run", func(t *testing.T) {
		s, err := New(Options{Listen: "127.0.0.1:0", Endpoints: echoAndBroadcast()})
		if err != nil {
			t.Fatal(err)
		}
		s.Shutdown(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context()) }()
		wantEnd(t, ended)
		if err := s.Run(t.Context()); err != ErrStarted {
			t.Errorf("a second Run: %v, want ErrStarted", err)
		}
	})
	t.Run("with a context that has ended before Run", func(t *testing.T) {
		for range 20 {
			s, err := New(Options{Listen: "127.0.0.1:0", Endpoints: echoAndBroadcast()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			wantEnd(t, ended)
		}
	})
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(list)
}

// goroutines counts those that are ours: gnet has a pool, which keeps its own for a while.
func goroutines() (n int) {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for one := range bytes.SplitSeq(stacks, []byte("\n\n")) {
		if !bytes.Contains(one, []byte("panjf2000/ants")) {
			n++
		}
	}
	return n
}

// Servers come and go, with clients of every kind, and leave nothing behind.
func TestNothingIsLeft(t *testing.T) {
	serve := func() {
		s, cancel, ended := runUntil(t, Options{Loops: 3, Endpoints: policy(SlowConsumer{}), Drain: Drain{Duration: -1, Deadline: 100 * time.Millisecond}})
		shaking, frozen := dialRaw(t, s), dialFrozen(t, s, "/broadcast")
		shaking.write([]byte("GET"))
		clients := []*client{shaking, frozen}
		for range 20 {
			clients = append(clients, dial(t, s, "/other"))
		}
		for i := 0; s.Stats().QueuedBytes == 0; i++ {
			publish(t, s, "/broadcast", i)
		}
		clients[5].kill()
		clients[6].write(masked(0x01, []byte("frag")))
		cancel()
		wantEnd(t, ended)
		for _, c := range clients {
			_ = c.conn.Close()
		}
	}
	serve() // what is made once for all servers
	descriptors, others := openDescriptors(t), goroutines()
	for range 5 {
		serve()
	}
	eventually(t, "all descriptors are closed", func() bool { return openDescriptors(t) <= descriptors })
	eventually(t, "all goroutines have ended", func() bool { return goroutines() <= others })
	if s, err := New(Options{Listen: "256.0.0.1:1"}); err == nil {
		if err := s.Run(t.Context()); err == nil {
			t.Error("an address that cannot be is listened on")
		}
	}
	if n := openDescriptors(t); n > descriptors {
		t.Errorf("a failed Run leaves %d descriptors", n-descriptors)
	}
}
