package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// balance checks that every connection is accounted for once none is left.
func (s *Server) balance(t *testing.T) {
	t.Helper()
	eventually(t, "all sockets are closed", func() bool { return s.Stats().Sockets == 0 })
	st := s.Stats()
	refused := uint64(0)
	for _, n := range st.Refusals {
		refused += n
	}
	if st.Accepted+st.Returned != st.PlainHTTP+st.Opened+st.HealthChecks+refused {
		t.Errorf("accepted %d and returned %d, but handed over %d, opened %d and refused %v",
			st.Accepted, st.Returned, st.PlainHTTP, st.Opened, st.Refusals)
	}
	if s.plain == nil {
		return
	}
	if conns := s.plain.listener.members(); len(conns) > 0 {
		t.Errorf("%d connections are listed", len(conns))
	}
}

// Five hundred visitors of every kind come and go. Of none is a socket, a descriptor or a count left.
func TestNothingIsLeftOfPlainConnections(t *testing.T) {
	opts := withPages(mirror)
	opts.Loops = 2
	s := start(t, opts)
	for len(s.engine.AllShards()) < 2 { // so that every part of the server is there
		dial(t, s, "/echo").wantGone(s)
	}
	before := openFiles(t)
	kinds := []func(c *client){
		func(c *client) {
			c.write([]byte(requestHead("GET / HTTP/1.1", "Connection: close")))
			c.wantPage("GET /")
			c.wantEOF()
		},
		func(c *client) { c.write([]byte(requestHead("GET / HTTP/1.0"))); c.wantPage("GET /") },
		func(c *client) { c.write([]byte(requestHead("GET / HTTP/1.1"))) }, // leaves without its answer
		func(c *client) { c.write([]byte("GET / HTTP/1.1\r\n")) },          // leaves before it has asked
		func(c *client) {
			c.write([]byte(requestHead("POST / HTTP/1.1", "Content-Length: 1000") + "and the rest never comes"))
		},
		func(c *client) {
			c.write([]byte(requestHead("GET / HTTP/1.1")))
			_ = c.tcp().SetLinger(0) // a reset
		},
		func(c *client) {
			c.write([]byte(requestHead("GET / HTTP/1.1")))
			c.wantPage("GET /")
			c.write([]byte(upgradeHead("/echo")))
			if resp := c.response(); resp.StatusCode != 101 {
				c.t.Errorf("answered %s", resp.Status)
			}
		},
		func(c *client) { c.write([]byte(requestHead("GET / HTTP/1.1") + upgradeHead("/echo"))) }, // leaves on its way back
		func(c *client) {
			c.write([]byte(requestHead("GET / HTTP/1.1") + requestHead("GET /echo HTTP/1.1")))
			c.wantPage("GET /")
			c.wantRefusal(426, "endpoint")
		},
	}
	var wg sync.WaitGroup
	for i := range 500 {
		c := dialRaw(t, s)
		wg.Go(func() {
			kinds[i%len(kinds)](c)
			_ = c.conn.Close()
		})
		if i%20 == 0 {
			wg.Wait()
		}
	}
	wg.Wait()
	s.balance(t)
	if runtime.GOOS == "linux" {
		eventually(t, "all descriptors are closed", func() bool { return openFiles(t) <= before })
	}
}

// wantGone ends a connection and waits until the server knows.
func (c *client) wantGone(s *Server) {
	c.t.Helper()
	_ = c.conn.Close()
	eventually(c.t, "all sockets are closed", func() bool { return s.Stats().Sockets == 0 })
}

func openFiles(t *testing.T) int {
	open, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// A visitor whose request is being answered takes a place, and so does one who has become a WebSocket.
func TestPlainConnectionsCountInTheLimit(t *testing.T) {
	finish := make(chan struct{})
	opts := withPages(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			<-finish
		}
		mirror(w, r)
	})
	opts.Limits.MaxConnections = 2
	s := start(t, opts)
	defer close(finish)
	alice, bob := dialRaw(t, s), dialRaw(t, s)
	alice.write([]byte(requestHead("GET / HTTP/1.1")))
	alice.wantPage("GET /")
	bob.write([]byte(requestHead("GET /long HTTP/1.1")))
	eventually(t, "both are there", func() bool { return s.Stats().PlainHTTP == 2 })

	// To change over to a WebSocket takes no second place.
	alice.write([]byte(upgradeHead("/echo")))
	if resp := alice.response(); resp.StatusCode != 101 {
		t.Fatalf("answered %s", resp.Status)
	}
	if n := s.Stats().Sockets; n != 2 {
		t.Errorf("%d sockets, want 2", n)
	}
	for _, head := range []string{upgradeHead("/echo"), requestHead("GET / HTTP/1.1"), requestHead("GET / HTTP/1.0")} {
		cathy := dialRaw(t, s)
		cathy.write([]byte(head))
		wantFull(t, cathy)
	}
	eventually(t, "those are gone", func() bool { return s.Stats().Sockets == 2 })
	_ = alice.conn.Close()
	eventually(t, "there is room for one", func() bool { return s.Stats().Sockets == 1 })
	dial(t, s, "/echo")
}

// While one request is being served, one connection is idle and one is a WebSocket, the server is told
// to stop. The idle one is closed, the request is answered, and the answer says that it is the last.
func TestShutdownLetsARequestFinish(t *testing.T) {
	serving, finish := make(chan struct{}), make(chan struct{})
	opts := withPages(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			close(serving)
			<-finish
		}
		mirror(w, r)
	})
	opts.Drain = Drain{Duration: -1, Deadline: patience}
	s, cancel, ended := runUntil(t, opts)
	idle, busy, socket := dialRaw(t, s), dialRaw(t, s), dial(t, s, "/echo")
	idle.write([]byte(requestHead("GET /short HTTP/1.1")))
	idle.wantPage("GET /short")
	busy.write([]byte(requestHead("GET /long HTTP/1.1")))
	<-serving
	cancel()
	idle.wantEOF()
	socket.wantClose(1001, "shutting down")
	_ = socket.conn.Close()
	select {
	case err := <-ended:
		t.Fatalf("Run has ended while a request was being served: %v", err)
	default:
	}
	close(finish)
	if resp := busy.wantPage("GET /long"); !resp.Close {
		t.Error("the answer does not say that the connection ends")
	}
	busy.wantEOF()
	wantEnd(t, ended)
	s.balance(t)
}

// Neither a request that goes on for ever nor a connection that the application has taken for itself
// holds the server up for longer than it may take.
func TestShutdownCutsPlainConnections(t *testing.T) {
	serving, cut := make(chan struct{}, 2), make(chan error, 2)
	opts := withPages(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			serving <- struct{}{}
			<-r.Context().Done()
			cut <- r.Context().Err()
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		serving <- struct{}{}
		_, err = conn.Read(make([]byte, 1))
		cut <- err
	})
	opts.Drain = Drain{Duration: -1, Deadline: 100 * time.Millisecond}
	s, cancel, ended := runUntil(t, opts)
	for _, path := range []string{"/long", "/hijacked"} {
		dialRaw(t, s).write([]byte(requestHead("GET " + path + " HTTP/1.1")))
	}
	<-serving
	<-serving
	cancel()
	wantEnd(t, ended)
	for range 2 {
		select {
		case err := <-cut:
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("cut off with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("not cut off")
		}
	}
	s.balance(t)
}

// The server is told to stop before any client has come.
func TestShutdownWithoutVisitors(t *testing.T) {
	s, cancel, ended := runUntil(t, withPages(mirror))
	cancel()
	wantEnd(t, ended)
	s.balance(t)
}

// A connection that was handed over when the http.Server has just stopped to accept is told why, and
// one that is handed over later stays the loop's.
func TestAVisitorWhoComesTooLate(t *testing.T) {
	s := start(t, withPages(mirror))
	dial(t, s, "/echo").wantGone(s)
	l := newPlainListener(s)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	late, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	file, err := accepted.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = accepted.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()

	s.engine.Sockets.Add(1)
	h := detachedConn{sh: s.engine.AllShards()[0], fd: fd, remote: late.LocalAddr().(*net.TCPAddr)}
	if !l.put(h) {
		t.Fatal("refused")
	}
	_ = l.Close()
	_ = late.SetReadDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(late); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 503 ") {
		t.Errorf("%q, %v", answer, err)
	}
	if _, err := l.newTurn().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if l.put(h) {
		t.Error("a closed listener takes connections")
	}
	if st := s.Stats(); st.Sockets != 0 || st.Refusals[RefuseDraining] != 1 {
		t.Errorf("%d sockets, refusals %v", st.Sockets, st.Refusals)
	}
}

// With no descriptor left a visitor is told to come back, and one that is inside already and wants a WebSocket is lost;
// both are counted. A client that needs no descriptor notices nothing.
func TestNoDescriptorIsLeftForAVisitor(t *testing.T) {
	s := start(t, withPages(mirror))
	inside, visitor, alice := dialRaw(t, s), dialRaw(t, s), dial(t, s, "/echo")
	inside.write([]byte(requestHead("GET / HTTP/1.1")))
	inside.wantPage("GET /")
	eventually(t, "all are accepted", func() bool { return s.Stats().Accepted == 3 })

	restore := noDescriptors(t)
	visitor.write([]byte(requestHead("GET / HTTP/1.1")))
	visitor.wantRefusal(503, "Retry-After: 5")
	inside.write([]byte(upgradeHead("/echo")))
	_, err := io.ReadAll(inside.r)
	alice.send("still here")
	alice.want("still here")
	restore()

	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the one inside got %v", err)
	}
	_ = visitor.conn.Close()
	eventually(t, "only alice is left", func() bool { return s.Stats().Sockets == 1 })
	if st := s.Stats(); st.Refusals[RefuseDescriptors] != 2 {
		t.Errorf("refusals are %v, want two for want of descriptors", st.Refusals)
	}
	c := dialRaw(t, s)
	c.write([]byte(requestHead("GET / HTTP/1.1")))
	c.wantPage("GET /")
}

// noDescriptors makes sure that this process can open nothing until restore is called.
func noDescriptors(t *testing.T) (restore func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
}
