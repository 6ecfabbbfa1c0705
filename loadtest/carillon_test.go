package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"carillon/internal/testenv"

	"golang.org/x/sys/unix"
)

var buildDir string // removed after the last test

var buildOnce = sync.OnceValues(func() (program string, err error) {
	if buildDir, err = os.MkdirTemp("", "loadtest-"); err == nil {
		program = filepath.Join(buildDir, "carillon")
		err = build(context.Background(), "..", program, ".")
	}
	return program, err
})

// carillon is this repository's server, built by the first test that needs it.
func carillon(t *testing.T) (program string) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a server")
	}
	program, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// startCarillon runs this repository's server on a free port. It returns the beginning of
// its URLs and its process.
func startCarillon(t *testing.T) (url string, pid int) {
	t.Helper()
	program, config := carillon(t), filepath.Join(t.TempDir(), "config.yaml")
	err := os.WriteFile(config, []byte(`
listen: 127.0.0.1:0
internal: {listen: off}
endpoints:
  - {path: /echo, mode: echo}
  - {path: /broadcast, mode: broadcast}
  - {path: /small, mode: echo, subprotocols: [chat], compression: {enabled: true, threshold: off}}
  - {path: /smallcast, mode: broadcast, compression: {enabled: true, threshold: off}}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := testenv.CommandContext(ctx, program, "--config", config)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the server does not start: %v", err)
		}
		if m := regexp.MustCompile(`ws://\S+:\d+`).FindString(line); m != "" {
			go io.Copy(io.Discard, lines)
			return m, cmd.Process.Pid
		}
	}
}

func TestCarillon(t *testing.T) {
	t.Parallel()
	url, pid := startCarillon(t)
	for _, tt := range []struct {
		name, command, path string
		change              func(o *options)
	}{
		{"echo on schedule", "echo", "/echo", nil},
		{"echo as fast as possible", "echo", "/echo", func(o *options) { o.Rate, o.Depth = 0, 1 }},
		{"echo as fast as possible, 32 deep, two processes", "echo", "/echo", func(o *options) { o.Rate, o.Depth, o.Processes = 0, 32, 2 }},
		{"echo, compressed, with a subprotocol", "echo", "/small", func(o *options) {
			o.Compression, o.Text, o.Size, o.Subprotocols = true, true, 1000, []string{"chat"}
		}},
		{"fanout on schedule", "fanout", "/broadcast", func(o *options) { o.Connections, o.Rate, o.Publishers = 500, 100, 3 }},
		{"fanout as fast as possible", "fanout", "/broadcast", func(o *options) { o.Connections, o.Rate, o.Processes = 200, 0, 2 }},
		{"fanout, compressed", "fanout", "/smallcast", func(o *options) { o.Connections, o.Rate, o.Compression = 100, 200, true }},
		{"fanout of large messages", "fanout", "/broadcast", func(o *options) { o.Connections, o.Rate, o.Size = 10, 20, 500_000 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := measure(t.Context(), small(tt.command, url+tt.path, tt.change), nil)
			m := whole(t, r)
			if m.Missing+m.Duplicated+m.Reordered+m.Foreign != 0 || m.Received == 0 || m.Received != m.Expected || r.Latency.Count != m.Received {
				t.Errorf("%+v\n%q", m, r.Warnings)
			}
			if runtime.GOOS == "linux" && (r.Server == nil || r.Server.PID != pid || r.Server.RSS == 0) {
				t.Errorf("the server's process is %d, and this was measured: %+v", pid, r.Server)
			}
		})
	}
	t.Run("idle", func(t *testing.T) {
		r := measure(t.Context(), small("idle", url+"/echo", func(o *options) { o.Connections, o.Processes = 1000, 2 }), nil)
		if r.Error != "" || r.Connections.Opened != 1000 || r.Connections.Lost != 0 {
			t.Errorf("%q, %+v", r.Error, r.Connections)
		}
	})
	t.Run("storm", func(t *testing.T) {
		r := measure(t.Context(), small("storm", url+"/echo", func(o *options) { o.Connections, o.Processes = 500, 2 }), nil)
		if r.Error != "" || r.Storm == nil || r.Storm.Back100 == 0 || r.Connections.Lost != 0 {
			t.Errorf("%q, %+v", r.Error, r.Storm)
		}
	})
	t.Run("no such path", func(t *testing.T) {
		r := measure(t.Context(), small("echo", url+"/nowhere", nil), nil)
		if !strings.HasPrefix(r.Error, "HTTP 404 Not Found") {
			t.Errorf("error %q", r.Error)
		}
	})
}

// Servers that the run starts itself are all measured, named when they die, and gone afterwards.
func TestStartedServers(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a server")
	}
	o := small("echo", "", func(o *options) { o.URLs, o.Start, o.Connections, o.Processes = nil, 2, 30, 2 })
	r := measureStarted(t.Context(), *o, io.Discard, nil)
	if m := whole(t, r); m.Received == 0 || m.Missing != 0 || len(undue(r)) != 0 || r.Connections.Opened != 30 {
		t.Errorf("%+v, %+v\n%q", m, r.Connections, r.Warnings)
	}
	if r.Name != "carillon" || r.URL != "/echo of 2 servers that were started for the run" {
		t.Errorf("%s, %s", r.Name, r.URL)
	}
	if runtime.GOOS != "linux" {
		return
	}
	if r.Server == nil || r.Server.Processes != 2 || r.Server.RSS < 2<<20 {
		t.Fatalf("%+v", r.Server)
	}
	if _, err := costOf(r.Server.PID); err == nil {
		t.Errorf("the server, process %d, goes on after the run", r.Server.PID)
	}

	o.Duration = 2 * time.Second
	list, err := startServers(t.Context(), o, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer stopServers(list)
	for _, s := range list {
		o.URLs = append(o.URLs, s.base+"/echo")
	}
	o.Start = 0
	r = measure(t.Context(), o, func(l live) {
		if l.doing == "sending" {
			list[1].cmd.Process.Kill()
		}
	})
	said := strings.Join(r.Warnings, "\n")
	for _, want := range []string{
		fmt.Sprintf("process %d at %s has ended, ", list[1].pid, o.URLs[1]), "all 15 connections to " + o.URLs[1] + " were lost",
	} {
		if r.Error != "" || !strings.Contains(said, want) || strings.Contains(said, o.URLs[0]) {
			t.Errorf("error %q, and the warnings do not say %q, or speak of the other server: %q", r.Error, want, r.Warnings)
		}
	}
	if s := r.Server; s.Processes != 2 || s.RSS < s.RSSBefore/2 || s.CPUSeconds < 0 || s.Cores < 0 {
		t.Errorf("%+v", s)
	}
}

// Servers that fanout starts are a cluster: what is published at one reaches the connections of all, once.
func TestStartedCluster(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a server")
	}
	o := small("fanout", "", func(o *options) { o.URLs, o.Start, o.Connections, o.Processes = nil, 3, 30, 2 })
	r := measureStarted(t.Context(), *o, io.Discard, nil)
	if m := whole(t, r); m.Received == 0 || m.Missing != 0 || m.Duplicated != 0 || len(undue(r)) != 0 || r.Connections.Opened != 30 {
		t.Errorf("%+v, %+v\n%q", m, r.Connections, r.Warnings)
	}
	if r.URL != "/broadcast of a cluster of 3 servers that was started for the run" {
		t.Error(r.URL)
	}
}

// An application's own HTTP endpoint publishes, and the server fans out.
func TestPublishOverHTTP(t *testing.T) {
	t.Parallel()
	server := (&faulty{broadcast: true}).serve(t)
	refuse := false
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if refuse || r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer x" {
			http.Error(w, "not you", http.StatusForbidden)
			return
		}
		server.message(nil, opBinary, body)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer app.Close()
	change := func(o *options) {
		o.PublishURL, o.PublishHeader, o.Rate, o.Publishers, o.Processes = app.URL, []string{"Authorization: Bearer x"}, 100, 3, 2
	}
	r := measure(t.Context(), small("fanout", server.url, change), nil)
	m := whole(t, r)
	if m.Sent == 0 || m.Sent+m.Unsent != 40 || m.Received != 6*m.Sent || m.Missing+m.Foreign+m.Duplicated != 0 ||
		r.Completion == nil || r.Completion.Count != m.Sent {
		t.Errorf("%+v, completion %+v", m, r.Completion)
	}
	refuse = true
	r = measure(t.Context(), small("fanout", server.url, change), nil)
	if !strings.Contains(r.Error, "nothing could be published: HTTP 403 Forbidden: not you") {
		t.Errorf("error %q", r.Error)
	}
}

// What the generator does for each message costs no memory.
func TestReceivingDoesNotAllocate(t *testing.T) {
	w := &worker{handshakes: newHistogram(), latency: newHistogram(), lostBy: map[string]int{}, failedBy: map[string]int{}}
	w.prepare(&spec{Command: "fanout", Count: 1, Run: 1, Connections: 4, Senders: 2, Size: 128, Depth: 1})
	c := &w.conns[3]
	c.state = stateOpen
	const batch = 16
	sequence := uint32(0)
	frames := make([]byte, 0, batch*130)
	body := w.payloads.blank()
	if n := testing.AllocsPerRun(100, func() {
		frames = frames[:0]
		for range batch {
			w.payloads.put(body, stamp{1, sequence, 0})
			sequence++
			frames = append(binary.BigEndian.AppendUint16(append(frames, 0x82, 126), 128), body...)
		}
		if rest, _, ok := w.consume(3, c, frames, 1000); len(rest) != 0 || !ok {
			t.Fatal("the frames were not taken")
		}
	}); n > 1 { // the rows of arrivals grow now and then
		t.Errorf("%g allocations for %d messages", n, batch)
	}
	if w.ledger.received != 101*batch || w.Foreign != 0 {
		t.Errorf("%d received, %d foreign", w.ledger.received, w.Foreign)
	}
}

func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{128, 4096} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			w := &worker{handshakes: newHistogram(), latency: newHistogram()}
			w.prepare(&spec{Command: "fanout", Count: 1, Run: 1, Connections: 4, Senders: 2, Size: size, Depth: 1})
			body := w.payloads.blank()
			frame := binary.BigEndian.AppendUint16([]byte{0x82, 126}, uint16(size))
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for n := range b.N {
				w.payloads.put(body, stamp{1, uint32(n), 0})
				frame = append(frame[:4], body...)
				w.consume(3, &w.conns[3], frame, 1000)
			}
		})
	}
}

func TestListenersAreFound(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	server := (&faulty{}).serve(t)
	o := small("idle", server.url, nil)
	target, err := findTarget(t.Context(), o, server.url, sourceRange{})
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.AddrPortFrom(target.Address.Addr(), 1)
	pids := listeners([]netip.AddrPort{nobody, target.Address})
	if len(pids) != 2 || len(pids[0]) != 0 || len(pids[1]) != 1 || pids[1][0] != os.Getpid() {
		t.Errorf("%v, want nobody and this process, %d", pids, os.Getpid())
	}
	c, err := costOf(os.Getpid())
	if err != nil || c.rss < 1<<20 || c.threads < 1 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := costOf(1 << 30); err == nil {
		t.Error("a process that cannot be is found")
	}
	if d := pssOf(os.Getpid()); d < 1<<20 {
		t.Errorf("PSS %d", d)
	}
}

// Processes that share an address by SO_REUSEPORT are one server, and it costs what they cost together.
func TestProcessesThatShareAnAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	ours, err := shared.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := shared.Listen(t.Context(), "tcp", ours.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	file, err := theirs.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	other := testenv.Command("sleep", "60")
	other.ExtraFiles = []*os.File{file}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Process.Kill()
	theirs.Close()
	file.Close()

	here := target{URL: "ws://here/", Address: netip.MustParseAddrPort(ours.Addr().String())}
	elsewhere := target{URL: "ws://elsewhere/", Address: netip.MustParseAddrPort("192.0.2.1:80")}
	s, err := observe(nil, []target{here, elsewhere})
	if err != nil || len(s.processes) != 2 || !strings.Contains(s.doubt, "leaves out what listens at ws://elsewhere/:") {
		t.Fatalf("%+v, %v", s, err)
	}
	own, _ := costOf(os.Getpid())
	if c, living, ok := s.cost(); !ok || c.rss <= own.rss || living != c.rss || c.threads <= own.threads {
		t.Errorf("%+v of both, %+v of one", c, own)
	}
	before, _, _ := s.cost()
	other.Process.Kill()
	other.Wait()
	after, living, ok := s.cost()
	if !ok || after.cpu < before.cpu || living >= after.rss {
		t.Errorf("%+v before one ended, %+v after it, of which %d B live", before, after, living)
	}
	if gone := s.gone(); len(gone) != 1 || gone[0].String() != fmt.Sprintf("process %d at ws://here/", other.Process.Pid) {
		t.Errorf("gone are %v", gone)
	}

	both, err := observe([]int{os.Getpid(), os.Getppid(), os.Getpid()}, nil)
	if err != nil || len(both.processes) != 2 || both.processes[0].pid != os.Getpid() {
		t.Errorf("the processes that were named: %+v, %v", both, err)
	}
	if _, err := observe([]int{os.Getpid(), 1 << 30}, nil); err == nil || !strings.Contains(err.Error(), "--pid 1073741824: ") {
		t.Errorf("one of two processes does not exist, and this is said: %v", err)
	}
}

func TestCostIsTheSumOfAllProcesses(t *testing.T) {
	s := observed{processes: []*process{
		{last: cost{cpu: 1, rss: 20, threads: 300}, ended: 1}, {last: cost{cpu: 4, rss: 50, threads: 600}, ended: 1},
	}}
	sum, living, ok := s.cost()
	if sum.cpu != 5 || sum.rss != 70 || sum.threads != 900 || living != 0 || ok {
		t.Errorf("%+v, %d B of the living, %v", sum, living, ok)
	}
}
