package server

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/logs"
	"carillon/server/internal/reactor"
)

func silent() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// A connection's life is three lines at most, at debug level. What Alice writes into her close frame is
// escaped.
func TestEventsAreLogged(t *testing.T) {
	var log logBuffer
	level := new(slog.LevelVar)
	s := withAPI(t, Options{Loops: 1, Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: level})), LogLevel: level})
	end := func() {
		alice := dial(t, s, "/echo")
		alice.write(masked(0x88, append([]byte{0x03, 0xe8}, "bye\nforged \x1b"...)))
		alice.wantClose(1000, "")
		_ = alice.conn.Close()
		eventually(t, "she is gone", func() bool { return s.Stats().Sockets == 0 })
	}
	end()
	if got := log.String(); strings.Contains(got, "connection opened") {
		t.Errorf("at level info: %s", got)
	}
	call(t, s, "PUT", "/v1/log", `{"level":"debug"}`, asJSON).is(t, 200)
	end()
	c := dialRaw(t, s)
	c.write([]byte("GET /nowhere\x1b HTTP/1.1\r\n\r\n"))
	_, _ = io.ReadAll(c.r)
	got := log.String()
	for _, words := range []string{
		`"msg":"log level","was":"INFO","is":"DEBUG"`,
		`"msg":"connection opened","id":2,"remote":"127.0.0.1:`, `"path":"/echo","subprotocol":""`,
		`"msg":"connection closed","id":2,`, `"code":1000,"by_peer":true,"reason":"bye\nforged \u001b"`,
		`"msg":"connection refused","id":3,`, `"reason":"malformed"`,
	} {
		if !strings.Contains(got, words) {
			t.Errorf("%s is not in\n%s", words, got)
		}
	}
}

// A storm of connections is 100 lines in a second; the rest is counted.
func TestEventsAreSampled(t *testing.T) {
	s, log := startLogged(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/panic", Handler: Handler{
		Message: func(*Conn, codec.Opcode, []byte) { panic("at the disco\n" + strings.Repeat("x", 10_000)) },
	}}}, Internal: Internal{Listen: "127.0.0.1:0"}})
	const clients = 150
	begin := time.Now()
	for range clients {
		c := dial(t, s, "/panic")
		c.send("x")
		c.wantClose(1011, "")
		_ = c.conn.Close()
	}
	eventually(t, "the last is gone", func() bool { return s.Stats().Closes[1011] == clients })
	time.Sleep(20 * time.Millisecond) // its line is written after it is counted
	seconds := int(time.Since(begin)/time.Second) + 2
	text := log.String()
	if n := strings.Count(text, "handler panicked"); n == 0 || n > reactor.MaxGrave*seconds {
		t.Errorf("%d panics are logged in %d seconds", n, seconds)
	}
	if n := strings.Count(text, "msg=\"connection "); n == 0 || n > reactor.MaxEvents*seconds {
		t.Errorf("%d events are logged in %d seconds", n, seconds)
	}
	if strings.Contains(text, strings.Repeat("x", logs.MaxText+1)) {
		t.Error("all of the panic's text is in the log")
	}
	written := strings.Count(text, "msg=\"connection opened") + strings.Count(text, "msg=\"connection closed") + strings.Count(text, "handler panicked")
	if omitted := scrape(t, s)["carillon_log_events_omitted_total"]; omitted != float64(3*clients-written) {
		t.Errorf("%v lines are counted as left out; %d of %d are there", omitted, written, 3*clients)
	}
}

// Nothing of a line is made when it is not logged.
func TestEventsCostNothingWhenOff(t *testing.T) {
	s, err := New(Options{Endpoints: echoAndBroadcast(), Logger: silent()})
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if s.engine.LogsEvents() {
			t.Error("it logs events")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLogLevel(t *testing.T) {
	level := new(slog.LevelVar)
	s := withAPI(t, Options{LogLevel: level})
	if got := string(call(t, s, "GET", "/v1/log", "").is(t, 200).body); got != `{"level":"info"}`+"\n" {
		t.Error(got)
	}
	for name, want := range map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError} {
		if got := string(call(t, s, "PUT", "/v1/log", `{"level":"`+name+`"}`, asJSON).is(t, 200).body); got != `{"level":"`+name+`"}`+"\n" || level.Level() != want {
			t.Errorf("%s: %s, %v", name, got, level)
		}
	}
	was := level.Level()
	call(t, s, "PUT", "/v1/log", `{"level":"loud"}`, asJSON).isProblem(t, 400, "bad-request", `level is "loud": expected debug, info, warn or error`)
	call(t, s, "PUT", "/v1/log", `{}`, asJSON).isProblem(t, 400, "bad-request", `level is ""`)
	if level.Level() != was {
		t.Errorf("a wrong level made it %v", level)
	}
	private := withAPI(t, Options{})
	call(t, private, "GET", "/v1/log", "").isProblem(t, 501, "not-offered", "Options.LogLevel")
	call(t, private, "PUT", "/v1/log", `{"level":"debug"}`, asJSON).isProblem(t, 501, "not-offered", "Options.LogLevel")
}

// What net/http says about a visitor is bounded and escaped.
func TestPanicsOfVisitorsAreBounded(t *testing.T) {
	s, log := startLogged(t, Options{Endpoints: echoAndBroadcast(), HTTP: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic("forged\nlevel=ERROR " + strings.Repeat("x", 20_000))
	})})
	c := dialRaw(t, s)
	c.write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	_, _ = io.ReadAll(c.r)
	eventually(t, "it is logged", func() bool { return strings.Contains(log.String(), "net/http") })
	for line := range strings.Lines(log.String()) {
		if len(line) > 3*maxNetworkLog || strings.HasPrefix(line, "level=ERROR ") {
			t.Errorf("a line of %d bytes: %.100s", len(line), line)
		}
	}
}
