package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"carillon/codec"
)

// Refused is called for everything that an endpoint refuses, over each kind of listener and for each kind of client,
// and its words are the answer. The counters do not change for it.
func TestRefusedHearsAndWords(t *testing.T) {
	errDenied := errors.New("no place left in the hall")
	upgrade := upgradeHead("/ws?topic=a")
	evil := strings.Replace(upgrade, hostLine, hostLine+"Origin: https://evil.example\r\n", 1)
	for _, row := range []struct {
		sentence string
		head     string
		opts     func(*Options)
		status   int
		why      RefuseReason
		header   string // of ours that must stay
	}{
		{"no key", strings.Replace(upgrade, "Sec-WebSocket-Key", "X", 1), nil, 400, RefuseMalformed, ""},
		{"a header that is none", strings.Replace(upgrade, hostLine, hostLine+"no colon\r\n", 1), nil, 400, RefuseMalformed, ""},
		{"a page", requestHead("GET /ws HTTP/1.1"), nil, 426, RefuseNoUpgrade, "Upgrade"},
		{"another method", requestHead("POST /ws HTTP/1.1"), nil, 405, RefuseMethod, "Allow"},
		{"another version", requestHead("GET /ws HTTP/1.0"), nil, 505, RefuseVersion, ""},
		{"a strange origin", evil, nil, 403, RefuseOrigin, ""},
		{"events for a strange origin", requestHead("GET /ws?topic=a HTTP/1.1", "Accept: text/event-stream", "Origin: https://evil.example"), nil, 403, RefuseOrigin, ""},
		{"events without a topic", requestHead("GET /ws HTTP/1.1", "Accept: text/event-stream"), nil, 400, RefuseTopic, ""},
		{"a topic that is none", upgradeHead("/ws?topic=a..b"), nil, 400, RefuseTopic, ""},
		{"a full server", upgrade, func(o *Options) { o.Limits.MaxConnections = 1 }, 503, RefuseFull, "Retry-After"},
		{"what Upgrade says", upgrade, func(o *Options) {
			o.Endpoints[0].Handler.Upgrade = func(*Request) error { return errDenied }
		}, 403, RefuseHandler, ""},
		{"a panic", upgrade, func(o *Options) { o.Endpoints[0].Handler.Upgrade = func(*Request) error { panic("x") } }, 500, RefusePanic, ""},
		{"what it has deferred", upgrade, func(o *Options) {
			o.Endpoints[0].Handler.Upgrade = func(r *Request) error {
				r.Defer(func(context.Context, *Request) error { return errDenied })
				return nil
			}
		}, 403, RefuseHandler, ""},
		{"what is not decided in time", upgrade, func(o *Options) {
			o.Limits.HandshakeTimeout = 50 * time.Millisecond
			o.Endpoints[0].Handler.Upgrade = func(r *Request) error {
				r.Defer(func(ctx context.Context, r *Request) error {
					<-ctx.Done()
					r.Secure = true // the request is this function's: Refused gets another one
					time.Sleep(300 * time.Millisecond)
					return nil
				})
				return nil
			}
		}, 503, RefuseUndecided, "Retry-After"},
		{"too much before the decision", upgrade + strings.Repeat("x", 9<<10), func(o *Options) {
			o.Endpoints[0].Handler.Upgrade = func(r *Request) error {
				r.Defer(func(ctx context.Context, _ *Request) error { <-ctx.Done(); return nil })
				return nil
			}
		}, 400, RefuseEarly, ""},
	} {
		for _, network := range []string{"tcp", "unix", "behind pages"} {
			t.Run(row.sentence+"/"+network, func(t *testing.T) {
				heard := make(chan Refusal, 10)
				opts := Options{Endpoints: []Endpoint{{Path: "/ws", Mode: ModeTopics, Handler: Handler{Refused: func(r *Request, refusal *Refusal) {
					heard <- *refusal
					if string(r.Path) != "/ws" {
						t.Errorf("the request is for %q", r.Path)
					}
					refusal.Reason = RefuseLost // which changes nothing
					refusal.Response.Reason = fmt.Sprintf(`{"error":%q}`, refusal.Reason)
					refusal.Response.Header = append(refusal.Response.Header, [2]string{"Content-Type", "application/json"})
				}}}}}
				if row.opts != nil {
					row.opts(&opts)
				}
				c := refusedClient(t, network, opts, row.sentence)
				if c == nil {
					return
				}
				c.write([]byte(row.head))
				resp := c.response()
				body, err := io.ReadAll(resp.Body)
				if resp.StatusCode != row.status || err != nil || string(body) != `{"error":"lost"}`+"\n" {
					t.Errorf("answered %s: %s, %v", resp.Status, body, err)
				}
				if types := resp.Header.Values("Content-Type"); len(types) != 1 || types[0] != "application/json" {
					t.Errorf("the types are %q", types)
				}
				if row.header != "" && resp.Header.Get(row.header) == "" {
					t.Errorf("there is no %s in %v", row.header, resp.Header)
				}
				refusal := <-heard
				var rejection *codec.Rejection
				if refusal.Reason != row.why || refusal.Response.Status != row.status || refusal.Err != errDenied && !errors.As(refusal.Err, &rejection) {
					t.Errorf("told of %v, %d, %v; want %v, %d", refusal.Reason, refusal.Response.Status, refusal.Err, row.why, row.status)
				}
			})
		}
	}
}

// refusedClient starts a server and connects to it: over TCP, through a unix socket, or on a connection that net/http
// has had before.
func refusedClient(t *testing.T, network string, opts Options, sentence string) *client {
	t.Helper()
	fills := sentence == "a full server"
	switch network {
	case "unix":
		if allOverTLS {
			return nil
		}
		path := filepath.Join(t.TempDir(), "s")
		opts.Listen = "unix:" + path
		s := start(t, opts)
		if fills {
			dialUnix(t, path)
			eventually(t, "it is full", func() bool { return s.Stats().Sockets == 1 })
		}
		return dialUnix(t, path)
	case "behind pages":
		if fills || strings.HasPrefix(sentence, "a header that is none") || sentence == "another version" {
			return nil // there, these are net/http's to answer
		}
		opts.HTTP = http.NotFoundHandler()
		c := dialRaw(t, start(t, opts))
		c.write([]byte(requestHead("GET /page HTTP/1.1")))
		if resp := c.response(); resp.StatusCode != 404 {
			t.Fatal(resp.Status)
		} else if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		return c
	}
	s := start(t, opts)
	if fills {
		dial(t, s, "/ws?topic=b")
	}
	return dialRaw(t, s)
}

// Without a word of the application the answer is ours, whatever Refused does; nothing of ours changes for others.
func TestRefusedThatGoesWrong(t *testing.T) {
	for _, row := range []struct {
		sentence string
		refused  func(*Request, *Refusal)
	}{
		{"it says nothing", func(*Request, *Refusal) {}},
		{"it panics", func(_ *Request, r *Refusal) { r.Response.Reason = "half a word"; panic("x") }},
		{"it would let the client in", func(_ *Request, r *Refusal) { r.Response.Status = 101 }},
		{"it writes into what is shared", func(_ *Request, r *Refusal) {
			if len(r.Response.Header) != 3 {
				panic("the header is not as it was")
			}
			r.Response.Header[0][1], r.Response.Header = "changed", nil
		}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/ws", Mode: ModeEcho, Handler: Handler{Refused: row.refused}}}})
			for range 2 {
				c := dialRaw(t, s)
				c.write([]byte(requestHead("GET /ws HTTP/1.1")))
				c.wantRefusal(426, "this is a WebSocket endpoint")
			}
			if n := s.Stats().Refusals[RefuseNoUpgrade]; n != 2 {
				t.Errorf("%d refusals are counted", n)
			}
		})
	}
}

// What is no request for the endpoint is not told to it.
func TestRefusedHearsOnlyOfItsOwn(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/ws", Mode: ModeEcho, Handler: Handler{Refused: func(r *Request, _ *Refusal) {
		t.Errorf("told of %q", r.Path)
	}}}}})
	for _, head := range []string{upgradeHead("/other"), "GET /ws\r\n\r\n", upgradeHead("/ws/")} {
		c := dialRaw(t, s)
		c.write([]byte(head))
		if resp := c.response(); resp.StatusCode < 400 {
			t.Error(resp.Status)
		}
	}
	dial(t, s, "/ws")
}

// The answer to a request for events begins with one Content-Type, whatever the application adds.
func TestEventsHaveOneContentType(t *testing.T) {
	head := string(appendEventsHead(nil, [][2]string{{"Access-Control-Allow-Origin", "https://a.example"}}, [][2]string{
		{"content-type", "text/plain"}, {"Access-Control-Allow-Origin", "*"}, {"Content-Length", "5"}, {"Set-Cookie", "a=1"}, {"Set-Cookie", "b=2"}}))
	for line, n := range map[string]int{"content-type:": 1, "access-control-allow-origin: *\r\n": 1, "access-control-allow-origin:": 1, "content-length": 0, "set-cookie:": 2} {
		if got := strings.Count(strings.ToLower(head), line); got != n {
			t.Errorf("%q is there %d times, want %d: %s", line, got, n, head)
		}
	}
}

// dialUnix connects through a unix socket.
func dialUnix(t *testing.T, path string) *client {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return newClient(t, conn)
}
