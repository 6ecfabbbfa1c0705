package e2e

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// manager is what systemd is to the program.
type manager struct {
	t      *testing.T
	socket *net.UnixConn
}

func newManager(t *testing.T) (m *manager, variable string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return &manager{t, socket}, "NOTIFY_SOCKET=" + name
}

// hears fails the test unless the next that it is told is as expected.
func (m *manager) hears(expected string) {
	m.t.Helper()
	_ = m.socket.SetReadDeadline(time.Now().Add(soon))
	b := make([]byte, 1000)
	n, err := m.socket.Read(b)
	if err != nil || !regexp.MustCompile(`^`+expected+`$`).Match(b[:n]) {
		m.t.Fatalf("systemd is told %q, %v; want %s", b[:n], err, expected)
	}
}

// reloads sends SIGHUP and waits until it is done.
func (m *manager) reloads(p *program, status string) {
	m.t.Helper()
	p.signal(syscall.SIGHUP)
	m.hears(`RELOADING=1\nMONOTONIC_USEC=\d{6,}`)
	m.hears(`READY=1\nSTATUS=listening on 127\.0\.0\.1:\d+` + status)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// An operator edits the file of a running program, more than once, and not always well.
func TestSIGHUPReadsTheFileAgain(t *testing.T) {
	const file = "carillon.yaml"
	dir := t.TempDir()
	path := filepath.Join(dir, file)
	write(t, path, minimal)
	m, variable := newManager(t)
	p := start(t, []string{variable, "CARILLON_LIMITS_MAX_FRAGMENTS=5"}, "--config", path)
	alice, bob := dial(t, p.url("/a")), (*websocket.Conn)(nil)
	at := strings.TrimSuffix(wsURL.FindString(p.output()), "/a")
	m.hears(`READY=1\nSTATUS=listening on \S+`)

	write(t, path, minimal+"limits: {max_message: 10, max_fragments: 7}\ninternal: {token: swordfish-is-the-word}\nlog: {level: debug}\n")
	m.reloads(p, "")
	say(t, alice, "short")
	hear(t, alice, "short")

	write(t, path, minimal+"limits: {max_message: 5, max_head: 1B}\nping: {jitter: 2}\n")
	m.reloads(p, "; configuration not reloaded, see the log")
	say(t, alice, "0123456789")
	hear(t, alice, "0123456789")

	write(t, path, minimal+"limits: {max_message: 10}\ninternal: {token: swordfish-is-the-word}\nlisten: ':1'\nloops: 3\ndemo: true\npid_file: /x\nlog: {level: info, format: json}\n")
	m.reloads(p, "") // the environment still wins over what is said about listen
	m.reloads(p, "")
	bob = dial(t, at+"/a")
	say(t, bob, "0123456789a")
	if _, _, err := bob.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseMessageTooBig) {
		t.Errorf("bob got %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	m.reloads(p, "; configuration not reloaded, see the log")
	say(t, alice, "hello")
	hear(t, alice, "hello")
	alice.Close()
	bob.Close()
	p.signal(syscall.SIGTERM)
	status, _, stderr := p.end()
	if status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
	for _, words := range []string{
		`level=INFO msg="configuration reloaded" changed="internal.token limits.max_message log.level"` + "\n",
		`level=ERROR msg="configuration not reloaded" problems="` + path + `:2:`,
		`limits.max_head: 1B is out of range: expected 256B to 1MiB; `,
		`ping.jitter: 2 is out of range`,
		`level=WARN msg="configuration reloaded" changed=log.level needs_restart="loops pid_file demo log.format"` + "\n",
		`level=WARN msg="configuration reloaded" changed=nothing needs_restart="loops pid_file demo log.format"` + "\n",
		`problems="read the configuration: open ` + path + `: no such file or directory"`,
	} {
		if !strings.Contains(stderr, words) {
			t.Errorf("%s is not in the log:\n%s", words, stderr)
		}
	}
	if n := strings.Count(stderr, "configuration not reloaded"); n != 2 || strings.Contains(stderr, "swordfish-is-the-word") {
		t.Errorf("%d failures, or a secret, in the log:\n%s", n, stderr)
	}
}

// The built-in file does not change, and its demonstration goes on.
func TestSIGHUPWithoutAFile(t *testing.T) {
	m, variable := newManager(t)
	p := start(t, []string{variable})
	url := p.url("/echo")
	m.hears(`READY=1\nSTATUS=listening on \S+`)
	m.reloads(p, "")
	alice := dial(t, url)
	say(t, alice, "hello")
	hear(t, alice, "hello")
	alice.Close()
	resp, err := http.Get("http" + strings.TrimSuffix(strings.TrimPrefix(url, "ws"), "echo"))
	if err != nil || resp.StatusCode != 200 {
		t.Error(resp, err)
	} else {
		resp.Body.Close()
	}
	p.signal(syscall.SIGTERM)
	if status, _, stderr := p.end(); status != 0 || !strings.Contains(stderr, `level=INFO msg="configuration reloaded" changed=nothing`) {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}

// A server that ends does so with the configuration that it has.
func TestSIGHUPWhileItDrainsIsIgnored(t *testing.T) {
	m, variable := newManager(t)
	p := start(t, []string{variable, "CARILLON_DRAIN_DELAY=1h", "CARILLON_DRAIN_DEADLINE=2h"})
	p.until("Stop with")
	m.hears(`READY=1\nSTATUS=listening on \S+`)
	p.signal(syscall.SIGTERM)
	m.hears(`STOPPING=1\nSTATUS=draining, 0 connections\nEXTEND_TIMEOUT_USEC=\d+`)
	p.signal(syscall.SIGHUP)
	eventually(t, "SIGHUP is ignored", func() bool {
		return strings.Contains(p.stderr.String(), `level=WARN msg="SIGHUP ignored: the server is draining`)
	})
	select {
	case <-p.done:
		t.Errorf("it has ended: %s", &p.stderr)
	default:
	}
}

// The service manager is told of a drain over HTTP, but not while the drain may still be called off.
func TestTheServiceManagerIsToldOfADrainOverHTTP(t *testing.T) {
	m, variable := newManager(t)
	p := start(t, []string{variable, "CARILLON_DRAIN_DELAY=1h", "CARILLON_DRAIN_DEADLINE=2h"})
	at := internalURL.FindString(p.until("Internal HTTP interface, local only, without a token: http://"))
	p.until("Stop with")
	m.hears(`READY=1\nSTATUS=listening on \S+`)
	do := func(method string) {
		t.Helper()
		r, err := http.NewRequest(method, at+"/v1/drain", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil || resp.StatusCode >= 300 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
	}
	do("POST")
	do("DELETE")
	m.reloads(p, "") // and nothing of the drain before it
	do("POST")
	p.signal(os.Interrupt) // has no patience with the delay
	m.hears(`STOPPING=1\nSTATUS=draining, 0 connections\nEXTEND_TIMEOUT_USEC=7205000000`)
	_ = p.cmd.Process.Kill()

	p = start(t, []string{variable, "CARILLON_DRAIN_DEADLINE=1h", "CARILLON_LIMITS_CLOSE_TIMEOUT=1h"})
	alice := dial(t, wsURL.FindString(p.until("/echo "))) // does not read, and so keeps it from ending
	at = internalURL.FindString(p.until("Internal HTTP interface, local only, without a token: http://"))
	p.until("Stop with")
	m.hears(`READY=1\nSTATUS=listening on \S+`)
	do("POST")
	m.hears(`STOPPING=1\nSTATUS=draining, 1 connections\nEXTEND_TIMEOUT_USEC=3605000000`)
	alice.Close()
	if status, _, stderr := p.end(); status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}

// nohup has SIGHUP ignored, and so it is.
func TestNohup(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	p := startCommand(t, nil, exec.Command("sh", "-c", `trap "" HUP; exec "$0"`, path))
	url := p.url("/echo")
	p.signal(syscall.SIGHUP)
	alice := dial(t, url)
	say(t, alice, "hello")
	hear(t, alice, "hello")
	alice.Close()
	p.signal(syscall.SIGTERM)
	if status, _, stderr := p.end(); status != 0 || strings.Contains(stderr, "reloaded") {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}
