package cli

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/internal/testenv"

	"github.com/gorilla/websocket"
)

// soon bounds everything that must happen without waiting for a time-out. It is for a machine that is busy with other
// tests: no test that passes waits for it.
const soon = 30 * time.Second

// seat is a user who runs a command: with a keyboard and a screen, or in a pipe.
type seat struct {
	in       io.Reader
	terminal bool
	typed    bool
}

// job is a command that runs in this process.
type job struct {
	t        *testing.T
	out, err *testenv.Recording
	status   chan int
}

func (s seat) begin(t *testing.T, args ...string) *job {
	j := &job{t: t, out: &testenv.Recording{}, err: &testenv.Recording{}, status: make(chan int, 1)}
	if s.in == nil {
		s.in = strings.NewReader("")
	}
	std := streams{in: s.in, out: j.out, err: j.err, inTerminal: s.typed, outTerminal: s.terminal}
	go func() { j.status <- run(args, std) }()
	return j
}

// end waits for the command and compares everything that it left behind. A wanted text that ends in "..."
// is a beginning.
func (j *job) end(status int, out, err string) {
	j.t.Helper()
	select {
	case got := <-j.status:
		if got != status || !agrees(j.out.String(), out) || !agrees(j.err.String(), err) {
			j.t.Errorf("exit status %d, printed\n%s\nand\n%s\nwant %d,\n%s\nand\n%s", got, j.out, j.err, status, out, err)
		}
	case <-time.After(soon):
		j.t.Fatalf("still runs after %v; it printed\n%s\nand\n%s", soon, j.out, j.err)
	}
}

func agrees(got, want string) bool {
	begin, open := strings.CutSuffix(want, "...")
	return got == want || open && strings.HasPrefix(got, begin)
}

// until waits for words on one of the outputs.
func (j *job) until(r *testenv.Recording, words string) {
	j.t.Helper()
	for late := time.Now().Add(soon); !strings.Contains(r.String(), words); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			j.t.Fatalf("did not print %q in time, but\n%s\nand\n%s", words, j.out, j.err)
		}
	}
}

// fake is a WebSocket server that does what a test says with each connection, and then hangs up.
func fake(t *testing.T, subprotocol string, serve func(conn *websocket.Conn, r *http.Request)) (url string) {
	t.Helper()
	var handlers sync.WaitGroup
	upgrader := websocket.Upgrader{EnableCompression: true, CheckOrigin: func(*http.Request) bool { return true }}
	if subprotocol != "" {
		upgrader.Subprotocols = []string{subprotocol}
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			t.Errorf("upgrade: %v", err)
			return
		}
		defer hangUp(conn)
		_ = conn.SetReadDeadline(time.Now().Add(soon))
		serve(conn, r)
	}))
	t.Cleanup(func() { handlers.Wait(); s.Close() })
	return strings.Replace(s.URL, "http:", "ws:", 1)
}

// hangUp ends a connection without a close frame. A client that has sent unread data would see a reset, and might lose
// what it was sent: so all of it is read.
func hangUp(conn *websocket.Conn) {
	defer conn.Close()
	tcp := conn.NetConn().(*net.TCPConn)
	_ = tcp.CloseWrite()
	_ = tcp.SetReadDeadline(time.Now().Add(soon))
	_, _ = io.Copy(io.Discard, tcp)
}

// goodbye sends a close frame and waits for the client's.
func goodbye(conn *websocket.Conn, code int, reason string) {
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(soon))
	drain(conn)
}

// drain reads to the end of the connection and returns the close code that the client sent.
func drain(conn *websocket.Conn) (code int) {
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			if e, ok := err.(*websocket.CloseError); ok {
				return e.Code
			}
			return 0
		}
	}
}

// closedPort is an address where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	return testenv.Address(t)
}

func TestWebSocketURL(t *testing.T) {
	for _, test := range []struct{ sentence, text, topics, url, problem string }{
		{"a URL stays as it is", "ws://a.example/x?y=%2F", "", "ws://a.example/x?y=%2F", ""},
		{"without a scheme it is ws", "localhost:8080/echo", "", "ws://localhost:8080/echo", ""},
		{"a name alone is a host", "a.example", "", "ws://a.example", ""},
		{"a port alone is one of this machine", ":8080/echo", "", "ws://localhost:8080/echo", ""},
		{"http is ws", "http://a.example/x", "", "ws://a.example/x", ""},
		{"https is wss", "https://a.example/x", "", "wss://a.example/x", ""},
		{"topics go into the query", "a.example/ws", "a.> b&c", "ws://a.example/ws?topic=a.%3E&topic=b%26c", ""},
		{"a query is kept", "a.example/ws?last=5", "a", "ws://a.example/ws?last=5&topic=a", ""},
		{"other schemes are refused", "ftp://a.example", "", "", `URL "ftp://a.example": unknown scheme "ftp": expected ws or wss`},
		{"a path has no host", "/echo", "", "", `URL "ws:///echo": no host: expected one such as localhost:8080`},
		{"nothing is no URL", "", "", "", `URL "ws://": no host: expected one such as localhost:8080`},
		{"a port is a number", "localhost:http/x", "", "", `URL "ws://localhost:http/x": invalid port ":http" after host`},
		{"there is no fragment", "a.example/x#y", "", "", `URL "a.example/x#y": a WebSocket URL has no #fragment: write %23 for a # in a name`},
		{"a fragment is shown with the topic that it cuts off", "a.example/x?topic=a#b", "", "", `URL "a.example/x?topic=a#b": a WebSocket URL has no #fragment: write %23 for a # in a name`},
		{"what may be the rest of a secret is not", "a.example/x?token=y#z", "", "", `URL "a.example/x?(set)": a WebSocket URL has no #fragment: write %23 for a # in a name`},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			u, err := webSocketURL(test.text, strings.Fields(test.topics))
			if test.problem != "" {
				if err == nil || err.Error() != test.problem {
					t.Errorf("got %v, want %s", err, test.problem)
				}
			} else if err != nil || u.String() != test.url {
				t.Errorf("got %v, %v, want %s", u, err, test.url)
			}
		})
	}
}

func TestWhatATerminalWouldObeyIsShown(t *testing.T) {
	for text, want := range map[string]string{
		"plain, é, 鐘\tand\nmore": "plain, é, 鐘\tand\nmore",
		"\x1b]0;gotcha\a":        `\u001b]0;gotcha\u0007`,
		"a\rb\u009bc\u202ed":     `a\u000db\u009bc\u202ed`,
		"bad \xff \uFFFD":        "bad \\xff \uFFFD",
	} {
		if got := harmless(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
	if got := harmlessLine("a\nb"); got != `a\nb` {
		t.Errorf("one line is %q", got)
	}
}
