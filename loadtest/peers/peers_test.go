package peers

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

var kinds = map[string]int{"text": websocket.TextMessage, "binary": websocket.BinaryMessage}

// text returns n bytes that are text as well.
func text(n int) []byte { return bytes.Repeat([]byte("carillon "), n/9+1)[:n] }

func TestEcho(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		addr := start(t, p)
		sizes := []int{125, 126}
		if p.large {
			sizes = append(sizes, 64<<10, 1<<20)
		}
		if p.empty {
			sizes = append(sizes, 0)
		}
		for client, connect := range clients {
			exchange := connect(t, addr, "/echo")
			for name, kind := range kinds {
				for _, size := range sizes {
					want := text(size)
					got, payload, err := exchange(kind, want)
					if err != nil {
						t.Fatalf("%s, %s of %d bytes: %v", client, name, size, err)
					}
					if got != kind || !bytes.Equal(payload, want) {
						t.Fatalf("%s, %s of %d bytes came back as kind %d with %d bytes", client, name, size, got, len(payload))
					}
				}
			}
		}
	})
}

func TestBroadcastIsCompleteAndInOrder(t *testing.T) {
	each(t, func(t *testing.T, p peer) { broadcast(t, start(t, p), &websocket.Dialer{}, 120) })
}

// broadcast lets three publishers send 200 messages each, as fast as they can, to 20 subscribers and to
// each other.
func broadcast(t *testing.T, addr string, d *websocket.Dialer, size int) {
	const publishers, subscribers, messages = 3, 20, 200
	var conns []*websocket.Conn
	for range publishers + subscribers {
		conns = append(conns, join(t, d, addr))
	}
	payload := func(publisher, i int) []byte {
		return append(fmt.Appendf(nil, "%d %d ", publisher, i), text(size)...)
	}
	kind := func(i int) int { return 1 + i%2 }

	var wg sync.WaitGroup
	for n, conn := range conns {
		wg.Go(func() {
			var next [publishers]int
			for range publishers * messages {
				got, received, err := conn.ReadMessage()
				for err == nil && bytes.HasPrefix(received, []byte(greeting)) {
					got, received, err = conn.ReadMessage()
				}
				if err != nil {
					t.Errorf("receiver %d, after %v of each publisher: %v", n, next, err)
					return
				}
				var publisher, i int
				if _, err := fmt.Sscanf(string(received), "%d %d", &publisher, &i); err != nil {
					t.Errorf("receiver %d: %q: %v", n, received, err)
					return
				}
				if i != next[publisher] || got != kind(i) || !bytes.Equal(received, payload(publisher, i)) {
					t.Errorf("receiver %d: message %d of publisher %d as kind %d, want message %d unchanged", n, i, publisher, got, next[publisher])
					return
				}
				next[publisher]++
			}
		})
	}
	for publisher, conn := range conns[:publishers] {
		wg.Go(func() {
			for i := range messages {
				if err := conn.WriteMessage(kind(i), payload(publisher, i)); err != nil {
					t.Errorf("publisher %d: %v", publisher, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Alice publishes, bob reads, cathy has stopped reading. Cathy is cut off, and bob misses nothing.
func TestSlowConsumerIsClosed(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		var args []string
		if p.queue {
			args = []string{"-queue", "64"}
		}
		addr := start(t, p, args...)
		wide := &websocket.Dialer{WriteBufferSize: 16 << 10} // a smaller one would make fragments
		alice, bob, cathy := join(t, wide, addr), join(t, wide, addr), join(t, narrow(), addr)

		const messages = 1500
		want := text(8 << 10)
		for i := range messages {
			send(t, alice, websocket.BinaryMessage, want)
			// Alice and bob are never more than one message behind.
			for _, conn := range []*websocket.Conn{alice, bob} {
				_, got := receive(t, conn)
				for bytes.HasPrefix(got, []byte(greeting)) {
					_, got = receive(t, conn)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("message %d: %d bytes, want %d", i, len(got), len(want))
				}
			}
		}
		for i := range messages {
			if _, _, err := cathy.ReadMessage(); err != nil {
				var late interface{ Timeout() bool }
				if errors.As(err, &late) && late.Timeout() {
					t.Fatal("cathy was not closed")
				}
				t.Logf("cathy was closed after %d of %d messages: %v", i, messages, err)
				return
			}
		}
		t.Fatal("cathy received everything")
	})
}

func TestMessageLimit(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		addr := start(t, p)
		for _, path := range []string{"/echo", "/broadcast"} {
			conn := dial(t, addr, path)
			_ = conn.WriteMessage(websocket.BinaryMessage, text(1<<20+1)) // it may be closed meanwhile
			if _, _, err := conn.ReadMessage(); err == nil {
				t.Errorf("%s took a message of 1 MiB and one byte", path)
			}
		}
	})
}

func TestPing(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		addr := start(t, p)
		for _, path := range []string{"/echo", "/broadcast"} {
			conn := dial(t, addr, path)
			var pong string
			conn.SetPongHandler(func(payload string) error { pong = payload; return nil })
			_ = conn.WriteControl(websocket.PingMessage, []byte("are you there?"), time.Now().Add(patience))
			send(t, conn, websocket.TextMessage, []byte("something"))
			receive(t, conn)
			if pong != "are you there?" {
				t.Errorf("%s: the pong before the message said %q", path, pong)
			}
		}
	})
}

func TestCloseHandshake(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		addr := start(t, p)
		for _, path := range []string{"/echo", "/broadcast"} {
			conn := dial(t, addr, path)
			message := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
			_ = conn.WriteControl(websocket.CloseMessage, message, time.Now().Add(patience))
			if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Errorf("%s: %v, want close code 1000", path, err)
			}
		}
	})
}

func TestOtherPathIsNotFound(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		_, resp, err := websocket.DefaultDialer.Dial("ws://"+start(t, p)+"/other", nil)
		if err == nil || resp == nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("%v, %v, want 404", resp, err)
		}
	})
}

// Compression is used with clients that offer it, if the flag is given, and only then.
func TestCompression(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		offering := &websocket.Dialer{EnableCompression: true}
		accepted := func(addr string) bool {
			conn, resp, err := offering.Dial("ws://"+addr+"/echo", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			return strings.Contains(resp.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate")
		}
		if accepted(start(t, p)) {
			t.Error("compresses without being told to")
		}
		if !p.compression {
			return
		}
		addr := start(t, p, "-compression")
		if !accepted(addr) {
			t.Fatal("does not compress")
		}
		for _, d := range []*websocket.Dialer{offering, {}} {
			conn := dialWith(t, d, addr, "/echo")
			for _, size := range []int{1, 511, 512, 64 << 10} {
				send(t, conn, websocket.TextMessage, text(size))
				if kind, payload := receive(t, conn); kind != websocket.TextMessage || !bytes.Equal(payload, text(size)) {
					t.Fatalf("%d bytes came back as kind %d with %d bytes", size, kind, len(payload))
				}
			}
		}
		join(t, &websocket.Dialer{}, addr) // and a receiver without it
		broadcast(t, addr, offering, 800)
	})
}
