package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"carillon/server/internal/reactor"
)

// fillWith opens connections on a server until its limit is reached, and returns what closes them.
func fillWith(t *testing.T, s *Server, n int, open func(i int) *client) (closeAll func()) {
	t.Helper()
	var all []*client
	for i := range n {
		all = append(all, open(i))
	}
	eventually(t, "the server is full", func() bool { return s.Stats().Sockets == int64(s.MaxConnections()) })
	return func() {
		for _, c := range all {
			_ = c.conn.Close()
		}
	}
}

// A server is full of connections that have not come to a request, of one address or each of its own. Others take
// their places, and keep them.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	const most, newcomers = 100, 60
	for _, row := range []struct {
		name string
		from func(int) string
		say  string
	}{
		{"nothing, from one address", func(int) string { return "127.0.0.66" }, ""},
		{"half a head, from one address", func(int) string { return "127.0.0.66" }, upgradeHead("/echo")[:40]},
		{"nothing, from many addresses", func(i int) string { return fmt.Sprintf("127.0.1.%d", i) }, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			limits := Limits{MaxConnections: most, HandshakeTimeout: time.Minute} // or some of them may end by themselves
			s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast(), Limits: limits, Logger: silent()})
			defer fillWith(t, s, most, func(i int) *client {
				c := dialFrom(t, s, row.from(i))
				c.write([]byte(row.say))
				return c
			})()
			if row.from(0) != row.from(1) {
				time.Sleep(reactor.EvictGrace + s.engine.Settings().Tick)
			}
			for i := range newcomers {
				c := dial(t, s, "/echo")
				c.echoes(words(i))
			}
			st := s.Stats()
			if st.Refusals[RefuseEvicted] != newcomers || st.Open != newcomers || st.Sockets > most {
				t.Errorf("%d evicted, %d open, %d sockets; want %d, %d and at most %d",
					st.Refusals[RefuseEvicted], st.Open, st.Sockets, newcomers, newcomers, most)
			}
		})
	}
}

// The evicted connection is told why, where it can be told at all.
func TestEvictionIsAnswered(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast(), Limits: Limits{MaxConnections: 4}})
	var all []*client
	defer fillWith(t, s, 4, func(int) *client {
		c := dialFrom(t, s, "127.0.0.66")
		all = append(all, c)
		return c
	})()
	dial(t, s, "/echo").echoes("here I am")
	eventually(t, "one is evicted", func() bool { return s.Stats().Refusals[RefuseEvicted] == 1 })
	if allOverTLS {
		return
	}
	told := 0
	for _, c := range all {
		_ = c.conn.SetReadDeadline(time.Now().Add(time.Second)) // it was told before it was counted
		if resp, err := http.ReadResponse(c.r, nil); err == nil && resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "" {
			told++
			_, _ = io.Copy(io.Discard, resp.Body)
			c.wantEOF()
		}
	}
	if told != 1 {
		t.Errorf("%d are told, want one", told)
	}
}

// WebSockets, requests that are being decided and requests that are being answered make no room.
func TestBusyConnectionsMakeNoRoom(t *testing.T) {
	t.Parallel()
	released := make(chan struct{})
	opts := withPages(func(w http.ResponseWriter, r *http.Request) { <-released })
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/slow", Handler: Handler{
		Upgrade: func(r *Request) error {
			r.Defer(func(ctx context.Context, _ *Request) error {
				select {
				case <-released:
				case <-ctx.Done():
				}
				return nil
			})
			return nil
		},
		Message: func(*Conn, Opcode, []byte) {},
	}})
	opts.Limits.MaxConnections = 60
	s := start(t, opts)
	defer fillWith(t, s, 60, func(i int) *client {
		switch i % 3 {
		case 0:
			return dial(t, s, "/echo")
		case 1:
			c := dialRaw(t, s)
			c.write([]byte(upgradeHead("/slow")))
			return c
		}
		c := dialRaw(t, s)
		c.write([]byte(requestHead("GET /page HTTP/1.1")))
		return c
	})()
	eventually(t, "all pages are asked for", func() bool { return s.Stats().PlainHTTP == 20 })
	time.Sleep(reactor.EvictGrace + s.engine.Settings().Tick)
	c := dialRaw(t, s)
	c.write([]byte(upgradeHead("/echo")))
	wantFull(t, c)
	close(released)
	if st := s.Stats(); st.Refusals[RefuseEvicted] != 0 || st.HTTPCuts[PlainCutIdle] != 0 {
		t.Errorf("%d and %d were evicted", st.Refusals[RefuseEvicted], st.HTTPCuts[PlainCutIdle])
	}
}

// Clients that have their answer and do not close make room when they have had time to read it.
func TestLingeringConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	const most = 40
	limits, ping := off()
	limits.MaxConnections, limits.CloseTimeout = most, time.Hour
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	defer fillWith(t, s, most, func(int) *client {
		c := dialRaw(t, s)
		c.write([]byte(upgradeHead("/nowhere")))
		if resp := c.response(); resp.StatusCode != 404 {
			t.Fatalf("answered %s", resp.Status)
		}
		return c
	})()
	time.Sleep(reactor.EvictGrace + s.engine.Settings().Tick)
	for i := range most / 4 {
		dial(t, s, "/echo").echoes(words(i))
	}
}

// Connections of plain HTTP that carry no request make room, and too many of them are not kept in any case.
func TestIdlePagesMakeRoom(t *testing.T) {
	t.Parallel()
	const most = 20
	opts := withPages(mirror)
	opts.Limits.MaxConnections = most
	s := start(t, opts)
	var all []*client
	defer fillWith(t, s, most, func(int) *client {
		c := dialRaw(t, s)
		c.write([]byte(requestHead("GET / HTTP/1.1")))
		c.wantPage("GET /")
		all = append(all, c)
		return c
	})()
	time.Sleep(reactor.EvictGrace)
	for i := range most / 4 {
		dial(t, s, "/echo").echoes(words(i))
	}
	eventually(t, "they are counted", func() bool { return s.Stats().HTTPCuts[PlainCutIdle] == most/4 })
	for i, c := range all {
		if i < most/4 {
			_ = c.conn.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadAll(c.r); err != nil {
				t.Errorf("connection %d, one of the oldest, is to be closed: %v", i, err)
			}
			continue
		}
		c.write([]byte(requestHead("GET /again HTTP/1.1")))
		c.wantPage("GET /again")
	}
}

func TestTooManyIdlePages(t *testing.T) {
	const extra = 20
	needDescriptors(t, 2*(maxIdle+extra))
	s := start(t, withPages(mirror))
	for range maxIdle + extra {
		c := dialRaw(t, s)
		c.write([]byte(requestHead("GET / HTTP/1.1")))
		c.wantPage("GET /")
	}
	eventually(t, "the oldest are closed", func() bool {
		st := s.Stats()
		return st.HTTPCuts[PlainCutIdle] == extra && st.Sockets == maxIdle
	})
}
