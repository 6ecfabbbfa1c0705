package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/codec"
	"carillon/server/internal/listen"
)

// kill ends the connection with a reset, as a machine that loses its memory does.
func (c *client) kill() {
	_ = c.tcp().SetLinger(0)
	_ = c.conn.Close()
}

// Clients die at every stage of their lives, and the server forgets them. Alice lives.
func TestKilledClients(t *testing.T) {
	for _, row := range []struct {
		name string
		path string // "" for no handshake
		last []byte // what the client sends before it dies
	}{
		{"before the first byte", "", nil},
		{"in the middle of the handshake", "", []byte(upgradeHead("/echo")[:50])},
		{"when the handshake is asked for and not answered", "", []byte(upgradeHead("/echo"))},
		{"in the middle of a frame's header", "/echo", []byte{0x81}},
		{"in the middle of a frame's payload", "/echo", masked(0x82, make([]byte, 1000))[:500]},
		{"between two fragments", "/echo", masked(0x01, []byte("frag"))},
		{"with an echo under way", "/echo", masked(0x82, make([]byte, 500_000))},
		{"in the middle of the closing handshake", "/echo", masked(0x88, nil)},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := start(t, Options{Endpoints: echoAndBroadcast()})
			alice := dial(t, s, "/echo")
			for range 20 {
				var c *client
				if row.path == "" {
					c = dialRaw(t, s)
				} else {
					c = dial(t, s, row.path)
				}
				c.write(row.last)
				c.kill()
			}
			eventually(t, "only alice is left", func() bool {
				st := s.Stats()
				return st.Accepted == 21 && st.Sockets == 1 && st.Open == 1
			})
			alice.send("alive")
			alice.want("alive")
			if st := s.Stats(); st.QueuedBytes != 0 || st.Opened+refusalsOf(st) != st.Accepted {
				t.Errorf("accounts do not add up: %+v", st)
			}
		})
	}
}

func refusalsOf(st Stats) (n uint64) {
	for _, r := range st.Refusals {
		n += r
	}
	return n
}

// Every second listener dies while messages are handed out. The others get all, in order, once.
func TestKilledWhileBroadcasting(t *testing.T) {
	const listeners, messages = 60, 3000
	s := start(t, Options{Endpoints: policy(SlowConsumer{MaxQueue: -1})})
	var clients []*client
	for range listeners {
		clients = append(clients, dial(t, s, "/broadcast"))
	}
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			for n := range messages {
				op, payload, err := c.frame()
				if op != Text || string(payload) != words(n) || err != nil {
					t.Errorf("listener %d, message %d: %v %q, %v", i, n, op, payload, err)
					return
				}
				if i%2 == 1 && n == 10*i {
					c.kill()
					return
				}
			}
		})
	}
	for n := range messages {
		if err := s.Broadcast("/broadcast", Text, []byte(words(n))); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	eventually(t, "half are left", func() bool { return s.Stats().Open == listeners/2 && s.Stats().Sockets == listeners/2 })
}

// What is sent to a client that has died is counted as lost, whichever write finds out.
func TestSendToKilled(t *testing.T) {
	send := func(c *Conn) error { return c.Send(Binary, block(0)) }
	frame := func(c *Conn) error { return c.SendFrame(codec.NewFrame(Binary, block(0))) }
	broadcast := func(c *Conn) error { return c.Server().Broadcast("/broadcast", Binary, block(0)) }
	for name, order := range map[string][]func(*Conn) error{
		"Send":                    {send, frame, send},
		"SendFrame":               {frame, send, frame},
		"Broadcast and then Send": {broadcast, broadcast, send},
		"Broadcast":               {broadcast, broadcast, broadcast},
	} {
		t.Run(name, func(t *testing.T) {
			held := newHold()
			s := start(t, Options{Loops: 1, Endpoints: append(echoAndBroadcast(), held.endpoint())})
			holder, victim := dial(t, s, "/hold"), dial(t, s, "/broadcast")
			conn := onlyConn(t, s, "/broadcast")
			held.take(holder)
			victim.kill()
			awaitReset(t, conn)
			for _, post := range order {
				if err := post(conn); err != nil {
					t.Fatal(err)
				}
			}
			held.release()
			eventually(t, "it is gone", func() bool { return s.Stats().Sockets == 1 })
			if st := s.Stats(); st.Drops[DropClosed] != uint64(len(order)) || st.QueuedBytes != 0 {
				t.Errorf("%d drops, want %d", st.Drops[DropClosed], len(order))
			}
			if err := conn.Send(Text, nil); err != ErrClosed {
				t.Errorf("Send: %v, want ErrClosed", err)
			}
		})
	}
}

// awaitReset waits until the kernel has seen the end of a connection whose loop is held: a write before that succeeds.
func awaitReset(t *testing.T, c *Conn) {
	t.Helper()
	eventually(t, "the reset has arrived", func() bool {
		fds := []unix.PollFd{{Fd: c.core().FD(), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n == 1 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
}

// A handler that panics loses its own connection and nothing else.
func TestPanics(t *testing.T) {
	for _, hook := range []string{"Upgrade", "Open", "Message", "Close"} {
		t.Run(hook, func(t *testing.T) {
			blow := func(here string) {
				if here == hook {
					panic("kaboom in " + here)
				}
			}
			closed, heard := make(chan error, 10), make(chan string, 10)
			endpoints := append(echoAndBroadcast(), Endpoint{Path: "/fragile", Handler: Handler{
				Upgrade: func(*Request) error { blow("Upgrade"); return nil },
				Open:    func(*Conn) { blow("Open") },
				Message: func(c *Conn, op codec.Opcode, b []byte) {
					heard <- string(b)
					blow("Message")
					_ = c.Send(op, b)
				},
				Close: func(_ *Conn, err error) { closed <- err; blow("Close") },
			}})
			s, log := startLogged(t, Options{Loops: 1, Endpoints: endpoints})
			alice := dial(t, s, "/echo")
			bob := dialRaw(t, s)
			bob.write(append([]byte(upgradeHead("/fragile")), append(text("blow"), text("more")...)...))
			resp := bob.response()
			code, messages := codec.CloseInternalError, map[string]int{"Message": 1, "Close": 2}[hook]
			switch hook {
			case "Upgrade":
				if body, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusInternalServerError || strings.Contains(string(body), "kaboom") || err != nil {
					t.Errorf("%s, %q, %v", resp.Status, body, err)
				}
				bob.wantEOF()
			case "Close":
				code = codec.CloseNormal
				bob.want("blow")
				bob.want("more")
				bob.write(masked(0x88, []byte{0x03, 0xe8}))
				bob.wantClose(codec.CloseNormal, "")
			default:
				op, payload, err := bob.frame()
				if op != codec.OpClose || string(payload) != "\x03\xf3internal server error" || err != nil {
					t.Fatalf("got %v %q, %v; want 1011", op, payload, err)
				}
				bob.wantEOF()
			}
			_ = bob.conn.Close()
			eventually(t, "bob is gone", func() bool { return s.Stats().Sockets == 1 })
			if hook != "Upgrade" {
				var e *CloseError
				if err := <-closed; !errors.As(err, &e) || e.Code != code || len(closed) > 0 {
					t.Errorf("Close got %v, and %d more", err, len(closed))
				}
			}
			alice.send("alive")
			alice.want("alive")
			if len(heard) != messages {
				t.Errorf("the handler got %d messages, want %d: none after a panic", len(heard), messages)
			}
			if st := s.Stats(); st.Panics != 1 || (st.Refusals[RefusePanic] == 1) != (hook == "Upgrade") {
				t.Errorf("%d panics counted, want 1; refusals %v", st.Panics, st.Refusals)
			}
			if l := log.String(); !strings.Contains(l, "kaboom in "+hook) || !strings.Contains(l, "failure_test.go") || !strings.Contains(l, "hook="+hook) {
				t.Errorf("the log says %s", l)
			}
		})
	}
}

// Handlers may use the connection and the server as they like.
func TestHandlersThatAct(t *testing.T) {
	ended := make(chan error, 10)
	endpoints := append(echoAndBroadcast(), Endpoint{Path: "/busy", Handler: Handler{
		Open: func(c *Conn) { _ = c.Send(Text, []byte("welcome")) },
		Message: func(c *Conn, op codec.Opcode, b []byte) {
			_ = c.Send(op, b)
			_ = c.Close(codec.ClosePolicyViolation, "enough")
			_ = c.Close(codec.CloseNormal, "again")
			_ = c.Send(op, []byte("too late"))
		},
		Close: func(c *Conn, err error) {
			ended <- errors.Join(c.Send(Text, []byte("farewell")), c.Close(codec.CloseNormal, ""))
			ended <- c.Server().Broadcast("/broadcast", Text, []byte("somebody left"))
		},
	}})
	s := start(t, Options{Endpoints: endpoints})
	listener, c := dial(t, s, "/broadcast"), dial(t, s, "/busy")
	c.want("welcome")
	c.write(append(text("hello"), text("unheard")...))
	c.want("hello")
	if op, payload, err := c.frame(); op != codec.OpClose || string(payload) != "\x03\xf0enough" || err != nil {
		t.Fatalf("got %v %q, %v; want 1008", op, payload, err)
	}
	c.write(masked(0x88, []byte{0x03, 0xf0}))
	c.wantEOF()
	listener.want("somebody left")
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("Send in Close: %v, want ErrClosed", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Broadcast in Close: %v", err)
	}
}

// A connection that has closed takes nothing more, even when its descriptor is another connection's.
func TestUseAfterClose(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast()})
	gone := dial(t, s, "/echo")
	conn := onlyConn(t, s, "/echo")
	gone.kill()
	eventually(t, "it is gone", func() bool { return s.Stats().Sockets == 0 })
	alice := dial(t, s, "/echo")
	if heir := onlyConn(t, s, "/echo"); heir.core().FD() != conn.core().FD() {
		t.Logf("descriptor %d was not reused", conn.core().FD())
	}
	for range 10 {
		if err := conn.Send(Text, []byte("stray")); err != ErrClosed {
			t.Errorf("Send: %v, want ErrClosed", err)
		}
		if err := conn.SendFrame(codec.NewFrame(Text, []byte("stray"))); err != ErrClosed {
			t.Errorf("SendFrame: %v, want ErrClosed", err)
		}
		if err := conn.Close(codec.CloseNormal, "stray"); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	conn.SetValue(1)
	if conn.Value() != 1 || conn.Path() != "/echo" || conn.ID() == 0 || !conn.RemoteAddr().IsValid() {
		t.Error("a closed connection does not say what it was")
	}
	alice.send("mine")
	alice.want("mine")
	if err := conn.Close(codec.CloseNoStatus, ""); !errors.Is(err, ErrCloseCode) {
		t.Errorf("Close with 1005: %v, want ErrCloseCode", err)
	}
	if err := conn.Send(codec.OpPing, nil); err != ErrOpcode {
		t.Errorf("Send of a ping: %v, want ErrOpcode", err)
	}
	if err := s.Broadcast("/nowhere", Text, nil); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("Broadcast to nowhere: %v, want ErrNoEndpoint", err)
	}
}

// However a connection ends, Close is called once and knows why.
func TestCloseIsCalledOnce(t *testing.T) {
	limits, ping := off()
	serverCloses := func(code codec.CloseCode) func(*client, *Conn) {
		return func(c *client, conn *Conn) {
			_ = conn.Close(code, "go")
			_ = conn.Close(codec.CloseNormal, "twice")
			c.wantClose(code, "go")
		}
	}
	for _, row := range []struct {
		name   string
		end    func(c *client, conn *Conn)
		code   codec.CloseCode
		remote bool
		cause  error
	}{
		{"the peer closes", func(c *client, _ *Conn) { c.write(masked(0x88, []byte("\x03\xe9bye"))) }, codec.CloseGoingAway, true, nil},
		{"the peer closes without a code", func(c *client, _ *Conn) { c.write(masked(0x88, nil)) }, codec.CloseNoStatus, true, nil},
		{"the peer closes twice", func(c *client, _ *Conn) { c.write(append(masked(0x88, nil), masked(0x88, nil)...)) }, codec.CloseNoStatus, true, nil},
		{"the peer's connection ends", func(c *client, _ *Conn) { _ = c.conn.Close() }, codec.CloseAbnormal, true, io.EOF},
		{"the peer resets", func(c *client, _ *Conn) { c.kill() }, codec.CloseAbnormal, true, syscall.ECONNRESET},
		{"the peer breaks a rule", func(c *client, _ *Conn) { c.write([]byte{0xff, 0x80, 0, 0, 0, 0}) }, codec.CloseProtocolError, false, nil},
		{"the server closes", serverCloses(codec.CloseNormal), codec.CloseNormal, false, nil},
		{"the server closes with the application's code", serverCloses(4321), 4321, false, nil},
		{"the server closes and the peer resets", func(c *client, conn *Conn) { _ = conn.Close(codec.CloseNormal, ""); c.kill() }, codec.CloseNormal, false, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			closed := make(chan error, 10)
			endpoint := Endpoint{Path: "/", Handler: Handler{Close: func(_ *Conn, err error) { closed <- err }}}
			s := start(t, Options{Endpoints: []Endpoint{endpoint}, Limits: limits, Ping: ping})
			c := dial(t, s, "/")
			row.end(c, onlyConn(t, s, "/"))
			var e *CloseError
			err := <-closed
			if row.code == codec.CloseNormal && strings.HasSuffix(row.name, "resets") && errors.Is(err, syscall.ECONNRESET) {
				return // the reset was faster
			}
			if !errors.As(err, &e) || e.Code != row.code || e.Remote != row.remote || e.Err != row.cause && !errors.Is(err, row.cause) {
				t.Errorf("Close got %v (%+v); want code %v, remote %v, cause %v", err, err, row.code, row.remote, row.cause)
			}
			_ = c.conn.Close()
			eventually(t, "the socket is gone", func() bool { return s.Stats().Sockets == 0 })
			if st := s.Stats(); len(closed) > 0 || st.Open != 0 || len(st.Closes) != 1 {
				t.Errorf("%d more calls of Close, %d open, %v", len(closed), st.Open, st.Closes)
			}
		})
	}
}

// A port that is taken is an error that names it, also when it is another server of this kind that
// shares its port among its own loops.
func TestPortTaken(t *testing.T) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for name, addr := range map[string]net.Addr{
		"by any program":    plain.Addr(),
		"by another server": start(t, Options{Endpoints: echoAndBroadcast()}).Addr(),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(Options{Listen: addr.String(), Endpoints: echoAndBroadcast()})
			if err != nil {
				t.Fatal(err)
			}
			err = s.Run(t.Context())
			if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(fmt.Sprint(err), addr.String()) {
				t.Errorf("Run: %v, want an error that names %v", err, addr)
			}
			select {
			case <-s.Started():
				t.Error("it says that it has started")
			default:
			}
		})
	}
}

// The engine dies under its connections: Run returns at once, and says why. No client is left waiting.
func TestEngineDeath(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere a listening socket cannot be shut down")
	}
	closed := make(chan error, 10)
	endpoint := Endpoint{Path: "/", Handler: Handler{Close: func(_ *Conn, err error) { closed <- err }}}
	s, err := New(Options{Listen: "127.0.0.1:0", Loops: 2, Endpoints: []Endpoint{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.Background()) }()
	<-s.Started()
	var clients []*client
	for range 10 {
		clients = append(clients, dial(t, s, "/"))
	}
	eventually(t, "all are open", func() bool { return s.Count() == 10 })
	conn := onlyConn(t, s, "/")
	for fd := range 1024 { // an accept on a socket that is shut down fails
		if listen.ListensOn(fd, s.engine.Listeners[0].TCPAddr()) {
			if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
				t.Fatal(err)
			}
		}
	}
	select {
	case err = <-ended:
	case <-time.After(patience):
		t.Fatal("Run does not end")
	}
	if !errors.Is(err, ErrEngine) || !strings.Contains(err.Error(), "invalid argument") && !strings.Contains(err.Error(), "accept") {
		t.Errorf("Run: %v; want ErrEngine and a cause", err)
	}
	for _, c := range clients {
		if _, _, err := c.frame(); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a client still waits: %v", err)
		}
		var e *CloseError
		if err := <-closed; !errors.As(err, &e) || e.Code != codec.CloseAbnormal || e.Remote || errors.Is(err, io.EOF) {
			t.Errorf("Close got %v; want 1006 by the server", err)
		}
	}
	useEnded(t, s, conn)
	if err := s.Run(context.Background()); err != ErrStarted {
		t.Errorf("a second Run: %v, want ErrStarted", err)
	}
}

// useEnded uses a server that has ended. None of it does anything.
func useEnded(t *testing.T, s *Server, conn *Conn) {
	t.Helper()
	victim, err := net.Listen("tcp", "127.0.0.1:0") // gets a descriptor that was the server's
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	if err := conn.Send(Text, []byte("late")); err != ErrClosed {
		t.Errorf("Send after the end: %v, want ErrClosed", err)
	}
	if err := conn.Close(codec.CloseNormal, ""); err != nil {
		t.Errorf("Close after the end: %v", err)
	}
	if err := s.Broadcast(conn.Path(), Text, []byte("late")); err != nil {
		t.Errorf("Broadcast after the end: %v", err)
	}
	s.Shutdown(context.Background())
	for range s.Conns() {
		t.Error("a connection is left")
	}
	if st := s.Stats(); st.Open != 0 || st.Sockets != 0 || st.QueuedBytes != 0 {
		t.Errorf("%d open, %d sockets and %d bytes are left", st.Open, st.Sockets, st.QueuedBytes)
	}
}
