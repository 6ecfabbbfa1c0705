package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"

	"carillon/codec"
	"carillon/internal/testenv"
)

// The clients of this file were written by others.

// peer is a connection of a third-party client.
type peer interface {
	write(op codec.Opcode, payload []byte) error
	read() (op codec.Opcode, payload []byte, err error)
	ping() error                                  // waits for the pong; another goroutine must be reading meanwhile
	pings() int64                                 // that have come from the server
	close(code int, reason string) error          // waits for the server's close frame
	closedBy(err error) (code int, reason string) // what an error of read says about the server's close frame
}

// library is one way to dial with a client library.
type library struct {
	name       string
	compresses bool
	dial       func(t *testing.T, url string) (peer, *http.Response)
}

var libraries = []library{
	{"gorilla", false, dialGorilla(false)},
	{"gorilla with compression", true, dialGorilla(true)},
	{"coder", false, dialCoder(coder.CompressionDisabled)},
	{"coder with compression", true, dialCoder(coder.CompressionNoContextTakeover)},
	{"coder with context takeover", true, dialCoder(coder.CompressionContextTakeover)},
}

func (l *library) open(t *testing.T, s *Server, path string) peer {
	t.Helper()
	p, resp := l.dial(t, "ws://"+s.Addr().String()+path)
	want := ""
	if l.compresses {
		want = plainAnswer
	}
	if got := resp.Header.Get("Sec-WebSocket-Extensions"); got != want {
		t.Fatalf("the extensions are %q, want %q", got, want)
	}
	return p
}

// sample is a payload that compresses well.
func sample(op codec.Opcode, size int) []byte {
	unit := "said again and "
	if op == Binary {
		unit = "\x00\xff\xfe\x80\x01\x7f\x81"
	}
	return bytes.Repeat([]byte(unit), size/len(unit)+1)[:size]
}

func mustWrite(t *testing.T, p peer, op codec.Opcode, payload []byte) {
	t.Helper()
	if err := p.write(op, payload); err != nil {
		t.Fatalf("write %d bytes: %v", len(payload), err)
	}
}

func mustRead(t *testing.T, p peer, op codec.Opcode, payload []byte) {
	t.Helper()
	gotOp, got, err := p.read()
	if err != nil {
		t.Fatalf("instead of %v of %d bytes: %v", op, len(payload), err)
	}
	if gotOp != op || !bytes.Equal(got, payload) {
		t.Fatalf("got %v %.40q of %d bytes, want %v %.40q of %d", gotOp, got, len(got), op, payload, len(payload))
	}
}

var sizes = []int{0, 1, 125, 126, 4 << 10, 64 << 10, 1 << 20}

func TestClientsEcho(t *testing.T) {
	for _, lib := range libraries {
		t.Run(lib.name, func(t *testing.T) {
			s := start(t, Options{Endpoints: compressing()})
			p := lib.open(t, s, "/echo")
			total := 0
			for _, size := range sizes {
				for _, op := range []codec.Opcode{Text, Binary} {
					mustWrite(t, p, op, sample(op, size))
					mustRead(t, p, op, sample(op, size))
					total += size
				}
			}
			mustWrite(t, p, Text, []byte("Grüße, 世界 🔔"))
			mustRead(t, p, Text, []byte("Grüße, 世界 🔔"))
			st := s.Stats()
			if shrunk := st.BytesIn < uint64(total/10); shrunk != lib.compresses {
				t.Errorf("%d bytes of messages came as %d", total, st.BytesIn)
			}
			if shrunk := st.BytesOut < uint64(total/10); shrunk != lib.compresses {
				t.Errorf("%d bytes of messages went as %d", total, st.BytesOut)
			}
		})
	}
}

// Two clients of every kind are in one room, and one after the other has something to say.
func TestClientsBroadcast(t *testing.T) {
	s := start(t, Options{Endpoints: compressing()})
	var room []peer
	for _, lib := range libraries {
		room = append(room, lib.open(t, s, "/broadcast"), lib.open(t, s, "/broadcast"))
	}
	eventually(t, "all are there", func() bool { return s.Count() == len(room) })
	speaker := 0
	for _, size := range sizes {
		for _, op := range []codec.Opcode{Text, Binary} {
			mustWrite(t, room[speaker%len(room)], op, sample(op, size))
			speaker++
			for _, p := range room {
				mustRead(t, p, op, sample(op, size))
			}
		}
	}
}

func TestClientsClose(t *testing.T) {
	for _, lib := range libraries {
		t.Run(lib.name, func(t *testing.T) {
			closed := make(chan *CloseError, 1)
			s := start(t, Options{Endpoints: []Endpoint{{
				Path:        "/",
				Compression: Compression{Enabled: true},
				Handler: Handler{
					Message: func(c *Conn, op codec.Opcode, payload []byte) {
						_ = c.Send(op, payload)
						_ = c.Close(4001, "as you asked")
					},
					Close: func(_ *Conn, err error) { closed <- err.(*CloseError) },
				},
			}}})

			p := lib.open(t, s, "/")
			if err := p.close(3000, "bye"); err != nil {
				t.Errorf("close: %v", err)
			}
			if why := <-closed; why.Code != 3000 || why.Reason != "bye" || !why.Remote {
				t.Errorf("the application got %v", why)
			}

			p = lib.open(t, s, "/")
			mustWrite(t, p, Text, []byte("please close"))
			mustRead(t, p, Text, []byte("please close"))
			_, _, err := p.read()
			if code, reason := p.closedBy(err); code != 4001 || reason != "as you asked" {
				t.Errorf("the client got %v", err)
			}
			if why := <-closed; why.Code != 4001 || why.Reason != "as you asked" || why.Remote {
				t.Errorf("the application got %v", why)
			}
			eventually(t, "both sockets are closed", func() bool { return s.Stats().Sockets == 0 })
		})
	}
}

func TestClientsPing(t *testing.T) {
	for _, lib := range libraries {
		t.Run(lib.name, func(t *testing.T) {
			s := start(t, Options{Endpoints: compressing(), Ping: Ping{Interval: 20 * time.Millisecond}})
			p := lib.open(t, s, "/echo")
			read := make(chan error, 1)
			go func() {
				_, payload, err := p.read()
				if err == nil && string(payload) != "after all pings" {
					err = fmt.Errorf("read %q", payload)
				}
				read <- err
			}()
			if err := p.ping(); err != nil {
				t.Errorf("ping: %v", err)
			}
			eventually(t, "the server has pinged three times", func() bool { return p.pings() >= 3 })
			mustWrite(t, p, Text, []byte("after all pings"))
			if err := <-read; err != nil {
				t.Error(err)
			}
		})
	}
}

type gorillaPeer struct {
	conn  *gorilla.Conn
	count atomic.Int64
	pongs chan string
}

func dialGorilla(compress bool) func(t *testing.T, url string) (peer, *http.Response) {
	return func(t *testing.T, url string) (peer, *http.Response) {
		t.Helper()
		dialer := gorilla.Dialer{EnableCompression: compress, HandshakeTimeout: patience}
		conn, resp, err := dialer.Dial(url, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		p := &gorillaPeer{conn: conn, pongs: make(chan string, 1)}
		answer := conn.PingHandler()
		conn.SetPingHandler(func(data string) error {
			p.count.Add(1)
			return answer(data)
		})
		conn.SetPongHandler(func(data string) error {
			p.pongs <- data
			return nil
		})
		return p, resp
	}
}

func (p *gorillaPeer) write(op codec.Opcode, payload []byte) error {
	return p.conn.WriteMessage(int(op), payload)
}

func (p *gorillaPeer) read() (codec.Opcode, []byte, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	op, payload, err := p.conn.ReadMessage()
	if err != nil {
		_ = p.conn.Close() // gorilla leaves that to us, and the server waits for it
	}
	return codec.Opcode(op), payload, err
}

func (p *gorillaPeer) ping() error {
	if err := p.conn.WriteControl(gorilla.PingMessage, []byte("hello?"), time.Now().Add(patience)); err != nil {
		return err
	}
	select {
	case data := <-p.pongs:
		if data != "hello?" {
			return fmt.Errorf("the pong says %q", data)
		}
		return nil
	case <-time.After(patience):
		return errors.New("no pong came")
	}
}

func (p *gorillaPeer) pings() int64 { return p.count.Load() }

func (p *gorillaPeer) close(code int, reason string) error {
	if err := p.write(codec.OpClose, gorilla.FormatCloseMessage(code, reason)); err != nil {
		return err
	}
	_, _, err := p.read()
	if gorilla.IsCloseError(err, code) {
		return nil
	}
	return err
}

func (p *gorillaPeer) closedBy(err error) (int, string) {
	var why *gorilla.CloseError
	if !errors.As(err, &why) {
		return 0, ""
	}
	return why.Code, why.Text
}

type coderPeer struct {
	conn  *coder.Conn
	ctx   context.Context
	count atomic.Int64
}

func dialCoder(mode coder.CompressionMode) func(t *testing.T, url string) (peer, *http.Response) {
	return func(t *testing.T, url string) (peer, *http.Response) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
		t.Cleanup(cancel)
		p := &coderPeer{ctx: ctx}
		conn, resp, err := coder.Dial(ctx, url, &coder.DialOptions{
			CompressionMode: mode,
			OnPingReceived:  func(context.Context, []byte) bool { p.count.Add(1); return true },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
		conn.SetReadLimit(-1)
		p.conn = conn
		return p, resp
	}
}

// The opcodes are also coder's message types.
func (p *coderPeer) write(op codec.Opcode, payload []byte) error {
	return p.conn.Write(p.ctx, coder.MessageType(op), payload)
}

func (p *coderPeer) read() (codec.Opcode, []byte, error) {
	op, payload, err := p.conn.Read(p.ctx)
	return codec.Opcode(op), payload, err
}

func (p *coderPeer) ping() error  { return p.conn.Ping(p.ctx) }
func (p *coderPeer) pings() int64 { return p.count.Load() }

func (p *coderPeer) close(code int, reason string) error {
	return p.conn.Close(coder.StatusCode(code), reason)
}

func (p *coderPeer) closedBy(err error) (int, string) {
	var why coder.CloseError
	if !errors.As(err, &why) {
		return 0, ""
	}
	return int(why.Code), why.Reason
}

// TestNpmWS runs what Node's most used client library has to say about the server: see .ci/npm.
func TestNpmWS(t *testing.T) {
	t.Parallel()
	node, _ := testenv.NodeWS(t)
	script := filepath.Join("..", ".ci", "npm", "check.mjs")
	a, plain := newAuthority(t), Options{Endpoints: compressing()}
	for _, opts := range []Options{plain, a.overTLS(plain)} {
		s := start(t, opts)
		url := strings.TrimSuffix(s.URL("/"), "/")
		ctx, cancel := context.WithTimeout(context.Background(), 6*patience)
		defer cancel()
		cmd := testenv.CommandContext(ctx, node, script, url)
		cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+a.file())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v:\n%s", url, err, out)
		}
		for line := range strings.Lines(string(out)) {
			t.Log(url, strings.TrimSpace(line))
		}
		eventually(t, "all its sockets are closed", func() bool { return s.Stats().Sockets == 0 })
	}
}
