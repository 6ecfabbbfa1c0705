package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// With swarmEnv set, the test program is a swarm of clients: see swarm_linux_test.go.
const swarmEnv = "CARILLON_TEST_SWARM"

var swarmMain func()

// With this set, the servers and clients of nearly all tests speak TLS with each other.
var allOverTLS = os.Getenv("CARILLON_TEST_TLS") != ""

// childEnv names one of childMains, which the test program is then instead: a process of its own.
const childEnv = "CARILLON_TEST_CHILD"

var childMains = map[string]func(){}

func TestMain(m *testing.M) {
	if os.Getenv(swarmEnv) != "" {
		swarmMain()
		return
	}
	if main := childMains[os.Getenv(childEnv)]; main != nil {
		main()
		return
	}
	reactor.CheckOwner = os.Getenv("CARILLON_TEST_NO_OWNER_CHECK") == ""
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue {
		_ = n.Value.Set("8") // those that call t.Parallel wait most of the time
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what must happen. It says nothing about speed.
const patience = 60 * time.Second

// start makes a server on a free port of 127.0.0.1 and runs it.
func start(t testing.TB, opts Options) *Server {
	t.Helper()
	s, _ := startLogged(t, opts)
	return s
}

// startLogged also returns what the server logs.
func startLogged(t testing.TB, opts Options) (*Server, *logBuffer) {
	t.Helper()
	return startChanged(t, opts, func(*Server) {})
}

// startChanged changes the server before it runs.
func startChanged(t testing.TB, opts Options, change func(*Server)) (*Server, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	if opts.Listen == "" {
		opts.Listen = "127.0.0.1:0"
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if allOverTLS && !opts.TLS.enabled() {
		opts.TLS.Config = testTLS()
	}
	if opts.Drain == (Drain{}) {
		opts.Drain = Drain{Duration: -1, Deadline: time.Second}
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	change(s)
	run(t, s)
	return s, log
}

// run runs a server until the test ends, and fails the test if it does not end well.
func run(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	select {
	case <-s.Started():
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

var eventually = testenv.Eventually

// client is a WebSocket client that does no more than its test says: no pongs, no close frames, no
// reading ahead.
type client struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

const sampleKey = "dGhlIHNhbXBsZSBub25jZQ=="

func upgradeHead(path string, headers ...string) string {
	head := "GET " + path + " HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Key: " + sampleKey + "\r\nSec-WebSocket-Version: 13\r\n"
	for _, h := range headers {
		head += h + "\r\n"
	}
	return head + "\r\n"
}

// dialRaw opens a TCP connection and sends nothing.
func dialRaw(t testing.TB, s *Server) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

func newClient(t testing.TB, conn net.Conn) *client {
	t.Cleanup(func() { _ = conn.Close() })
	if allOverTLS && !strings.HasPrefix(t.Name(), "TestTLS") {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	return &client{t: t, conn: conn, r: bufio.NewReader(conn)}
}

// tcp is the TCP connection of a client.
func (c *client) tcp() *net.TCPConn {
	if secured, ok := c.conn.(*tls.Conn); ok {
		return secured.NetConn().(*net.TCPConn)
	}
	return c.conn.(*net.TCPConn)
}

// dial opens a WebSocket.
func dial(t testing.TB, s *Server, path string, headers ...string) *client {
	t.Helper()
	c := dialRaw(t, s)
	c.write([]byte(upgradeHead(path, headers...)))
	resp := c.response()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("handshake at %s: %s: %s", path, resp.Status, body)
	}
	return c
}

func (c *client) write(b []byte) {
	c.t.Helper()
	_ = c.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *client) response() *http.Response {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("read response: %v", err)
	}
	return resp
}

// masked makes a frame as a client sends it.
func masked(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	b = append(b, mask[:]...)
	for i, x := range payload {
		b = append(b, x^mask[i%4])
	}
	return b
}

func text(s string) []byte { return masked(0x81, []byte(s)) }

func (c *client) send(s string) { c.t.Helper(); c.write(text(s)) }

// frame reads one frame of the server's.
func (c *client) frame() (op codec.Opcode, payload []byte, err error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	var head [10]byte
	if _, err = io.ReadFull(c.r, head[:2]); err != nil {
		return 0, nil, err
	}
	n := int(head[1])
	switch {
	case n == 126:
		_, err = io.ReadFull(c.r, head[2:4])
		n = int(binary.BigEndian.Uint16(head[2:4]))
	case n == 127:
		_, err = io.ReadFull(c.r, head[2:10])
		n = int(binary.BigEndian.Uint64(head[2:10]))
	}
	if err == nil {
		payload = make([]byte, n)
		_, err = io.ReadFull(c.r, payload)
	}
	return codec.Opcode(head[0] & 15), payload, err
}

// want reads a text message.
func (c *client) want(s string) {
	c.t.Helper()
	op, payload, err := c.frame()
	if err != nil || op != Text || string(payload) != s {
		c.t.Fatalf("got %v %.80q, %v; want %.80q", op, payload, err, s)
	}
}

// wantClose reads until the close frame, answers it, and checks that the server ends the connection.
func (c *client) wantClose(code codec.CloseCode, reason string) {
	c.t.Helper()
	for {
		op, payload, err := c.frame()
		if err != nil {
			c.t.Fatalf("instead of close frame %v: %v", code, err)
		}
		if op != codec.OpClose {
			continue
		}
		got := codec.CloseNoStatus
		if len(payload) >= 2 {
			got, payload = codec.CloseCode(binary.BigEndian.Uint16(payload)), payload[2:]
		}
		if got != code || !strings.Contains(string(payload), reason) {
			c.t.Fatalf("closed with %v %q, want %v %q", got, payload, code, reason)
		}
		break
	}
	if _, err := c.conn.Write(masked(0x88, []byte{0x03, 0xe8})); err != nil {
		return // it did not wait for us
	}
	c.wantEOF()
}

// wantEOF checks that the server ends the connection in order, without a reset.
func (c *client) wantEOF() {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Fatalf("after the end: %q, %v", rest, err)
	}
}

func echoAndBroadcast() []Endpoint {
	return []Endpoint{{Path: "/echo", Mode: ModeEcho}, {Path: "/broadcast", Mode: ModeBroadcast}}
}

func words(i int) string { return fmt.Sprintf("message %d", i) }

// numbered is a message whose place in its stream can be checked.
func numbered(i, size int) []byte {
	b := make([]byte, max(size, 4))
	binary.BigEndian.PutUint32(b, uint32(i))
	return b
}

// heap is the memory in use after all garbage is gone.
func heapBytes() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
