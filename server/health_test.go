package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// wantReasons checks what /readyz or /livez says, asked without a token and without a port.
func wantReasons(t *testing.T, s *Server, path string, want ...string) {
	t.Helper()
	w := newRecorder()
	r, _ := http.NewRequest("GET", "http://localhost"+path, nil)
	s.API().ServeHTTP(w, r)
	a := answer{w.status, w.header, w.body.Bytes()}
	described(t, r, a)
	if len(want) == 0 {
		if a.is(t, 200); string(a.body) != `{"status":"ok"}`+"\n" {
			t.Errorf("%s says %s", path, a.body)
		}
		return
	}
	var p problem
	a.is(t, 503).into(t, &p)
	var got []string
	for _, c := range p.Reasons {
		got = append(got, c.Reason)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || p.Detail != p.Reasons[0].Detail || p.Detail == "" {
		t.Errorf("%s says %s, want the reasons %v", path, a.body, want)
	}
}

// probe asks for the public health, with a request line and a connection of its own.
func probe(t *testing.T, s *Server, line string) (status int, body string) {
	t.Helper()
	c := dialRaw(t, s)
	defer c.conn.Close()
	c.write([]byte(line + "\r\nHost: example.com\r\n\r\n"))
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	method, _, _ := strings.Cut(line, " ")
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || !resp.Close {
		t.Fatalf("%s: %v, will close: %v", line, err, resp.Close)
	}
	c.wantEOF()
	return resp.StatusCode, string(b)
}

func wantHealth(t *testing.T, s *Server, status int, word string) {
	t.Helper()
	if got, body := probe(t, s, "GET /healthz HTTP/1.1"); got != status || body != word+"\n" {
		t.Errorf("/healthz says %d %q, want %d %q", got, body, status, word)
	}
}

// A server's life, as probes of its readiness see it.
func TestReadiness(t *testing.T) {
	s, err := New(Options{Listen: "127.0.0.1:0", Endpoints: echoAndBroadcast(), Limits: Limits{MaxConnections: 2}, Logger: silent()})
	if err != nil {
		t.Fatal(err)
	}
	wantReasons(t, s, "/readyz", "starting")
	wantReasons(t, s, "/livez")
	run(t, s)
	wantReasons(t, s, "/readyz")
	wantHealth(t, s, 200, "ok")
	eventually(t, "the probe is gone", func() bool { return s.Stats().Sockets == 0 })

	// The second of two places is taken. The probe takes none.
	alice := dial(t, s, "/echo")
	wantHealth(t, s, 200, "ok")
	eventually(t, "the probe is gone", func() bool { return s.Stats().Sockets == 1 })
	bob := dial(t, s, "/echo")
	wantReasons(t, s, "/readyz", "full")
	wantHealth(t, s, 503, "full")
	s.SetMaintenance(true)
	wantReasons(t, s, "/readyz", "maintenance", "full")
	_ = bob.conn.Close()
	eventually(t, "bob and the probe are gone", func() bool { return s.Stats().Sockets == 1 })
	wantReasons(t, s, "/readyz", "maintenance")
	wantHealth(t, s, 503, "maintenance")
	alice.send("still here") // maintenance is for balancers only
	alice.want("still here")
	s.SetMaintenance(false)
	eventually(t, "the probe is gone", func() bool { return s.Stats().Sockets == 1 })
	wantReasons(t, s, "/readyz")

	// Alice does not answer the close frame, so that the drain lasts.
	s.Shutdown(context.Background())
	eventually(t, "it drains", s.engine.Draining.Load)
	wantReasons(t, s, "/readyz", "draining")
	wantReasons(t, s, "/livez")
	alice.wantClose(1001, "")
	if n := s.Stats().HealthChecks; n != 4 {
		t.Errorf("%d health checks are counted, want 4", n)
	}
}

// A handler blocks: its loop is named, and it is over when the handler goes on. The other loops do not
// matter, nor does a server where nothing happens.
func TestLiveness(t *testing.T) {
	free, entered := make(chan struct{}), make(chan struct{})
	s, err := New(Options{Listen: "127.0.0.1:0", Internal: Internal{Listen: "127.0.0.1:0"}, Loops: 1, Logger: silent(), Endpoints: []Endpoint{
		{Path: "/block", Handler: Handler{Open: func(*Conn) { close(entered); <-free }}},
		{Path: "/echo", Mode: ModeEcho},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.ops.stuckAfter = time.Second
	run(t, s)
	alice := dial(t, s, "/echo")
	time.Sleep(2 * s.ops.stuckAfter)
	wantReasons(t, s, "/livez")
	c, began := dialRaw(t, s), time.Now()
	c.write([]byte(upgradeHead("/block")))
	<-entered
	if early := s.stuck(); len(early) > 0 && time.Since(began) < s.ops.stuckAfter {
		t.Errorf("stuck at once: %v", early)
	}
	time.Sleep(s.ops.stuckAfter)
	a := call(t, s, "GET", "/livez", "").isProblem(t, 503, "not-live", "loop 0 has not responded for ")
	if !strings.Contains(string(a.body), `"reason":"loop_stuck"`) {
		t.Errorf("%s", a.body)
	}
	if silence := scrape(t, s)["carillon_loop_silence_seconds"]; silence < s.ops.stuckAfter.Seconds() || silence > patience.Seconds() {
		t.Errorf("the silence is %v s", silence)
	}
	close(free)
	alice.send("x")
	alice.want("x")
	wantReasons(t, s, "/livez")
}

// A loop that does nothing else is not at a turn when a handler blocks at the end of a connection: it is
// silent all the same.
func TestLivenessOfALoopThatIsAskedInVain(t *testing.T) {
	free, entered := make(chan struct{}), make(chan struct{})
	s, err := New(Options{Listen: "127.0.0.1:0", Loops: 1, Logger: silent(), Endpoints: []Endpoint{
		{Path: "/block", Handler: Handler{Close: func(*Conn, error) { close(entered); <-free }}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.ops.stuckAfter = 300 * time.Millisecond
	run(t, s)
	_ = dial(t, s, "/block").conn.Close()
	<-entered
	eventually(t, "the loop is stuck", func() bool { return len(s.stuck()) == 1 }) // the clock asks it for a turn
	close(free)
	eventually(t, "it is not", func() bool { return len(s.stuck()) == 0 })
}

// The public health check understands what balancers send.
func TestPublicHealth(t *testing.T) {
	pages := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "page") })
	for _, row := range []struct {
		name   string
		opts   Options
		line   string
		status int
		body   string
	}{
		{"GET", Options{}, "GET /healthz HTTP/1.1", 200, "ok\n"},
		{"HTTP/1.0", Options{}, "GET /healthz HTTP/1.0", 200, "ok\n"},
		{"HEAD", Options{}, "HEAD /healthz HTTP/1.1", 200, ""},
		{"HEAD with HTTP/1.0", Options{}, "HEAD /healthz HTTP/1.0", 200, ""},
		{"a query", Options{}, "GET /healthz?from=lb HTTP/1.1", 200, "ok\n"},
		{"a whole URL", Options{}, "GET http://example.com/healthz HTTP/1.1", 200, "ok\n"},
		{"another method", Options{}, "POST /healthz HTTP/1.1", 405, "a health check must be GET or HEAD\n"},
		{"another path", Options{}, "GET /healthz/ HTTP/1.1", 404, "no endpoint at this path\n"},
		{"a path of its own", Options{HealthPath: "/up"}, "GET /up HTTP/1.1", 200, "ok\n"},
		{"the default, when another is set", Options{HealthPath: "/up"}, "GET /healthz HTTP/1.1", 404, "no endpoint at this path\n"},
		{"off", Options{HealthPath: "off"}, "GET /healthz HTTP/1.1", 404, "no endpoint at this path\n"},
		{"off is no path", Options{HealthPath: "off"}, "GET off HTTP/1.1", 400, "malformed request target\n"},
		{"before the pages", Options{HTTP: pages}, "GET /healthz HTTP/1.1", 200, "ok\n"},
		{"HTTP/1.0, before the pages", Options{HTTP: pages}, "GET /healthz HTTP/1.0", 200, "ok\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.opts.Endpoints = echoAndBroadcast()
			s := start(t, row.opts)
			status, body := probe(t, s, row.line)
			if status != row.status || body != row.body && status != 400 {
				t.Errorf("%s: %d %q, want %d %q", row.line, status, body, row.status, row.body)
			}
			s.balance(t)
		})
	}
	t.Run("after a page, on the same connection", func(t *testing.T) {
		s := start(t, Options{Endpoints: echoAndBroadcast(), HTTP: pages})
		c := dialRaw(t, s)
		for _, want := range []string{"page", "ok\n"} {
			path := map[string]string{"page": "/", "ok\n": "/healthz"}[want]
			c.write([]byte("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n"))
			if body, err := io.ReadAll(c.response().Body); err != nil || string(body) != want {
				t.Errorf("%s: %q, %v", path, body, err)
			}
		}
		s.SetMaintenance(true)
		c.write([]byte("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"))
		if resp := c.response(); resp.StatusCode != 503 {
			t.Errorf("under maintenance: %s", resp.Status)
		}
	})
}

func TestHealthPathOptions(t *testing.T) {
	for _, row := range []struct{ path, words string }{
		{"/up", ""}, {"off", ""}, {"", ""}, {"up", "is not a path"}, {"/a?b", "is not a path"}, {"/echo", "is the path of endpoints[0]"},
	} {
		_, err := Options{HealthPath: row.path, Endpoints: echoAndBroadcast()}.Resolve()
		if (err == nil) != (row.words == "") || err != nil && (!strings.HasPrefix(err.Error(), "health_path: ") || !strings.Contains(err.Error(), row.words)) {
			t.Errorf("%q: %v", row.path, err)
		}
	}
}

// Probes send no token. Their answers need none; all others do.
func TestProbesNeedNoToken(t *testing.T) {
	debug := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "profiles") })
	s := start(t, Options{Internal: Internal{Listen: "127.0.0.1:0", Token: "open-sesame-to-all", Debug: debug}, Endpoints: echoAndBroadcast()})
	for _, path := range []string{"/livez", "/readyz"} {
		call(t, s, "GET", path, "").is(t, 200)
		call(t, s, "HEAD", path, "").is(t, 200)
	}
	for _, path := range []string{"/metrics", "/v1/version", "/v1/log", "/v1/maintenance", "/debug/pprof/", "/livez/", "//livez", "/nowhere"} {
		call(t, s, "GET", path, "").isProblem(t, 401, "unauthorized", "")
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap"} {
		w := newRecorder()
		r, _ := http.NewRequest("GET", "http://localhost"+path, nil)
		r.Header.Set("Authorization", "Bearer open-sesame-to-all")
		if s.API().ServeHTTP(w, r); w.status != 200 || w.body.String() != "profiles" {
			t.Errorf("%s: %d %s", path, w.status, w.body.String())
		}
	}
	call(t, s, "GET", "/livez/", "", "Authorization: Bearer open-sesame-to-all").isProblem(t, 404, "not-found", "")
}

// Without a handler for it there is no /debug/.
func TestNoProfilesWithoutBeingAsked(t *testing.T) {
	s := withAPI(t, Options{})
	for _, path := range []string{"/debug/pprof/", "/debug/", "/debug"} {
		call(t, s, "GET", path, "").isProblem(t, 404, "not-found", "")
	}
}

func TestMaintenance(t *testing.T) {
	s := withAPI(t, Options{})
	call(t, s, "GET", "/v1/maintenance", "").is(t, 200)
	for _, row := range []struct {
		body  string
		on    bool
		words string
	}{
		{`{"on":true}`, true, ""}, {`{"on":true}`, true, ""}, {`{"on":false}`, false, ""},
		{`{}`, false, "on is missing"}, {`{"on":1}`, false, "JSON object"}, {`{"om":true}`, false, "unknown field"},
		{``, false, "JSON object"}, {`nonsense`, false, "JSON object"}, {`[true]`, false, "JSON object"},
	} {
		a := call(t, s, "PUT", "/v1/maintenance", row.body, asJSON)
		if row.words != "" {
			a.isProblem(t, 400, "bad-request", row.words)
		} else if want := fmt.Sprintf("{\"on\":%v}\n", row.on); string(a.is(t, 200).body) != want {
			t.Errorf("%s: %s, want %s", row.body, a.body, want)
		}
		if got := call(t, s, "GET", "/v1/maintenance", "").body; string(got) != fmt.Sprintf("{\"on\":%v}\n", row.on) {
			t.Errorf("after %s: %s", row.body, got)
		}
	}
	call(t, s, "PUT", "/v1/maintenance", strings.Repeat(" ", 1<<10+1)+`{"on":true}`, asJSON).isProblem(t, 413, "too-large", "")
	call(t, s, "PUT", "/v1/maintenance", `{"on":true}`, asBinary).isProblem(t, 415, "unsupported-media-type", "")
	call(t, s, "PUT", "/v1/maintenance", `{"on":true}`, asJSON, "Sec-Fetch-Site: cross-site").isProblem(t, 403, "foreign-origin", "")
	if s.ops.maintenance.Load() {
		t.Error("a page from elsewhere has switched it on")
	}
}

func TestVersion(t *testing.T) {
	s := withAPI(t, Options{})
	var b Build
	call(t, s, "GET", "/v1/version", "").is(t, 200).into(t, &b)
	if b != BuildInfo() || b.Go != runtime.Version() || b.Version == "" {
		t.Errorf("%+v", b)
	}
	text, _ := json.Marshal(b)
	if strings.Contains(string(text), "/tmp") {
		t.Errorf("%s", text)
	}
}
