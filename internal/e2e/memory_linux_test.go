package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// confinement is a control group with a memory limit. The kernel ends a process in it that needs more.
type confinement struct {
	enter []string // the command that runs another one in it
	dir   string   // of the group; empty if it is not known
}

// confine makes a control group of any kind that this machine allows, or skips the test.
func confine(t *testing.T, limit int) confinement {
	t.Helper()
	var why []string
	for _, kind := range []struct{ parent, limit, enabled string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", ""},
		{"/sys/fs/cgroup", "memory.max", "cgroup.subtree_control"},
	} {
		dir, err := makeCgroup(t, kind.parent, kind.limit, kind.enabled, limit)
		if err == nil {
			script := `echo $$ > "$0/cgroup.procs" && exec "$@"`
			return confinement{[]string{"/bin/sh", "-c", script, dir}, dir}
		}
		why = append(why, err.Error())
	}
	run := []string{"systemd-run", "--user", "--scope", "--quiet", "-p", fmt.Sprint("MemoryMax=", limit), "-p", "MemorySwapMax=0"}
	out, err := exec.Command(run[0], append(run[1:], "true")...).CombinedOutput()
	if err == nil {
		return confinement{enter: run}
	}
	why = append(why, fmt.Sprintf("systemd-run: %v: %s", err, bytes.TrimSpace(out)))
	t.Skipf("no control group with a memory limit can be made here: %s", strings.Join(why, "; "))
	return confinement{}
}

func makeCgroup(t *testing.T, parent, file, enabled string, limit int) (dir string, err error) {
	if enabled != "" {
		if text, err := os.ReadFile(filepath.Join(parent, enabled)); err != nil || !strings.Contains(string(text), "memory") {
			return "", fmt.Errorf("%s does not have memory in %s", parent, enabled)
		}
	}
	if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
		return "", err
	}
	dir = filepath.Join(parent, fmt.Sprintf("carillon-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		eventually(t, "the control group is empty", func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0); err != nil {
		return "", err
	}
	_ = os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0)
	return dir, nil
}

// figure reads the first of the files that is there.
func (c confinement) figure(names ...string) (n int64) {
	for _, name := range names {
		if text, err := os.ReadFile(filepath.Join(c.dir, name)); err == nil {
			n, _ = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			return n
		}
	}
	return -1
}

func (c confinement) peak() int64 { return c.figure("memory.max_usage_in_bytes", "memory.peak") }

// crowded is a server under attack, and a client that does nothing wrong meanwhile.
type crowded struct {
	t            *testing.T
	p            *program
	address, api string
	stop         chan struct{}
	attackers    sync.WaitGroup
	cut, refused atomic.Int64
}

func (a *crowded) over() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

const cutForMemory = `carillon_connections_cut_total{reason="memory"}`

// hasEnded reports whether the server has, as when the kernel has ended it.
func (a *crowded) hasEnded() bool {
	select {
	case <-a.p.done:
		return true
	default:
		return false
	}
}

// connect opens a WebSocket that reads nothing.
func (a *crowded) connect() net.Conn {
	conn, err := net.Dial("tcp", a.address)
	if err != nil {
		return nil
	}
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	_ = conn.SetDeadline(time.Now().Add(soon))
	_, _ = io.WriteString(conn, "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	answer := make([]byte, 12)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 101" {
		a.refused.Add(1)
		_ = conn.Close()
		return nil
	}
	return conn
}

// attack has n clients do the same again and again, each with a connection of its own.
func (a *crowded) attack(n int, do func(net.Conn)) {
	for range n {
		a.attackers.Go(func() {
			for !a.over() {
				if conn := a.connect(); conn != nil {
					do(conn)
					_ = conn.Close()
					a.cut.Add(1)
				}
				select {
				case <-a.stop:
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
}

// hold keeps a connection until the server or the attack ends.
func (a *crowded) hold(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	select {
	case <-gone:
	case <-a.stop:
		_ = conn.Close()
		<-gone
	}
}

// echoes pours messages of one byte and reads no echo.
func (a *crowded) echoes(conn net.Conn) {
	frames := bytes.Repeat([]byte{0x81, 0x81, 0, 0, 0, 0, 'x'}, 9000)
	for !a.over() {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write(frames); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// incomplete sends a message of 1 MiB but for its last byte.
func (a *crowded) incomplete(conn net.Conn) {
	message := append([]byte{0x82, 0x80 | 127, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0}, make([]byte, 1<<20-1)...)
	if _, err := conn.Write(message); err == nil {
		a.hold(conn)
	}
}

// publish sends messages with keys, to some topics.
func (a *crowded) publish(requests, topics int) {
	for i := 0; i < requests && !a.over(); i++ {
		var body strings.Builder
		for j := range 500 {
			n := i*500 + j
			fmt.Fprintf(&body, `{"topic":"t.%d","text":"x","key":"key-of-some-length-%d"}`+"\n", n%topics, n)
		}
		resp, err := http.Post(a.api+"/v1/messages", "application/x-ndjson", strings.NewReader(body.String()))
		if err != nil { // the server, or the whole machine, has stood still for longer than its time-outs
			a.t.Logf("publish: %v", err)
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != 200 {
			a.t.Errorf("publish: %s", resp.Status)
			return
		}
	}
}

// serves has alice send messages and get the echoes, until the attack is over, and returns the longest time of one.
func (a *crowded) serves(alice *websocket.Conn) (n int, longest time.Duration) {
	for ; !a.over(); n++ {
		sent, want := time.Now(), strconv.Itoa(n)
		_ = alice.SetReadDeadline(sent.Add(soon))
		err := alice.WriteMessage(websocket.TextMessage, []byte(want))
		got := []byte(nil)
		if err == nil {
			_, got, err = alice.ReadMessage()
		}
		if err != nil || string(got) != want {
			a.t.Errorf("echo %d is %q, %v", n, got, err)
			return n, longest
		}
		longest = max(longest, time.Since(sent))
		time.Sleep(5 * time.Millisecond)
	}
	return n, longest
}

// In 512 MiB strangers try to take more than that in every way they have: 60 never read their echoes, 600 do not
// finish their messages, and much is published, with keys, to many topics. The kernel does not have to end the
// server, alice gets her echoes, and afterwards memory is there again.
func TestSurvivesInAControlGroup(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	c := confine(t, 512<<20)
	path, err := binary()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	command := append(c.enter, path)
	p := startCommand(t, []string{"CARILLON_LISTEN=127.0.0.1:0"}, exec.Command(command[0], command[1:]...))
	echo := wsURL.FindString(p.until("/echo "))
	api := internalURL.FindString(p.until("Internal HTTP interface"))
	p.until("Refuses new connections above 409MiB of memory (80% of memory")
	a := &crowded{t: t, p: p, api: api, address: strings.TrimSuffix(strings.TrimPrefix(echo, "ws://"), "/echo"), stop: make(chan struct{})}
	alice := dial(t, echo)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("peak %d MiB; the server says:\n%s", c.peak()>>20, &p.stderr)
		}
	})

	var n int
	var longest time.Duration
	var good sync.WaitGroup
	good.Go(func() { n, longest = a.serves(alice) })
	a.attackers.Go(func() { a.publish(400, 20_000) })
	a.attack(600, a.incomplete)
	eventually(t, "attackers are shed", func() bool { return a.hasEnded() || a.metric(cutForMemory) > 0 })
	a.attack(60, a.echoes)
	select {
	case <-time.After(8 * time.Second):
	case <-p.done:
	}
	close(a.stop)
	a.attackers.Wait()
	good.Wait()
	t.Logf("%d echoes, the slowest in %v; %d attackers' connections ended, %d were refused; peak %d MiB, now %d MiB",
		n, longest, a.cut.Load(), a.refused.Load(), c.peak()>>20, c.figure("memory.usage_in_bytes", "memory.current")>>20)
	if a.hasEnded() {
		t.Fatalf("the server has ended: %v", p.cmd.ProcessState)
	}
	t.Logf("%v were closed for want of memory", a.metric(cutForMemory))
	eventually(t, "memory is there again", func() bool {
		conn, _, err := websocket.DefaultDialer.Dial(echo, nil)
		if err != nil {
			return false
		}
		defer conn.Close()
		return a.metric("carillon_memory_used_bytes") < 300<<20
	})
	t.Logf("afterwards %.0f MiB", a.metric("carillon_memory_used_bytes")/(1<<20))
	say(t, alice, "still here")
	hear(t, alice, "still here")
}

// metric is one of the server's, or NaN if the server does not answer in time, as on a machine that is busy with much
// else.
func (a *crowded) metric(name string) float64 {
	resp, err := http.Get(a.api + "/metrics")
	if err != nil {
		a.t.Logf("metrics: %v", err)
		return math.NaN()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Logf("metrics: %v", err)
		return math.NaN()
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				a.t.Fatal(err)
			}
			return n
		}
	}
	return 0
}
