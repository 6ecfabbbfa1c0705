package e2e

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"carillon/internal/testenv"

	"github.com/gorilla/websocket"
)

func TestASignalDrainsAndEndsCleanly(t *testing.T) {
	for _, s := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(s.String(), func(t *testing.T) {
			p := start(t, nil)
			alice := dial(t, p.url("/echo"))
			say(t, alice, "hello")
			hear(t, alice, "hello")
			p.signal(s)
			if _, _, err := alice.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
				t.Errorf("alice got %v, want close code 1001", err)
			}
			alice.Close()
			p.until("draining 1 connections")
			if status, stdout, stderr := p.end(); status != 0 || stdout != "" || strings.Contains(stderr, "carillon:") {
				t.Errorf("exit status %d, printed %q and %q", status, stdout, stderr)
			}
		})
	}
}

func TestASignalEndsAnIdleServer(t *testing.T) {
	p := start(t, nil)
	p.until("Stop with")
	p.signal(syscall.SIGTERM)
	if status, _, stderr := p.end(); status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}

func TestDrainsAlthoughNobodyReadsItsOutput(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := testenv.Command(path)
	cmd.Env, cmd.Stdout, cmd.Stderr = []string{"CARILLON_LISTEN=127.0.0.1:0", "CARILLON_INTERNAL_LISTEN=off"}, w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	late := time.AfterFunc(soon, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	for lines := bufio.NewScanner(r); lines.Scan() && !strings.Contains(lines.Text(), "Stop with"); {
	}
	r.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	p := start(t, []string{"CARILLON_DRAIN_DEADLINE=1m", "CARILLON_LIMITS_CLOSE_TIMEOUT=1m"})
	dial(t, p.url("/echo")) // reads nothing, so it never answers the closing handshake
	p.signal(syscall.SIGTERM)
	p.until("draining")
	select {
	case <-p.done:
		t.Fatalf("the first signal ended it already: %s", &p.stderr)
	case <-time.After(200 * time.Millisecond):
	}
	p.signal(syscall.SIGTERM)
	status, _, stderr := p.end()
	if status != 1 || !strings.Contains(stderr, "carillon: terminated again: exiting without draining\n") {
		t.Errorf("exit status %d, %q", status, stderr)
	}
}

// A balancer needs time to notice that the server drains. A person who has pressed Ctrl-C does not.
func TestTheDelayIsForSIGTERM(t *testing.T) {
	signaled := func(t *testing.T, delay string, s os.Signal) (p *program, url string, began time.Time) {
		p = start(t, []string{"CARILLON_DRAIN_DELAY=" + delay, "CARILLON_DRAIN_DEADLINE=2h"})
		url = p.url("/echo")
		began = time.Now()
		p.signal(s)
		p.until("draining 0 connections")
		return p, url, began
	}
	ends := func(t *testing.T, p *program, s os.Signal) {
		if status, _, stderr := p.end(); status != 0 || !strings.Contains(stderr, "reason="+s.String()) {
			t.Errorf("exit status %d: %s", status, stderr)
		}
	}
	t.Run("a balancer still sends clients", func(t *testing.T) {
		p, url, _ := signaled(t, "1h", syscall.SIGTERM)
		alice := dial(t, url)
		say(t, alice, "hello")
		hear(t, alice, "hello")
		alice.Close()
		select {
		case <-p.done:
			t.Errorf("it has ended: %s", &p.stderr)
		default:
		}
	})
	t.Run("then it ends", func(t *testing.T) {
		p, _, began := signaled(t, "700ms", syscall.SIGTERM)
		ends(t, p, syscall.SIGTERM)
		if took := time.Since(began); took < 700*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
	t.Run("a person does not wait", func(t *testing.T) {
		p, _, _ := signaled(t, "1h", os.Interrupt)
		ends(t, p, os.Interrupt)
	})
}

// An operator drains the server over HTTP. Its clients are told when to come back, and the program ends as
// it does after a signal.
func TestADrainOverHTTPEndsTheProgram(t *testing.T) {
	p := start(t, nil)
	echo := wsURL.FindString(p.until("/echo "))
	at := internalURL.FindString(p.until("Internal HTTP interface, local only, without a token: http://"))
	p.until("Stop with")
	alice := dial(t, echo)
	say(t, alice, "hello")
	hear(t, alice, "hello")
	resp, err := http.Post(at+"/v1/drain", "", nil)
	if err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	closed := new(websocket.CloseError)
	if _, _, err := alice.ReadMessage(); !errors.As(err, &closed) || closed.Code != 1001 ||
		!regexp.MustCompile(`^server is shutting down; retry=\d+$`).MatchString(closed.Text) {
		t.Errorf("alice got %v", err)
	}
	alice.Close()
	if status, _, stderr := p.end(); status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}

// The program tells systemd when it serves and when it ends, and leaves its process id where it was told.
func TestTheServiceManagerIsTold(t *testing.T) {
	dir := t.TempDir()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	heard := func() string {
		t.Helper()
		_ = socket.SetReadDeadline(time.Now().Add(soon))
		b := make([]byte, 1000)
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	pid := filepath.Join(dir, "carillon.pid")
	if err := os.WriteFile(pid, []byte("17\n"), 0o600); err != nil { // what one that was killed has left
		t.Fatal(err)
	}
	p := start(t, []string{"NOTIFY_SOCKET=" + filepath.Join(dir, "notify"), "CARILLON_PID_FILE=" + pid})
	p.until("Stop with")
	if got := heard(); !strings.HasPrefix(got, "READY=1\nSTATUS=listening on 127.0.0.1:") {
		t.Errorf("systemd got %q", got)
	}
	if text, err := os.ReadFile(pid); err != nil || string(text) != strconv.Itoa(p.cmd.Process.Pid)+"\n" {
		t.Errorf("the file has %q, %v", text, err)
	}
	p.signal(syscall.SIGTERM)
	if got := heard(); got != "STOPPING=1\nSTATUS=draining, 0 connections\nEXTEND_TIMEOUT_USEC=30000000" {
		t.Errorf("systemd got %q", got)
	}
	if status, _, stderr := p.end(); status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
	if _, err := os.Stat(pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".carillon*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A successor has taken the file over: the one that ends leaves it.
func TestThePIDFileOfASuccessorStays(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "carillon.pid")
	p := start(t, []string{"CARILLON_PID_FILE=" + pid})
	p.until("Stop with")
	if err := os.WriteFile(pid, []byte("17\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGTERM)
	if status, _, stderr := p.end(); status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
	if text, err := os.ReadFile(pid); err != nil || string(text) != "17\n" {
		t.Errorf("the file has %q, %v", text, err)
	}
}

func TestAPIDFileThatCannotBeWrittenIsOneLine(t *testing.T) {
	status, stdout, stderr := start(t, []string{"CARILLON_PID_FILE=/nowhere/carillon.pid", "CARILLON_LOG_LEVEL=error"}).end()
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "carillon: pid_file: open /nowhere/") {
		t.Errorf("exit status %d, printed %q and %q", status, stdout, stderr)
	}
}
