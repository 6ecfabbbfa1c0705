package e2e

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// startTalking runs a client in a process of its own, with one line to send.
func startTalking(t *testing.T, args ...string) *program {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader("hello\n")
	return startCommand(t, nil, cmd)
}

// talkTo is a server that does what a test says with each connection, and then hangs up.
func talkTo(t *testing.T, serve func(*websocket.Conn)) (url string) {
	t.Helper()
	upgrader := websocket.Upgrader{Subprotocols: []string{"carillon.v1.json"}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			t.Errorf("upgrade: %v", err)
			return
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(soon))
		serve(conn)
	}))
	t.Cleanup(s.Close)
	return strings.Replace(s.URL, "http:", "ws:", 1)
}

// closeCode reads to the end of a connection and returns the close code that the client has sent.
func closeCode(conn *websocket.Conn) int {
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			if e, ok := errors.AsType[*websocket.CloseError](err); ok {
				return e.Code
			}
			return 0
		}
	}
}

func TestCtrlCEndsConnectAndTail(t *testing.T) {
	for _, name := range []string{"connect", "tail"} {
		t.Run(name, func(t *testing.T) {
			talking, code := make(chan bool), make(chan int, 1)
			url := talkTo(t, func(c *websocket.Conn) {
				_, _, _ = c.ReadMessage()
				talking <- true
				code <- closeCode(c)
			})
			args := []string{"connect", url, "--wait", "off"}
			if name == "tail" {
				args = []string{"tail", "a", "--url", url}
			}
			p := startTalking(t, args...)
			<-talking
			p.signal(os.Interrupt)
			if status, stdout, stderr := p.end(); status != 0 || stdout != "" || stderr != "" {
				t.Errorf("exit status %d, %q, %q", status, stdout, stderr)
			}
			if got := <-code; got != 1000 {
				t.Errorf("closed with %d", got)
			}
		})
	}
}

func TestASecondCtrlCEndsConnectAtOnce(t *testing.T) {
	talking, closing, done := make(chan bool), make(chan bool), make(chan bool)
	defer close(done)
	url := talkTo(t, func(c *websocket.Conn) {
		_, _, _ = c.ReadMessage()
		c.SetCloseHandler(func(int, string) error { return nil }) // never answers
		talking <- true
		closeCode(c)
		closing <- true
		<-done
	})
	p := startTalking(t, "connect", url, "--wait", "off")
	<-talking
	p.signal(os.Interrupt)
	<-closing
	select {
	case <-p.done:
		t.Fatal("the first one ended it already")
	case <-time.After(300 * time.Millisecond):
	}
	p.signal(os.Interrupt)
	if status, _, _ := p.end(); status != -1 {
		t.Errorf("exit status %d, want death by a signal", status)
	}
}

func TestCtrlCDuringTheHandshakeIsAFailure(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p := startTalking(t, "connect", silent.Addr().String())
	conn, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p.signal(os.Interrupt)
	if status, _, stderr := p.end(); status != 1 || stderr != "carillon: connect to ws://"+silent.Addr().String()+": interrupted\n" {
		t.Errorf("exit status %d, %q", status, stderr)
	}
}

func TestCtrlCEndsLinesCleanly(t *testing.T) {
	s := start(t, nil)
	api := internalURL.FindString(s.until("Internal HTTP interface"))
	s.until("Stop with")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "publish", "a", "--lines", "--api", api)
	w, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := startCommand(t, nil, cmd)
	_, _ = io.WriteString(w, "one\n")
	p.until("offset 1")
	p.signal(os.Interrupt)
	if status, _, stderr := p.end(); status != 0 || stderr != "" {
		t.Errorf("exit status %d, %q", status, stderr)
	}
}
