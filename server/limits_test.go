package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

func wantFull(t *testing.T, c *client) {
	t.Helper()
	resp := c.response()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" ||
		!strings.Contains(string(body), "server is full") || err != nil {
		t.Fatalf("beyond the limit: %s, Retry-After %q, %q, %v", resp.Status, resp.Header.Get("Retry-After"), body, err)
	}
	c.wantEOF()
	_ = c.conn.Close()
}

// Alice and bob fill the server. Cathy is told that it is full, however slowly she asks, and served
// when bob has left.
func TestMaxConnections(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxConnections: 2}})
	if n := s.MaxConnections(); n != 2 {
		t.Fatalf("MaxConnections is %d, want 2", n)
	}
	alice, bob := dial(t, s, "/echo"), dial(t, s, "/echo")

	cathy := dialRaw(t, s)
	cathy.write([]byte(upgradeHead("/echo")))
	wantFull(t, cathy)

	cathy = dialRaw(t, s)
	head := upgradeHead("/echo")
	for len(head) > 0 {
		n := min(10, len(head))
		cathy.write([]byte(head[:n]))
		head = head[n:]
		time.Sleep(time.Millisecond)
	}
	wantFull(t, cathy)
	eventually(t, "two refusals are counted", func() bool { return s.Stats().Refusals[RefuseFull] == 2 })

	_ = bob.conn.Close()
	eventually(t, "bob's socket is closed", func() bool { return s.Stats().Sockets == 1 })
	cathy = dial(t, s, "/echo")
	for _, c := range []*client{alice, cathy} {
		c.send("still here")
		c.want("still here")
	}
}

// A thousand clients want in at once, many more than can be told why not. Those who are inside notice
// nothing.
func TestMaxConnectionsStorm(t *testing.T) {
	const inside, outside = 20, 1200
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxConnections: inside}})
	var clients []*client
	for range inside {
		clients = append(clients, dial(t, s, "/echo"))
	}
	storm := make(chan struct{})
	go func() {
		defer close(storm)
		knock(s.Addr().String(), outside, 100, true)
	}()
	for i := 0; ; i++ {
		for _, c := range clients {
			c.send(words(i))
			c.want(words(i))
		}
		select {
		case <-storm:
		default:
			continue
		}
		break
	}
	eventually(t, "only those inside are left", func() bool { return s.Stats().Sockets == inside })
	st := s.Stats()
	if n := st.Refusals[RefuseFull] + st.Refusals[RefuseLost]; n != outside || st.Refusals[RefuseFull] == 0 || st.Open != inside {
		t.Fatalf("%d refusals, want %d; %d open, want %d", n, outside, st.Open, inside)
	}
	_ = clients[0].conn.Close()
	eventually(t, "there is room for one", func() bool { return s.Stats().Sockets < inside })
	dial(t, s, "/echo")
}

// knock opens n connections, many at a time, and stays a moment on each. Whatever comes of it is
// fine.
func knock(address string, n, atOnce int, ask bool) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					continue // the server must see every one
				}
				if ask {
					_, _ = conn.Write([]byte(upgradeHead("/echo")))
				}
				_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				_, _ = conn.Read(make([]byte, 256))
				_ = conn.Close()
				return
			}
		})
	}
	wg.Wait()
}

func init() { childMains["few descriptors"] = serveWithFewDescriptors }

const fewDescriptors = 300

// serveWithFewDescriptors is a server whose limit of connections is what the descriptors allow.
func serveWithFewDescriptors() {
	limit := unix.Rlimit{Cur: fewDescriptors, Max: fewDescriptors}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		panic(err)
	}
	s, err := New(Options{Listen: "127.0.0.1:0", Loops: 2, Endpoints: echoAndBroadcast()})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
	go func() {
		<-s.Started()
		fmt.Println(s.Addr(), s.MaxConnections())
	}()
	if err := s.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// An accept that finds no descriptor would be the end of the engine, so a server that may open only
// 300 must never run out of them. Thousands knock; alice's echo works throughout.
func TestDescriptorLimitStorm(t *testing.T) {
	cmd := testenv.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=few descriptors")
	cmd.Stderr = os.Stderr
	stdin, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	var address string
	var most int
	if _, err := fmt.Fscan(out, &address, &most); err != nil {
		t.Fatal(err)
	}
	if most < fewDescriptors/2 || most >= fewDescriptors {
		t.Fatalf("%d connections allowed of %d descriptors", most, fewDescriptors)
	}
	s := &Server{engine: reactor.Engine{Started: make(chan struct{})}} // only its address is of interest
	at, _ := net.ResolveTCPAddr("tcp", address)
	s.engine.Listeners = []*reactor.Listener{{Addr: at}}
	close(s.engine.Started)

	alice := dial(t, s, "/echo")
	storm := make(chan struct{})
	go func() {
		defer close(storm)
		knock(address, 2000, 2*fewDescriptors, false)
		knock(address, 2000, 2*fewDescriptors, true)
	}()
	for i, raging := 0, true; raging; i++ {
		alice.send(words(i))
		alice.want(words(i))
		select {
		case <-storm:
			raging = false
		default:
		}
	}
	bob := dialPatiently(t, s)
	bob.send("after the storm")
	bob.want("after the storm")
	_, _ = alice.conn.Close(), bob.conn.Close()
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the server ended with %v", err)
	}
}

// dialPatiently dials until the server has noticed that others have left.
func dialPatiently(t *testing.T, s *Server) (c *client) {
	t.Helper()
	eventually(t, "there is room for another", func() bool {
		c = dialRaw(t, s)
		c.write([]byte(upgradeHead("/echo")))
		return c.response().StatusCode == http.StatusSwitchingProtocols
	})
	return c
}

func TestMaxConnectionsBeyondDescriptors(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		t.Skipf("the descriptor limit is %d, %v", limit.Cur, err)
	}
	s, err := New(Options{Listen: "127.0.0.1:0", Endpoints: echoAndBroadcast(), Limits: Limits{MaxConnections: int(limit.Cur)}})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context())
	if err == nil || strings.Count(err.Error(), fmt.Sprint(limit.Cur)) < 2 || !strings.Contains(err.Error(), "max_connections") {
		t.Fatalf("Run: %v; want an error that names both numbers", err)
	}
}

func TestMaxHead(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxHead: 1024}})
	fill := func(n int) string {
		head := upgradeHead("/echo", "X-Fill: ")
		return upgradeHead("/echo", "X-Fill: "+strings.Repeat("x", n-len(head)))
	}
	for _, row := range []struct {
		name   string
		head   string
		status int
	}{
		{"a head of exactly the limit is served", fill(1024), 101},
		{"one byte more is 431", fill(1025), 431},
		{"a head without end is 431 as soon as it is too long", fill(2048)[:1024], 431},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, piece := range []int{len(row.head), 100} {
				c := dialRaw(t, s)
				for b := []byte(row.head); len(b) > 0; b = b[min(piece, len(b)):] {
					c.write(b[:min(piece, len(b))])
				}
				if resp := c.response(); resp.StatusCode != row.status {
					t.Errorf("in pieces of %d: %s, want %d", piece, resp.Status, row.status)
				}
			}
		})
	}
	if n := s.Stats().Refusals[RefuseHeadTooLong]; n != 4 {
		t.Errorf("%d refusals counted, want 4", n)
	}
}

// header is that of a masked frame with a 64-bit length.
func header(first byte, length uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte{first, 0x80 | 127}, length)
	return append(b, 1, 2, 3, 4)
}

func TestMaxMessage(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxMessage: 70_000}})
	fits := strings.Repeat("x", 70_000)
	for _, row := range []struct {
		name   string
		frames []byte
	}{
		{"a message of one byte more", masked(0x81, []byte(fits+"x"))},
		{"a header alone, before any payload", header(0x82, 70_001)},
		{"the fragment that makes it too long", append(masked(0x01, []byte(fits)), masked(0x00, []byte("x"))...)},
		{"a length of 2^63-1", header(0x82, 1<<63-1)},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := dial(t, s, "/echo")
			c.send(fits)
			c.want(fits)
			c.write(row.frames)
			c.wantClose(codec.CloseMessageTooBig, "")
		})
	}
}

// A hundred clients announce 1 GiB each. With the limit off that is allowed, and still costs nothing
// before it comes.
func TestAnnouncedBytesCostNothing(t *testing.T) {
	for _, limit := range []Size{0, -1} {
		s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxMessage: limit}})
		var clients []*client
		for range 100 {
			clients = append(clients, dial(t, s, "/echo"))
		}
		before, in := testenv.HeapInUse(), s.Stats().BytesIn
		for _, c := range clients {
			c.write(append(header(0x82, 1<<30), "some"...))
		}
		if limit == 0 {
			for _, c := range clients {
				c.wantClose(codec.CloseMessageTooBig, "")
			}
		} else {
			eventually(t, "all headers are in", func() bool { return s.Stats().BytesIn == in+100*18 })
		}
		if grown := testenv.HeapInUse() - before; grown > 4<<20 {
			t.Errorf("with max_message %v, 100 headers cost %d bytes", limit, grown)
		}
	}
}

func TestMaxFragments(t *testing.T) {
	fragments := func(n int) []byte {
		b := masked(0x01, []byte("x"))
		for range n - 2 {
			b = append(b, masked(0x00, []byte("x"))...)
		}
		return append(b, masked(0x80, []byte("x"))...)
	}
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxFragments: 10}})
	c := dial(t, s, "/echo")
	for range 3 {
		c.write(fragments(10))
		c.want("xxxxxxxxxx")
	}
	c.write(fragments(11))
	c.wantClose(codec.ClosePolicyViolation, "")

	s = start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxFragments: -1}})
	c = dial(t, s, "/echo")
	c.write(fragments(5000))
	c.want(strings.Repeat("x", 5000))
}

// Send refuses what would exceed the backlog of a loop that is held up; nothing of it is sent.
func TestMaxBacklog(t *testing.T) {
	held := newHold()
	endpoints := append(echoAndBroadcast(), held.endpoint())
	s := start(t, Options{Loops: 1, Endpoints: endpoints, Limits: Limits{MaxBacklog: 10 * (1000 + reactor.CommandCost)}})
	alice := dial(t, s, "/hold")
	listener := dial(t, s, "/broadcast")
	c := onlyConn(t, s, "/hold")
	held.take(alice)
	payload := bytes.Repeat([]byte("x"), 996) // 1,000 bytes as a frame
	for range 5 {
		if err := c.Send(Text, payload); err != nil {
			t.Fatal(err)
		}
		if err := s.Broadcast("/broadcast", Text, payload); err != nil {
			t.Fatal(err)
		}
	}
	for name, err := range map[string]error{
		"Send":           c.Send(Text, payload),
		"SendFrame":      c.SendFrame(codec.NewFrame(Text, payload)),
		"Broadcast":      s.Broadcast("/broadcast", Text, payload),
		"BroadcastFrame": s.BroadcastFrame("/broadcast", codec.NewFrame(Text, payload)),
	} {
		if err != ErrOverloaded {
			t.Errorf("%s: %v, want ErrOverloaded", name, err)
		}
	}
	held.release()
	for range 5 {
		alice.want(string(payload))
		listener.want(string(payload))
	}
	eventually(t, "there is room again", func() bool { return c.Send(Text, []byte("room")) == nil })
	alice.want("room")
	if n := s.Stats().Drops[DropOverloaded]; n < 4 {
		t.Errorf("%d drops counted, want 4 or more", n)
	}
}
