package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/client"
	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server"
)

const patience = 2 * time.Minute

// TestNode runs what carillon.test.mjs expects of the client against a real server, behind a line that it
// can break.
func TestNode(t *testing.T) {
	node, ws := testenv.NodeWS(t)
	b := startBench(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := testenv.CommandContext(ctx, node, "--test", "--test-reporter=spec", "carillon.test.mjs")
	cmd.Env = append(os.Environ(), "CARILLON_URL=ws://"+b.line.addr()+"/ws", "CARILLON_CONTROL="+b.control.URL, "CARILLON_WS="+filepath.Join(ws, "wrapper.mjs"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestEventsInABrowser runs events.test.js in Chromium, whose EventSource is the real one.
func TestEventsInABrowser(t *testing.T) {
	chromium := testenv.Program(t, "chromium")
	dir, err := os.MkdirTemp("", "carillon-browser-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for range 100 { // its helpers write for a moment after it has ended
			if os.RemoveAll(dir) == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("%s cannot be removed", dir)
	}()
	b := startBench(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := testenv.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir="+dir, "--remote-debugging-port=0", b.control.URL+"/page?server="+b.line.addr())
	testenv.Home(cmd, dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that its helpers end too
	cmd.WaitDelay = 5 * time.Second
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	select {
	case result := <-b.results:
		if !result.OK {
			t.Fatalf("in the browser:\n%s", result.Log)
		}
		t.Logf("%s", result.Log)
	case <-ctx.Done():
		t.Fatalf("the browser says nothing:\n%s", &errs)
	}
}

// bench is a server behind a line that can be broken, and an HTTP interface with which a test in another
// language does that.
type bench struct {
	t       *testing.T
	line    *line
	control *httptest.Server
	results chan result

	mu     sync.Mutex
	server *server.Server
	stop   func()
}

type result struct {
	OK  bool
	Log string
}

func startBench(t *testing.T) *bench {
	b := &bench{t: t, results: make(chan result, 1)}
	b.line = startLine(t)
	b.restart()
	t.Cleanup(func() {
		b.line.cut()
		b.stop()
	})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /restart", func(http.ResponseWriter, *http.Request) { b.restart() })
	mux.HandleFunc("POST /cut", func(http.ResponseWriter, *http.Request) { b.line.cut() })
	mux.HandleFunc("POST /freeze", func(_ http.ResponseWriter, r *http.Request) { b.line.freeze() })
	mux.HandleFunc("POST /refuse", func(_ http.ResponseWriter, r *http.Request) { b.line.refuse(r.FormValue("on") == "true") })
	mux.HandleFunc("POST /close", b.close)
	mux.HandleFunc("POST /publish", b.publish)
	mux.HandleFunc("GET /log", b.log)
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]int{"opened": int(b.now().Stats().Opened), "open": b.now().Count()})
	})
	mux.HandleFunc("POST /result", func(_ http.ResponseWriter, r *http.Request) {
		var res result
		if err := json.NewDecoder(r.Body).Decode(&res); err != nil {
			t.Error(err)
		}
		b.results <- res
	})
	var held atomic.Int64
	mux.HandleFunc("GET /held", func(w http.ResponseWriter, r *http.Request) { // as a proxy does that collects an answer
		held.Add(1)
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /held-count", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(held.Load()) })
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><title>test</title><link rel="icon" href="data:,"><script type="module" src="/events.test.js"></script>`)
	})
	script := func(path string, text func() []byte) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/javascript")
			_, _ = w.Write(text())
		})
	}
	script("/carillon.js", func() []byte { return client.Script })
	script("/events.test.js", func() []byte {
		text, err := os.ReadFile("events.test.js")
		if err != nil {
			t.Error(err)
		}
		return text
	})
	b.control = httptest.NewServer(mux)
	t.Cleanup(b.control.Close)
	return b
}

// restart ends the server, if there is one, and starts another, whose epochs are new.
func (b *bench) restart() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		b.stop()
	}
	lists := []string{"open.>", "log.>", "small.>", "latest.>"}
	s, err := server.New(server.Options{
		Listen: "127.0.0.1:0",
		Endpoints: []server.Endpoint{{
			Path: "/ws", Mode: server.ModeTopics, Origins: []string{"*"},
			Topics: server.TopicAccess{Subscribe: lists, Publish: lists, Patterns: true, Presence: true},
		}, {Path: "/echo", Mode: server.ModeEcho}},
		Topics: []server.TopicRule{
			{Match: "log.>", History: 1_000_000, MaxBytes: -1},
			{Match: "small.>", History: 3},
			{Match: "latest.>", Latest: true},
		},
		Limits: server.Limits{MaxMessage: 64 << 10},
		Drain:  server.Drain{Duration: -1, Deadline: 100 * time.Millisecond},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.t.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Started()
	b.server = s
	b.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Error(err)
		}
	}
	b.line.lead(s.Addr().String())
}

func (b *bench) now() *server.Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.server
}

// close closes every connection with a code.
func (b *bench) close(_ http.ResponseWriter, r *http.Request) {
	code, _ := strconv.Atoi(r.FormValue("code"))
	for c := range b.now().Conns() {
		if err := c.Close(codec.CloseCode(code), r.FormValue("reason")); err != nil {
			b.t.Error(err)
		}
	}
}

func (b *bench) publish(w http.ResponseWriter, r *http.Request) {
	payload, _ := io.ReadAll(r.Body)
	format := server.FormatJSON
	if r.FormValue("format") == "binary" {
		format = server.FormatBinary
	}
	receipt, err := b.now().Publish(server.Publication{Topic: r.FormValue("topic"), Format: format, Payload: payload})
	if err != nil {
		b.t.Error(err)
	}
	_ = json.NewEncoder(w).Encode(receipt)
}

// log is all that a topic keeps.
func (b *bench) log(w http.ResponseWriter, r *http.Request) {
	past, err := b.now().History(r.FormValue("topic"), server.Start{Last: 1_000_000}, 1_000_000)
	if err != nil {
		b.t.Error(err)
	}
	list := []json.RawMessage{}
	for _, m := range past.Messages {
		list = append(list, m.Payload)
	}
	_ = json.NewEncoder(w).Encode(list)
}

// line is a TCP proxy that can fail in the ways in which networks do.
type line struct {
	listener net.Listener

	mu      sync.Mutex
	target  string
	refused bool
	links   map[*link]bool
}

type link struct {
	a, b   net.Conn
	frozen chan struct{} // closed when nothing passes any more
	once   sync.Once
}

func startLine(t *testing.T) *line {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{listener: listener, links: map[*link]bool{}}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			l.join(conn)
		}
	}()
	return l
}

func (l *line) addr() string { return l.listener.Addr().String() }

func (l *line) lead(target string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = target
}

func (l *line) refuse(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = on
}

func (l *line) join(a net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refused {
		_ = a.Close()
		return
	}
	b, err := net.Dial("tcp", l.target)
	if err != nil {
		_ = a.Close()
		return
	}
	k := &link{a: a, b: b, frozen: make(chan struct{})}
	l.links[k] = true
	pass := func(to, from net.Conn) {
		buf := make([]byte, 4<<10)
		for {
			n, err := from.Read(buf)
			select {
			case <-k.frozen:
				return // the other side is left waiting
			default:
			}
			if n > 0 {
				_, _ = to.Write(buf[:n])
			}
			if err != nil {
				k.end()
				return
			}
		}
	}
	go pass(a, b)
	go pass(b, a)
}

func (k *link) end() {
	_ = k.a.Close()
	_ = k.b.Close()
}

// cut breaks every connection, with whatever is on its way.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.links {
		k.end()
	}
	clear(l.links)
}

// freeze lets nothing pass any more on the connections that there are, without closing them.
func (l *line) freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.links {
		k.once.Do(func() { close(k.frozen) })
	}
}
