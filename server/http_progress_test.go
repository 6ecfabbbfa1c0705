package server

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// pagesWithin are pages whose clients have little time.
func pagesWithin(body, write time.Duration, pages http.HandlerFunc) Options {
	opts := withPages(pages)
	opts.Limits.BodyTimeout, opts.Limits.WriteTimeout = body, write
	return opts
}

// post begins a request with a body of so many bytes.
func (c *client) post(path string, size int) {
	c.t.Helper()
	c.write([]byte(requestHead("POST "+path+" HTTP/1.1", fmt.Sprintf("Content-Length: %d", size))))
}

// Bodies that never end, or that dribble in, keep nothing, whether the handler reads them or net/http does.
func TestPlainBodyTimeout(t *testing.T) {
	t.Parallel()
	const clients = 20
	for _, row := range []struct {
		name    string
		handler http.HandlerFunc
		feed    func(*client)
	}{
		{"nothing comes, to a handler that reads it", mirror, func(*client) {}},
		{"nothing comes, to a handler that does not", http.NotFound, func(*client) {}},
		{"it dribbles in", mirror, func(c *client) { dribble(c.conn, make([]byte, 1000)) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := start(t, pagesWithin(300*time.Millisecond, -1, row.handler))
			var all sync.WaitGroup
			for range clients {
				c := dialRaw(t, s)
				c.post("/", 10_000)
				all.Go(func() {
					row.feed(c)
					_ = c.conn.SetReadDeadline(time.Now().Add(patience))
					_, _ = io.Copy(io.Discard, c.conn)
				})
			}
			all.Wait()
			eventually(t, "all are cut off and counted", func() bool {
				st := s.Stats()
				return st.HTTPCuts[PlainCutBodyTimeout] == clients && st.Sockets == 0
			})
		})
	}
}

// A body that comes, however long it takes, is read to its end; so is one for which its handler has no time at first.
func TestPlainBodyInTime(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	s := start(t, pagesWithin(limit, -1, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/busy" {
			time.Sleep(2 * limit)
		}
		mirror(w, r)
	}))
	busy := dialRaw(t, s)
	busy.post("/busy", 10)
	busy.write(make([]byte, 10))
	slow := dialRaw(t, s)
	slow.post("/slow", 25*500)
	for range 25 {
		time.Sleep(limit / 10)
		slow.write(make([]byte, 500))
	}
	slow.wantPage("POST /slow")
	busy.wantPage("POST /busy")
	if n := s.Stats().HTTPCuts[PlainCutBodyTimeout]; n != 0 {
		t.Errorf("%d are cut off", n)
	}
}

// A handler gives a body, and an answer, the time that it likes; and for the next request on the connection the
// limits hold again.
func TestPlainHandlersSetTheirOwnDeadlines(t *testing.T) {
	t.Parallel()
	const limit = 200 * time.Millisecond
	opts := pagesWithin(limit, limit, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/patient" {
			deadlines := http.NewResponseController(w)
			_ = deadlines.SetReadDeadline(time.Time{})
			_ = deadlines.SetWriteDeadline(time.Time{})
		}
		mirror(w, r)
	})
	s := start(t, opts)
	c := dialRaw(t, s)
	c.post("/patient", 10)
	time.Sleep(4 * limit)
	c.write(make([]byte, 10))
	c.wantPage("POST /patient")
	c.post("/", 10)
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	_, _ = io.Copy(io.Discard, c.r)
	eventually(t, "the second is cut off", func() bool { return s.Stats().HTTPCuts[PlainCutBodyTimeout] == 1 })
}

// largeFile makes a file that no socket takes at once.
func largeFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(name, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// answers are the ways in which a large answer is written.
func answers(t *testing.T) map[string]http.HandlerFunc {
	file := largeFile(t)
	return map[string]http.HandlerFunc{
		"in pieces": func(w http.ResponseWriter, _ *http.Request) {
			for range 32 << 20 / 4096 {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		},
		"at once":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 32<<20)) },
		"as a file": func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) },
	}
}

// Answers that are not read keep nothing.
func TestPlainAnswersThatNobodyReads(t *testing.T) {
	t.Parallel()
	const clients = 5
	a := newAuthority(t)
	for name, answer := range answers(t) {
		for _, overTLS := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %v", name, overTLS), func(t *testing.T) {
				opts := pagesWithin(-1, 300*time.Millisecond, answer)
				if overTLS {
					opts = a.overTLS(opts)
				}
				s := start(t, opts)
				for range clients {
					c := dialSmall(t, s)
					if overTLS {
						c.startTLS(a.client())
					}
					c.write([]byte(requestHead("GET / HTTP/1.1")))
				}
				eventually(t, "all are cut off and counted", func() bool {
					st := s.Stats()
					return st.HTTPCuts[PlainCutWriteTimeout] == clients && st.Sockets == 0
				})
			})
		}
	}
}

// A client that reads slowly, but reads, gets the whole of a large answer, although its socket is hardly ever writable:
// the kernel says so when a third of its buffer is free.
func TestPlainAnswersThatAreReadSlowly(t *testing.T) {
	const limit = 200 * time.Millisecond
	for name, answer := range answers(t) {
		t.Run(name, func(t *testing.T) {
			s := start(t, pagesWithin(-1, limit, answer))
			c := dialRaw(t, s)
			c.write([]byte(requestHead("GET / HTTP/1.1")))
			resp := c.response()
			for range 10 {
				time.Sleep(limit / 2)
				if _, err := io.CopyN(io.Discard, resp.Body, 64<<10); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 32<<20-10*64<<10 {
				t.Errorf("%d bytes more, %v", n, err)
			}
			if n := s.Stats().HTTPCuts[PlainCutWriteTimeout]; n != 0 {
				t.Errorf("%d are cut off", n)
			}
		})
	}
}

// A stream that says something now and then, a request that is answered late, and a connection that was hijacked are
// left alone.
func TestPlainStreamsAreNotCutOff(t *testing.T) {
	t.Parallel()
	const limit = 100 * time.Millisecond
	s := start(t, pagesWithin(limit, limit, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stream":
			_, _ = io.Copy(io.Discard, r.Body)
			for i := range 4 {
				time.Sleep(3 * limit)
				if r.Context().Err() != nil {
					return
				}
				fmt.Fprintf(w, "data: %d\n\n", i)
				_ = http.NewResponseController(w).Flush()
			}
		case "/socket":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
			_, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
		}
	}))
	stream, socket := dialRaw(t, s), dialRaw(t, s)
	stream.post("/stream", 3)
	stream.write([]byte("yes"))
	socket.write([]byte(requestHead("GET /socket HTTP/1.1", "Upgrade: own", "Connection: upgrade")))
	if resp := socket.response(); resp.StatusCode != 101 {
		t.Fatalf("answered %s", resp.Status)
	}
	body, err := io.ReadAll(stream.response().Body)
	if want := "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"; string(body) != want || err != nil {
		t.Errorf("the stream is %q, %v", body, err)
	}
	socket.write([]byte("still here"))
	b := make([]byte, 10)
	if _, err := io.ReadFull(socket.r, b); err != nil || !bytes.Equal(b, []byte("still here")) {
		t.Errorf("the socket says %q, %v", b, err)
	}
	if cuts := s.Stats().HTTPCuts; cuts[PlainCutBodyTimeout]+cuts[PlainCutWriteTimeout] != 0 {
		t.Errorf("cut off: %v", cuts)
	}
}

// A handler gets a time-out error.
func TestPlainTimeoutsAreTimeouts(t *testing.T) {
	for _, err := range []error{errBodyTimeout, errWriteStalled} {
		if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() || !os.IsTimeout(err) {
			t.Errorf("%v is none", err)
		}
	}
}
