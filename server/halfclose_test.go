package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"carillon/codec"
)

// halfClose ends the client's side: with close_notify, if there is TLS and it is asked for, and FIN.
func (c *client) halfClose(notify bool) {
	c.t.Helper()
	var err error
	if secured, ok := c.conn.(*tls.Conn); ok && notify {
		err = secured.CloseWrite()
	}
	if err = errors.Join(err, c.tcp().CloseWrite()); err != nil {
		c.t.Fatal(err)
	}
}

// forPlainAndTLS runs a test with both kinds of connections, which take little before they are full.
func forPlainAndTLS(t *testing.T, opts Options, do func(t *testing.T, s *Server, dial func() *client)) {
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(t *testing.T) {
			opts := opts
			if secure {
				opts.TLS.Config = testTLS()
			}
			s := start(t, opts)
			do(t, s, func() *client {
				c := dialSmall(t, s)
				if secure && !allOverTLS {
					c.conn = tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
					c.r.Reset(c.conn)
				}
				return c
			})
			eventually(t, "nothing is left", func() bool { st := s.Stats(); return st.Sockets == 0 && st.QueuedBytes == 0 })
		})
	}
}

// A client that has said all it has to say shuts down its side and reads on. It gets everything that waits for it, and
// the answer to its close frame if it has sent one.
func TestHalfClose(t *testing.T) {
	const messages, size = 72, 60_000
	opts := Options{Endpoints: []Endpoint{{Path: "/echo", Mode: ModeEcho, SlowConsumer: SlowConsumer{MaxQueue: -1}}}}
	var ended atomic.Pointer[CloseError]
	opts.Endpoints[0].Handler.Close = func(_ *Conn, err error) {
		if closed, ok := errors.AsType[*CloseError](err); ok {
			ended.Store(closed)
		}
	}
	forPlainAndTLS(t, opts, func(t *testing.T, s *Server, dial func() *client) {
		for _, row := range []struct {
			sentence      string
			close, notify bool
			size          int
			code          codec.CloseCode
		}{
			{"with a close frame", true, true, size, codec.CloseNormal},
			{"with a close frame, without close_notify", true, false, size, codec.CloseNormal},
			{"without a close frame", false, true, size, codec.CloseAbnormal},
			{"without either", false, false, size, codec.CloseAbnormal},
			{"with little that waits", true, true, 10, codec.CloseNormal},
			{"with little that waits and no close frame", false, true, 10, codec.CloseAbnormal},
		} {
			t.Run(row.sentence, func(t *testing.T) {
				c := dial()
				c.t = t
				c.write([]byte(upgradeHead("/echo")))
				if resp := c.response(); resp.StatusCode != 101 {
					t.Fatal(resp.Status)
				}
				var b []byte
				for i := range messages {
					b = append(b, masked(0x82, numbered(i, row.size))...)
				}
				if row.close {
					b = append(b, masked(0x88, []byte{0x03, 0xe8})...)
				}
				c.write(b)
				c.halfClose(row.notify)
				time.Sleep(50 * time.Millisecond) // so that the server has read the end before anything is read here
				for i := range messages {
					if _, payload, err := c.frame(); err != nil || !bytes.Equal(payload, numbered(i, row.size)) {
						t.Fatalf("message %d: %d bytes, %v", i, len(payload), err)
					}
				}
				if row.close {
					if op, payload, err := c.frame(); err != nil || op != codec.OpClose || string(payload) != "\x03\xe8" {
						t.Fatalf("instead of the close frame: %v %q, %v", op, payload, err)
					}
				}
				c.wantEOF()
				_ = c.conn.Close()
				eventually(t, "it is gone", func() bool { return s.Stats().Sockets == 0 })
				if err := ended.Load(); err == nil || err.Code != row.code || !err.Remote {
					t.Errorf("the application gets %v", err)
				}
				if dropsOf(s) != 0 {
					t.Errorf("dropped: %v", s.Stats().Drops)
				}
			})
		}
	})
}

// The same for streams of events, for replies to requests, and for pages.
func TestHalfCloseOfOtherKinds(t *testing.T) {
	opts := topics(TopicRule{Match: "log", History: 5000, MaxBytes: -1})
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: -1}
	opts.Endpoints[0].Compression.Enabled = true
	page := strings.Repeat("page ", 1<<20)
	opts.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, page) })
	forPlainAndTLS(t, opts, func(t *testing.T, s *Server, dial func() *client) {
		const history = 3000
		for i := range history {
			mustPublish(t, s, "log", fmt.Sprintf("%d %01000d", i, 0))
		}
		opened := func() *client {
			c := dial()
			if secured, ok := c.conn.(*tls.Conn); ok {
				if err := secured.Handshake(); err != nil {
					t.Fatal(err)
				}
			}
			return c
		}
		t.Run("a stream of events", func(t *testing.T) {
			c := opened()
			c.t = t
			c.write([]byte(eventsHead("/ws?topic=log&last=5000")))
			c.halfClose(true)
			time.Sleep(20 * time.Millisecond)
			_ = c.conn.SetReadDeadline(time.Now().Add(patience))
			all, err := io.ReadAll(c.r)
			if n := strings.Count(string(all), "\nid: "); err != nil || n != 1+history {
				t.Errorf("%d events came, %v: %.300s", n, err, all)
			}
		})
		t.Run("replies", func(t *testing.T) {
			c := opened()
			c.t = t
			c.write([]byte(upgradeHead("/ws", speakJSON)))
			if resp := c.response(); resp.StatusCode != 101 {
				t.Fatal(resp.Status)
			}
			var b []byte
			for i := range 20 {
				b = append(b, text(fmt.Sprintf(`{"id":%d,"history":{"topic":"log","limit":1000}}`, i))...)
			}
			c.write(append(b, masked(0x88, nil)...))
			c.halfClose(true)
			for i := range 20 {
				if got := c.said(); got.History == nil || len(got.History.Messages) < 900 {
					t.Fatalf("reply %d: %.200s", i, got.text)
				}
			}
			if op, _, err := c.frame(); err != nil || op != codec.OpClose {
				t.Errorf("instead of the close frame: %v, %v", op, err)
			}
			c.wantEOF()
		})
		t.Run("replies that another goroutine compresses", func(t *testing.T) {
			c := opened()
			c.t = t
			c.write([]byte(upgradeHead("/ws", speakJSON, offerHeader)))
			if resp := c.response(); resp.StatusCode != 101 {
				t.Fatal(resp.Status)
			}
			for range 3 {
				c.send(`{"id":1,"history":{"topic":"log","limit":1000}}`)
			}
			c.halfClose(true)
			for i := range 3 {
				_, payload, err := c.frame()
				if err != nil || !strings.HasPrefix(inflated(t, payload), `{"id":1,"history":`) {
					t.Fatalf("reply %d: %d bytes, %v", i, len(payload), err)
				}
			}
			c.wantEOF()
		})
		t.Run("what was published to it", func(t *testing.T) {
			c := opened()
			c.t = t
			c.write([]byte(upgradeHead("/ws?topic=live")))
			if resp := c.response(); resp.StatusCode != 101 {
				t.Fatal(resp.Status)
			}
			subscribers(t, s, "live", 1)
			for i := range 2000 {
				mustPublish(t, s, "live", words(i))
			}
			c.halfClose(false)
			for i := range 2000 {
				c.want(words(i))
			}
			c.wantEOF()
		})
		t.Run("a page", func(t *testing.T) {
			c := opened()
			c.t = t
			c.write([]byte("GET /page HTTP/1.1\r\nHost: x\r\n\r\n"))
			c.halfClose(true)
			time.Sleep(20 * time.Millisecond)
			body, err := io.ReadAll(c.response().Body)
			if err != nil || string(body) != page {
				t.Errorf("%d bytes of %d, %v", len(body), len(page), err)
			}
		})
		t.Run("a refusal", func(t *testing.T) {
			c := opened()
			c.t = t
			c.write([]byte("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n"))
			c.halfClose(true)
			if resp := c.response(); resp.StatusCode != 426 {
				t.Error(resp.Status)
			}
		})
	})
}

// A client that shuts down its side and reads nothing is held no longer than limits.write_timeout, and not after the
// server has ended.
func TestHalfCloseOfAFrozenClient(t *testing.T) {
	opts := Options{Endpoints: []Endpoint{{Path: "/echo", Mode: ModeEcho, SlowConsumer: SlowConsumer{MaxQueue: -1}}}}
	freeze := func(t *testing.T, s *Server) {
		c := dialFrozen(t, s, "/echo")
		var b []byte
		for i := range 200 {
			b = append(b, masked(0x82, numbered(i, 60_000))...)
		}
		c.write(append(b, masked(0x88, nil)...))
		c.halfClose(true)
		eventually(t, "it has closed", func() bool { return s.Stats().Open == 0 })
	}
	t.Run("it is cut off", func(t *testing.T) {
		opts := opts
		opts.Limits.WriteTimeout = time.Second // for the client, too, which has to send all of it meanwhile
		opts.Limits.CloseTimeout = 50 * time.Millisecond
		s := start(t, opts)
		freeze(t, s)
		eventually(t, "it is cut off", func() bool { st := s.Stats(); return st.Sockets == 0 && st.QueuedBytes == 0 })
		if s.Stats().Drops[DropWriteTimeout] == 0 {
			t.Errorf("%v", s.Stats().Drops)
		}
	})
	t.Run("the server ends", func(t *testing.T) {
		opts := opts
		opts.Drain = Drain{Duration: -1, Deadline: 200 * time.Millisecond}
		s, cancel, ended := runUntil(t, opts)
		freeze(t, s)
		if s.Stats().QueuedBytes == 0 {
			t.Error("nothing waits for it")
		}
		cancel()
		wantEnd(t, ended)
		if st := s.Stats(); st.Sockets != 0 || st.QueuedBytes != 0 {
			t.Errorf("%d sockets are left, and %d bytes", st.Sockets, st.QueuedBytes)
		}
	})
}
