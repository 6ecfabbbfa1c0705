package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/internal/testenv"
	"carillon/server/internal/listen"
	"carillon/server/internal/reactor"
)

// socketPath is a place for a unix socket.
func socketPath(t testing.TB) string {
	t.Helper()
	return filepath.Join(testenv.SocketDir(t), "s")
}

// A client of a unix socket has no address until a proxy tells one, and no limit for an address holds.
func TestUnknownAddress(t *testing.T) {
	path := socketPath(t)
	for _, trusted := range []bool{true, false} {
		opts := Options{Listen: "unix:" + path, Endpoints: []Endpoint{whoAmI()}, HTTP: http.HandlerFunc(mirror),
			Limits: Limits{MaxConnectionsPerAddress: 1, HandshakesPerSecondPerAddress: 1}}
		told, page := "invalid AddrPort", "@"
		if trusted {
			opts.TrustedProxies = []string{"unix"}
			told, page = "192.0.2.1:0", "192.0.2.1:0"
		}
		s, log := startLogged(t, opts)
		for range 5 {
			dialAt(t, "unix", path).upgrade("/who").want("invalid AddrPort")
		}
		c := dialAt(t, "unix", path).upgrade("/who", "X-Forwarded-For: 198.51.100.7, 192.0.2.1")
		c.want(told)
		if c := dialAt(t, "unix", path); trusted { // the address that was told has a limit
			c.write([]byte(upgradeHead("/who", "X-Forwarded-For: 192.0.2.1")))
			c.wantRefusal(http.StatusTooManyRequests, "")
		}
		c = dialAt(t, "unix", path)
		c.write([]byte(requestHead("GET / HTTP/1.1", "X-Forwarded-For: 192.0.2.1")))
		if got := c.wantPage("GET /").Header.Get("X-Remote"); got != page {
			t.Errorf("the page is for %q, want %q", got, page)
		}
		c.write([]byte(requestHead("GET / HTTP/1.1")))
		if got := c.wantPage("GET /").Header.Get("X-Remote"); got != "@" {
			t.Errorf("the second page is for %q", got)
		}
		if !strings.Contains(log.String(), "remote=unix") || strings.Contains(log.String(), "invalid") {
			t.Errorf("the log says\n%s", log)
		}
		s.Shutdown(atOnce())
		eventually(t, "it has ended", func() bool { return s.State() == StateStopped })
	}
}

// Two pages and then a WebSocket on one connection.
func TestPagesOverAUnixSocket(t *testing.T) {
	path := socketPath(t)
	opts := withPages(mirror)
	opts.Listen = "unix:" + path
	s := start(t, opts)
	for range 20 {
		c := dialAt(t, "unix", path)
		for range 2 {
			c.write([]byte(requestHead("GET /a/page HTTP/1.1")))
			c.wantPage("GET /a/page")
		}
		c.upgrade("/echo")
		c.send("hello")
		c.want("hello")
		c.write(masked(0x88, []byte{0x03, 0xe8}))
		c.wantClose(1000, "")
		_ = c.conn.Close()
	}
	eventually(t, "no socket is left", func() bool { return s.Stats().Sockets == 0 })
	if st := s.Stats(); st.Accepted != 20 || st.PlainHTTP != 20 || st.Returned != 20 {
		t.Errorf("%+v", st)
	}
	if got := s.URL("/echo"); got != "ws://localhost/echo" {
		t.Errorf("URL is %s", got)
	}
	if curl, err := exec.LookPath("curl"); err == nil {
		out, err := exec.Command(curl, "-sS", "--max-time", "20", "--unix-socket", path, "http://localhost/healthz").CombinedOutput()
		if err != nil || string(out) != "ok\n" {
			t.Errorf("curl: %v: %s", err, out)
		}
	}
}

// Connections of a unix socket are spread over all loops evenly, without the help of a TCP connection.
func TestUnixSocketsAreSpread(t *testing.T) {
	path := socketPath(t)
	s := start(t, Options{Listen: "unix:" + path, Loops: 4, Endpoints: echoAndBroadcast()})
	for range 40 {
		dialAt(t, "unix", path).upgrade("/echo")
	}
	shards := s.engine.AllShards()
	if len(shards) != 4 {
		t.Fatalf("%d shards", len(shards))
	}
	for _, sh := range shards {
		if n := sh.Stats.Open.Load(); n != 10 {
			t.Errorf("a loop has %d connections, want 10", n)
		}
	}
	if hidden := s.engine.TCP[0].Addr.String(); s.Addr().Network() != "unix" || len(s.Addrs()) != 1 {
		t.Errorf("it listens on %v", s.Addrs())
	} else if conn, err := net.Dial("tcp", hidden); err == nil {
		_ = conn.Close()
		t.Errorf("%s, which is not for clients, can be reached", hidden)
	}
}

// Many come at once, more than there may be, and each is served or told why not.
func TestStormOverAUnixSocket(t *testing.T) {
	path := socketPath(t)
	s := start(t, Options{Listen: "unix:" + path, Endpoints: echoAndBroadcast(), Limits: Limits{MaxConnections: 200}})
	alice := dialAt(t, "unix", path).upgrade("/echo")
	var mu sync.Mutex
	answers := map[int]int{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				conn, err := net.Dial("unix", path)
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				_ = conn.SetDeadline(time.Now().Add(patience))
				_, _ = io.WriteString(conn, upgradeHead("/echo"))
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				mu.Lock()
				if err == nil {
					answers[resp.StatusCode]++
				} else {
					answers[0]++ // it was told before it had sent its request
				}
				mu.Unlock()
				if err == nil && resp.StatusCode == 101 {
					defer conn.Close()
				} else {
					_ = conn.Close()
				}
			}
		})
	}
	for range 20 {
		alice.send("still here")
		alice.want("still here")
	}
	wg.Wait()
	if answers[101] < 100 || answers[503]+answers[0] < 100 {
		t.Errorf("answers: %v", answers)
	}
	eventually(t, "only alice is left", func() bool { return s.Stats().Sockets == 1 })
	if st := s.Stats(); st.Accepted != 1001 || st.Opened+st.Refusals[RefuseFull]+st.Refusals[RefuseLost] != 1001 {
		t.Errorf("%+v", st)
	}
}

// Clients that have connected when a drain gives up a unix socket are served, although no loop had time for them so
// far: those that were accepted, and those that are still in the kernel's queue.
func TestDrainServesTheQueueOfAUnixSocket(t *testing.T) {
	for _, waiting := range []int{reactor.MaxArriving / 2, 2 * reactor.MaxArriving} {
		path, held := socketPath(t), newHold()
		s := start(t, Options{Listen: "unix:" + path, Loops: 1, Endpoints: append(echoAndBroadcast(), held.endpoint()),
			Drain: Drain{Duration: time.Hour, Deadline: 2 * time.Hour}})
		held.take(dialAt(t, "unix", path).upgrade("/hold"))
		var clients []*client
		for range waiting {
			c := dialAt(t, "unix", path)
			c.write([]byte(upgradeHead("/echo")))
			clients = append(clients, c)
		}
		s.StartDrain("test", 0)
		eventually(t, "the file is gone", func() bool {
			_, err := os.Lstat(path)
			return os.IsNotExist(err)
		})
		time.Sleep(3 * reactor.LastCall) // a server that does not wait for them would go on meanwhile
		held.release()
		for _, c := range clients {
			if resp := c.response(); resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("answered %s", resp.Status)
			}
		}
		s.Shutdown(atOnce())
	}
}

// What is at the path is replaced only if it is what a dead server has left.
func TestUnixPath(t *testing.T) {
	serve := func(t *testing.T, path string) error {
		t.Helper()
		s, err := New(Options{Listen: "127.0.0.1:0", Listeners: []Listener{{Listen: "unix:" + path, Mode: 0o600}}, Endpoints: echoAndBroadcast()})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context()) }()
		select {
		case <-s.Started():
			if info, err := os.Lstat(path); err != nil || info.Mode() != 0o600|os.ModeSocket {
				t.Errorf("the socket is %v, %v", info.Mode(), err)
			}
			dialAt(t, "unix", path).upgrade("/echo")
			s.Shutdown(atOnce())
		case err := <-ended:
			return err
		}
		return <-ended
	}
	t.Run("nothing is there", func(t *testing.T) {
		path := socketPath(t)
		for range 2 {
			if err := serve(t, path); err != nil {
				t.Error(err)
			}
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		}
	})
	t.Run("a dead server's socket", func(t *testing.T) {
		path := socketPath(t)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		_ = l.Close()
		if err := serve(t, path); err != nil {
			t.Error(err)
		}
	})
	for sentence, make := range map[string]func(path string) (io.Closer, error){
		"a live server's socket": func(path string) (io.Closer, error) { return net.Listen("unix", path) },
		"a socket of another kind": func(path string) (io.Closer, error) {
			return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		},
		"a file":           func(path string) (io.Closer, error) { return os.Create(path) },
		"a link to a file": func(path string) (io.Closer, error) { return io.NopCloser(nil), os.Symlink("/etc/hostname", path) },
		"a directory":      func(path string) (io.Closer, error) { return io.NopCloser(nil), os.Mkdir(path, 0o700) },
	} {
		t.Run(sentence, func(t *testing.T) {
			path := socketPath(t)
			there, err := make(path)
			if err != nil {
				t.Fatal(err)
			}
			defer there.Close()
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			err = serve(t, path)
			if err == nil || !strings.HasPrefix(err.Error(), "listeners[0].listen: listen unix "+path+": ") || errors.Is(err, ErrEngine) {
				t.Errorf("it is %v", err)
			}
			if strings.Contains(sentence, "live") && !strings.HasSuffix(err.Error(), "address already in use") {
				t.Errorf("it is %v", err)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("it is gone: %v", err)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		if err := serve(t, filepath.Join(socketPath(t), "s")); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
			t.Errorf("it is %v", err)
		}
	})
}

// A unix socket whose connections cannot be accepted, for want of descriptors, has them wait. Alice notices
// nothing.
func TestUnixSocketWithoutDescriptors(t *testing.T) {
	path := socketPath(t)
	s, log := startLogged(t, Options{Listen: "unix:" + path, Endpoints: echoAndBroadcast()})
	alice := dialAt(t, "unix", path).upgrade("/echo")
	fd, err := listen.UnixStream()
	if err != nil {
		t.Fatal(err)
	}
	restore := noDescriptors(t)
	defer restore()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has tried several times", func() bool { return s.Stats().AcceptErrors >= 3 })
	alice.send("still here")
	alice.want("still here")
	if !strings.Contains(log.String(), "cannot accept connections") {
		t.Errorf("the log says\n%s", log)
	}
	restore()
	file := os.NewFile(uintptr(fd), "bob")
	conn, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bob := (&client{t: t, conn: conn, r: bufio.NewReader(conn)}).upgrade("/echo")
	bob.send("here at last")
	bob.want("here at last")
}

// One that was accepted and finds no descriptor on its way to a loop is counted, and closed.
func TestArrivalWithoutDescriptors(t *testing.T) {
	path := socketPath(t)
	s := start(t, Options{Listen: "unix:" + path, Endpoints: echoAndBroadcast()})
	dialAt(t, "unix", path).upgrade("/echo")
	l, err := net.Listen("unix", socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := dialAt(t, "unix", l.Addr().String())
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a := &reactor.Acceptor{Listener: s.engine.Listeners[0], Moving: make(chan struct{}, 1)}
	a.Moving <- struct{}{}
	restore := noDescriptors(t)
	defer restore()
	a.Move(conn.(*net.UnixConn), &reactor.Arrival{Shard: s.engine.AllShards()[0], Entered: a.Listener, Place: s.engine.Sockets.Add(1)})
	restore()
	c.wantEOF()
	if st := s.Stats(); st.Refusals[RefuseDescriptors] != 1 || st.Sockets != 1 || st.Accepted != 2 {
		t.Errorf("%+v", st)
	}
}

// The internal interface on a unix socket asks for no token and for no particular host, since no page of a
// browser can reach it.
func TestInternalInterfaceOnAUnixSocket(t *testing.T) {
	path := socketPath(t)
	s, err := New(Options{Listen: "127.0.0.1:0", Endpoints: echoAndBroadcast(), Internal: Internal{Listen: "unix:" + path}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	<-s.Started()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.InternalAddr().String())
	}}}
	defer client.CloseIdleConnections()
	for _, host := range []string{"localhost", "carillon.example.com"} {
		resp, err := client.Get("http://" + host + "/readyz")
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v, %v", host, resp, err)
		}
		_ = resp.Body.Close()
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != 0o600|os.ModeSocket {
		t.Errorf("the socket is %v, %v", info, err)
	}
	second, err := New(Options{Listen: "127.0.0.1:0", Endpoints: echoAndBroadcast(), Internal: Internal{Listen: "unix:" + path}})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || err.Error() != "internal.listen: listen unix "+path+": bind: address already in use" {
		t.Errorf("a second server: %v", err)
	}
	s.Shutdown(atOnce())
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is there: %v", err)
	}
}

// An abstract socket has no file, and is gone with its server.
func TestAbstractSocket(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("abstract sockets are Linux's")
	}
	name := "@" + filepath.Base(filepath.Dir(socketPath(t)))
	for range 2 {
		s, err := New(Options{Listen: "unix:" + name, Endpoints: echoAndBroadcast()})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context()) }()
		<-s.Started()
		c := dialAt(t, "unix", name).upgrade("/echo")
		c.send("hello")
		c.want("hello")
		second, _ := New(Options{Listen: "unix:" + name, Endpoints: echoAndBroadcast()})
		if err := second.Run(t.Context()); err == nil || err.Error() != "listen unix "+name+": bind: address already in use" {
			t.Errorf("a second server: %v", err)
		}
		s.Shutdown(atOnce())
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
