package cli

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"carillon/server"

	"github.com/gorilla/websocket"
)

// echoServer is carillon's own, in this process.
func echoServer(t *testing.T) (url string) {
	t.Helper()
	s, err := server.New(server.Options{
		Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler),
		Endpoints: []server.Endpoint{{
			Path: "/echo", Mode: server.ModeEcho,
			Subprotocols: []string{"b", jsonSubprotocol}, Compression: server.Compression{Enabled: true},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Started()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s.Addr().String() + "/echo"
}

func TestConnectInAPipe(t *testing.T) {
	url := echoServer(t)
	long := strings.Repeat("long ", 100_000)
	for _, test := range []struct{ sentence, flags, in, out string }{
		{"each line comes back", "", "hello\nworld\n", "hello\nworld\n"},
		{"an empty line is a message", "", "\n\n", "\n\n"},
		{"no input is no message", "", "", ""},
		{"lines have no limit", "", long + "\n", long + "\n"},
		{"binary messages come as they are", "--binary", "a\xff\x00b\n", "a\xff\x00b\n"},
		{"compressed or not", "--compression", long + "\n", long + "\n"},
		{"JSON is made compact", "--json", "{ \"a\" : [ 1 ] }\nno JSON\n", "{\"a\":[1]}\nno JSON\n"},
		{"a text file may be of Windows", "", "\ufeffone\r\n\r\ntwo\r\n", "one\n\ntwo\n"},
		{"nothing is taken from bytes", "--binary", "\ufeffone\r\n", "\ufeffone\r\n"},
		{"terminal commands are only for terminals", "", "\x1b[2J\n", "\x1b[2J\n"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			t.Parallel()
			in, end := stillOpen(test.in)
			args := append([]string{"connect", url, "--wait", "100ms"}, strings.Fields(test.flags)...)
			j := seat{in: in}.begin(t, args...)
			j.until(j.out, test.out)
			end()
			j.end(0, test.out, "")
		})
	}
	t.Run("the last line needs no end", func(t *testing.T) {
		t.Parallel()
		url := fake(t, "", func(c *websocket.Conn, _ *http.Request) {
			kind, message, _ := c.ReadMessage()
			_ = c.WriteMessage(kind, message)
			goodbye(c, 1000, "")
		})
		seat{in: strings.NewReader("hello")}.begin(t, "connect", url, "--wait", "off").end(0, "hello\n", "...")
	})
}

// stillOpen is an input that has a text, and ends when the test says so.
func stillOpen(text string) (in io.Reader, end func()) {
	r, w := io.Pipe()
	return io.MultiReader(strings.NewReader(text), r), func() { w.Close() }
}

func TestAMessageIsInThePipeAtOnce(t *testing.T) {
	in, keyboard := io.Pipe()
	j := seat{in: in}.begin(t, "connect", echoServer(t), "--wait", "100ms")
	_, _ = io.WriteString(keyboard, "one\n")
	j.until(j.out, "one\n")
	_, _ = io.WriteString(keyboard, "two\n")
	j.until(j.out, "two\n")
	keyboard.Close()
	j.end(0, "one\ntwo\n", "")
}

func TestConnectOnATerminal(t *testing.T) {
	in, keyboard := io.Pipe()
	url := echoServer(t)
	j := seat{in: in, terminal: true, typed: true}.begin(t, "connect", url, "--subprotocol", "a", "--subprotocol", "b")
	j.until(j.err, "connected")
	_, _ = io.WriteString(keyboard, "hello\x1b[2J\n")
	j.until(j.out, "hello")
	keyboard.Close()
	j.end(0, "...", "carillon: connected to ws://"+url+", subprotocol b; each line is a message, Ctrl-D to end\n")
	if want := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3} < hello\\u001b\[2J\n$`); !want.MatchString(j.out.String()) {
		t.Errorf("printed %q", j.out)
	}
}

func TestWhatATerminalShows(t *testing.T) {
	url := echoServer(t)
	for _, test := range []struct{ sentence, flags, in, out string }{
		{"a file is shown as it is sent", "", "hello\n", "> hello\n< hello\n"},
		{"binary messages are described", "--binary", "\x00\xffa\n", "> \\u0000\\xffa\n< binary, 3 bytes: 00 ff 61\n"},
		{"JSON is indented", "--json", `{"a":1}` + "\n", "> {\"a\":1}\n< {\n    \"a\": 1\n  }\n"},
		{"what is no JSON stays", "--json", "{\n", "> {\n< {\n"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			t.Parallel()
			in, end := stillOpen(test.in)
			args := append([]string{"connect", url, "--no-time", "--wait", "100ms"}, strings.Fields(test.flags)...)
			j := seat{in: in, terminal: true}.begin(t, args...)
			j.until(j.out, test.out)
			end()
			j.end(0, test.out, "carillon: connected to ws://"+url+"...")
		})
	}
}

func TestPreview(t *testing.T) {
	for payload, want := range map[string]string{
		"":                      "binary, 0 bytes",
		"a":                     "binary, 1 byte: 61",
		strings.Repeat("a", 32): "binary, 32 bytes:" + strings.Repeat(" 61", 32),
		strings.Repeat("a", 33): "binary, 33 bytes:" + strings.Repeat(" 61", 32) + " ...",
	} {
		if got := preview([]byte(payload)); got != want {
			t.Errorf("%q is shown as %q, want %q", payload, got, want)
		}
	}
}

func TestTheEndOfAConversation(t *testing.T) {
	for _, test := range []struct {
		sentence string
		serve    func(*websocket.Conn, *http.Request)
		status   int
		err      string
	}{
		{"the server is done", func(c *websocket.Conn, _ *http.Request) { goodbye(c, 1000, "") }, 0,
			"carillon: closed by the server: 1000 (normal closure)\n"},
		{"the server shuts down", func(c *websocket.Conn, _ *http.Request) { goodbye(c, 1001, "back soon") }, 0,
			"carillon: closed by the server: 1001 (going away): back soon\n"},
		{"the server objects", func(c *websocket.Conn, _ *http.Request) { goodbye(c, 1008, "nothing may be\npublished") }, 3,
			`carillon: closed by the server: 1008 (policy violation): nothing may be\npublished` + "\n"},
		{"there is a gap", func(c *websocket.Conn, _ *http.Request) { goodbye(c, 4010, "gap") }, 3,
			"carillon: closed by the server: 4010: gap\n"},
		{"the server gives no code", func(c *websocket.Conn, _ *http.Request) { goodbye(c, 1005, "") }, 3,
			"carillon: closed by the server: 1005 (no status received)\n"},
		{"the connection is cut", func(*websocket.Conn, *http.Request) {}, 3,
			"carillon: connection lost: no close frame\n"},
		{"the server breaks the protocol", func(c *websocket.Conn, _ *http.Request) {
			_, _ = c.UnderlyingConn().Write([]byte{0x83, 0})
			drain(c)
		}, 3, "carillon: connection lost: received unknown opcode..."},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			in, keyboard := io.Pipe()
			defer keyboard.Close()
			seat{in: in}.begin(t, "connect", fake(t, "", test.serve)).end(test.status, "", test.err)
		})
	}
}

func TestTheHandshakeSaysWhatTheFlagsSay(t *testing.T) {
	seen := make(chan *http.Request, 1)
	url := fake(t, "b", func(c *websocket.Conn, r *http.Request) { seen <- r; goodbye(c, 1000, "") })
	seat{}.begin(t, "connect", url+"/ws?last=3", "--topic", "prices.>", "-t", "a&b", "-H", "X-One: 1", "--header", "X-One: 2",
		"-H", "Host: a.example", "--subprotocol", "a", "--subprotocol", "b", "--compression").end(0, "", "...")
	r := <-seen
	if got := r.URL.RequestURI(); got != "/ws?last=3&topic=prices.%3E&topic=a%26b" {
		t.Errorf("asked for %s", got)
	}
	if got := strings.Join(r.Header["X-One"], "|"); got != "1|2" {
		t.Errorf("sent X-One: %s", got)
	}
	if r.Host != "a.example" || r.UserAgent() != "carillon-cli" {
		t.Errorf("sent Host %s, User-Agent %s", r.Host, r.UserAgent())
	}
	if got := strings.ReplaceAll(r.Header.Get("Sec-WebSocket-Protocol"), " ", ""); got != "a,b" {
		t.Errorf("offered subprotocols %s", got)
	}
	if got := r.Header.Get("Sec-WebSocket-Extensions"); !strings.Contains(got, "permessage-deflate") {
		t.Errorf("offered extensions %q", got)
	}
}

func TestJSONNeedsAServerThatSpeaksIt(t *testing.T) {
	code := make(chan int, 1)
	url := fake(t, "", func(c *websocket.Conn, _ *http.Request) { code <- drain(c) })
	seat{}.begin(t, "connect", url, "--json").end(1, "", "carillon: connect to "+url+": the server does not speak carillon.v1.json\n")
	if got := <-code; got != 1000 {
		t.Errorf("closed with %d", got)
	}
}

func TestPingsAreShownAndAnswered(t *testing.T) {
	ponged := make(chan string, 1)
	serve := func(c *websocket.Conn, _ *http.Request) {
		c.SetPongHandler(func(payload string) error { ponged <- payload; return nil })
		_ = c.WriteControl(websocket.PongMessage, nil, time.Now().Add(soon))
		_ = c.WriteControl(websocket.PingMessage, []byte("are you there?"), time.Now().Add(soon))
		drain(c)
	}
	in, end := stillOpen("")
	j := seat{in: in}.begin(t, "connect", fake(t, "", serve), "--pings", "--no-time", "--wait", "100ms")
	j.until(j.err, "ping ")
	if got := <-ponged; got != "are you there?" {
		t.Errorf("answered %q", got)
	}
	end()
	j.end(0, "", "pong\nping \"are you there?\"\n")
	seat{}.begin(t, "connect", fake(t, "", serve), "--wait", "100ms").end(0, "", "")
}

func TestTheEndOfTheInput(t *testing.T) {
	t.Run("each message makes the wait begin again", func(t *testing.T) {
		t.Parallel()
		codes := make(chan int, 1)
		url := fake(t, "", func(c *websocket.Conn, _ *http.Request) { // it talks on for a while, and never closes by itself
			for range 5 {
				_ = c.WriteMessage(websocket.TextMessage, []byte("tick"))
				time.Sleep(1200 * time.Millisecond)
			}
			codes <- drain(c)
		})
		seat{}.begin(t, "connect", url, "--wait", "4s").end(0, strings.Repeat("tick\n", 5), "")
		if got := <-codes; got != 1000 {
			t.Errorf("closed with %d", got)
		}
	})
	t.Run("off waits for the server", func(t *testing.T) {
		t.Parallel()
		url := fake(t, "", func(c *websocket.Conn, _ *http.Request) {
			time.Sleep(1200 * time.Millisecond) // longer than the default
			_ = c.WriteMessage(websocket.TextMessage, []byte("late"))
			goodbye(c, 1000, "")
		})
		seat{}.begin(t, "connect", url, "--wait", "off").end(0, "late\n", "...")
	})
	t.Run("Ctrl-D on a terminal ends at once", func(t *testing.T) {
		t.Parallel()
		codes := make(chan int, 1)
		url := fake(t, "", func(c *websocket.Conn, _ *http.Request) { codes <- drain(c) }) // it waits for ever
		seat{typed: true}.begin(t, "connect", url, "--wait", "off").end(0, "", "")
		if got := <-codes; got != 1000 {
			t.Errorf("closed with %d", got)
		}
	})
}

func TestALineThatIsNotUTF8DoesNotStopTheOthers(t *testing.T) {
	seat{in: strings.NewReader("good\n\xff\nbetter\n")}.begin(t, "connect", echoServer(t)).end(1, "good\nbetter\n",
		"carillon: line 2: not sent: not valid UTF-8; use --binary to send any bytes\n")
	seat{in: strings.NewReader("\xff\n")}.begin(t, "connect", echoServer(t), "--wait", "0s").end(1, "", "carillon: line 1: not sent: ...")
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestAnOutputThatFailsEndsTheConversation(t *testing.T) {
	var stderr bytes.Buffer
	std := streams{in: strings.NewReader("hello\n"), out: fullDisk{}, err: &stderr}
	if status := run([]string{"connect", echoServer(t), "--wait", "off"}, std); status != 1 || stderr.String() != "carillon: print a message: file already closed\n" {
		t.Errorf("exit status %d, %q", status, &stderr)
	}
}
