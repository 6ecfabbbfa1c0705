package server

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/limit"
	"carillon/server/internal/reactor"
)

// handshakeFrom opens a WebSocket from an address, or returns the status that refused it.
func (c *client) handshake(path string, headers ...string) int {
	c.t.Helper()
	c.write([]byte(upgradeHead(path, headers...)))
	resp := c.response()
	if resp.StatusCode != 101 {
		if _, err := io.ReadAll(resp.Body); err != nil {
			c.t.Error(err)
		}
		if resp.StatusCode == 429 && resp.Header.Get("Retry-After") == "" {
			c.t.Error("429 does not say when to come back")
		}
	}
	return resp.StatusCode
}

// leave closes the connection and waits until the server knows.
func (c *client) leave(s *Server) {
	c.t.Helper()
	before := s.Stats().Sockets
	_ = c.conn.Close()
	eventually(c.t, "the socket is closed", func() bool { return s.Stats().Sockets < before })
}

// Alice opens two connections, and the third is refused. Bob is not concerned. When she has closed one,
// she may open another. In the end nothing is remembered of either.
func TestConnectionsPerAddress(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxConnectionsPerAddress: 2}})
	const alice, bob = "127.0.0.7", "127.0.0.8"
	var all []*client
	shake := func(source string, want int) {
		t.Helper()
		c := dialFrom(t, s, source)
		if got := c.handshake("/echo"); got != want {
			t.Fatalf("%s is answered %d, want %d", source, got, want)
		}
		all = append(all, c)
	}
	shake(alice, 101)
	shake(alice, 101)
	shake(alice, 429)
	shake(bob, 101)
	s.wantRefused(t, map[RefuseReason]uint64{}, RefuseAddressFull)
	all[2].leave(s)
	all[0].leave(s)
	shake(alice, 101)
	shake(alice, 429)
	for _, c := range all {
		_ = c.conn.Close()
	}
	eventually(t, "no address is remembered", func() bool { return s.engine.Addresses.Len() == 0 })
}

// Mallory opens many sockets and says nothing. Those beyond a few more than she may have are answered at
// once, and closed; the others are told when they ask.
func TestAStormFromOneAddress(t *testing.T) {
	const most = 3
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxConnectionsPerAddress: most}})
	var all []*client
	for range most + reactor.CrowdSlots {
		all = append(all, dialFrom(t, s, "127.0.0.7"))
	}
	eventually(t, "they are accepted", func() bool { return s.Stats().Sockets == most+reactor.CrowdSlots })
	for range 20 {
		c := dialFrom(t, s, "127.0.0.7")
		c.wantRefusal(429, "this address")
	}
	if n := s.Stats().Refusals[RefuseAddressFull]; n != 20 {
		t.Errorf("%d are counted", n)
	}
	for i, c := range all {
		want := 101
		if i >= most {
			want = 429
		}
		// Loops accept side by side: which are the first is not known, how many is.
		if got := c.handshake("/echo"); got != want && got != 101 && got != 429 {
			t.Errorf("answered %d", got)
		}
	}
	if st := s.Stats(); st.Opened != most || st.Refusals[RefuseAddressFull] != 20+reactor.CrowdSlots {
		t.Errorf("%d were opened, want %d; refused %v", st.Opened, most, st.Refusals)
	}
	dialFrom(t, s, "127.0.0.8").handshake("/echo")
}

// The same client comes in each way that there is; the limit is for the client and not for the balancer.
func TestConnectionsPerAddressBehindProxies(t *testing.T) {
	const most = 2
	limits := Limits{MaxConnectionsPerAddress: most}
	for _, test := range []struct {
		sentence string
		opts     Options
		open     func(c *client, client int) int
	}{
		{"a PROXY header tells the client",
			Options{ProxyProtocol: ProxyProtocol{Mode: ProxyRequired, From: []string{"127.0.0.0/8"}}},
			func(c *client, client int) int {
				c.write(fmt.Appendf(nil, "PROXY TCP4 192.0.2.%d 198.51.100.1 56324 443\r\n", client))
				return c.handshake("/echo")
			}},
		{"a header of HTTP tells the client",
			Options{TrustedProxies: []string{"127.0.0.0/8"}},
			func(c *client, client int) int {
				return c.handshake("/echo", fmt.Sprintf("X-Forwarded-For: 192.0.2.%d", client))
			}},
		{"both do",
			Options{ProxyProtocol: ProxyProtocol{Mode: ProxyRequired, From: []string{"127.0.0.0/8"}}, TrustedProxies: []string{"10.0.0.0/8"}},
			func(c *client, client int) int {
				c.write(fmt.Appendf(nil, "PROXY TCP4 10.0.0.%d 198.51.100.1 56324 443\r\n", c.conn.LocalAddr().String()[len("127.0.0.1:")]))
				return c.handshake("/echo", fmt.Sprintf("Forwarded: for=192.0.2.%d", client))
			}},
		{"after a page, on the same connection",
			Options{HTTP: http.HandlerFunc(mirror), TrustedProxies: []string{"127.0.0.0/8"}},
			func(c *client, client int) int {
				c.write([]byte(requestHead("GET / HTTP/1.1", "X-Forwarded-For: 203.0.113.9")))
				c.wantPage("GET /")
				return c.handshake("/echo", fmt.Sprintf("X-Forwarded-For: 192.0.2.%d", client))
			}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			test.opts.Endpoints, test.opts.Limits = echoAndBroadcast(), limits
			s := start(t, test.opts)
			for client := range 3 {
				for i := range most + 1 {
					want := 101
					if i >= most {
						want = 429
					}
					if got := test.open(dialRaw(t, s), client); got != want {
						t.Fatalf("connection %d of client %d is answered %d, want %d", i, client, got, want)
					}
				}
			}
			if n := s.engine.Addresses.Len(); n != 3 {
				t.Errorf("%d addresses are known, want 3", n)
			}
		})
	}
}

// A connection from a balancer that does not name the client may stand for many clients, so it is not limited.
func TestABalancerIsExempt(t *testing.T) {
	s := start(t, Options{
		Endpoints:     echoAndBroadcast(),
		ProxyProtocol: ProxyProtocol{Mode: ProxyOptional, From: []string{"127.0.0.1"}},
		Limits:        Limits{MaxConnectionsPerAddress: 1, HandshakesPerSecondPerAddress: 1},
	})
	for _, header := range []string{"", "PROXY UNKNOWN\r\n", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"} {
		for range 3 {
			c := dialRaw(t, s)
			c.write([]byte(header))
			if got := c.handshake("/echo"); got != 101 {
				t.Fatalf("with %q it is answered %d", header, got)
			}
		}
	}
	if got := dialFrom(t, s, "127.0.0.2").handshake("/echo"); got != 101 {
		t.Fatalf("a client of its own is answered %d", got)
	}
	if got := dialFrom(t, s, "127.0.0.2").handshake("/echo"); got != 429 {
		t.Errorf("its second connection is answered %d", got)
	}
}

// Pages count as well: a connection is a connection. It is counted once, wherever it goes, and not at all
// when it has gone.
func TestConnectionsPerAddressWithPlainHTTP(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), HTTP: http.HandlerFunc(mirror), Limits: Limits{MaxConnectionsPerAddress: 2}})
	page := []byte(requestHead("GET / HTTP/1.1"))
	one, two := dialRaw(t, s), dialRaw(t, s)
	one.write(page)
	one.wantPage("GET /")
	two.write(page)
	two.wantPage("GET /")
	third := dialRaw(t, s)
	third.write(page)
	third.wantRefusal(429, "this address")
	third.leave(s)

	if got := one.handshake("/echo"); got != 101 { // it comes back to a loop, and is no new one
		t.Fatalf("answered %d", got)
	}
	third = dialRaw(t, s)
	third.write(page)
	third.wantRefusal(429, "this address")
	third.leave(s)
	one.leave(s)
	third = dialRaw(t, s)
	third.write(page)
	third.wantPage("GET /")
	two.leave(s)
	third.leave(s)
	if n := s.engine.Addresses.Len(); n != 0 {
		t.Errorf("%d addresses are remembered", n)
	}
}

// With three handshakes a second for each address, alice gets three and then a 429; bob is not
// concerned, and neither are pages and paths without an endpoint. After a second she may again, and when
// both are gone they are forgotten.
func TestHandshakesPerAddress(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{HandshakesPerSecondPerAddress: 3}})
	open := func(source, path string) (status int) {
		t.Helper()
		c := dialFrom(t, s, source)
		defer func() { _ = c.conn.Close() }()
		return c.handshake(path)
	}
	refused := 0
	for i := range 30 {
		switch got := open("127.0.0.7", "/echo"); {
		case got == 429:
			refused++
		case got != 101 || i >= 3+2*int(patience/time.Second):
			t.Fatalf("handshake %d is answered %d", i, got)
		}
	}
	if refused == 0 {
		t.Fatal("none of 30 handshakes was refused")
	}
	if n := s.Stats().Refusals[RefuseAddressHandshakes]; n != uint64(refused) {
		t.Errorf("%d are counted, want %d", n, refused)
	}
	if got := open("127.0.0.8", "/echo"); got != 101 {
		t.Errorf("bob is answered %d", got)
	}
	if got := open("127.0.0.7", "/nowhere"); got != 404 {
		t.Errorf("another path is answered %d", got)
	}
	eventually(t, "alice may come back", func() bool { return open("127.0.0.7", "/echo") == 101 })
	eventually(t, "all are forgotten", func() bool { return s.engine.Addresses.Len() == 0 })
}

func TestHandshakesOverall(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{HandshakesPerSecond: 5}})
	began, opened, refused := time.Now(), 0, 0
	for i := range 40 {
		c := dialFrom(t, s, fmt.Sprintf("127.0.0.%d", 10+i))
		switch got := c.handshake("/echo"); got {
		case 101:
			opened++
		case 503:
			refused++
		default:
			t.Fatalf("answered %d", got)
		}
	}
	if most := 6 + int(5*time.Since(began).Seconds()); opened < 5 || opened > most || refused == 0 {
		t.Errorf("%d were opened and %d refused within %v", opened, refused, time.Since(began))
	}
	if n := s.Stats().Refusals[RefuseHandshakes]; n != uint64(refused) {
		t.Errorf("%d are counted, want %d", n, refused)
	}
}

// Alice sends faster than she may, bob as fast as he may. Alice is closed with a reason, what she sent
// before has been answered, and bob notices nothing.
func TestMessagesPerSecond(t *testing.T) {
	for _, test := range []struct {
		sentence string
		frame    []byte
		answer   codec.Opcode
	}{
		{"messages", text("hello"), Text},
		{"pings", masked(0x89, []byte("hello")), codec.OpPong},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MessagesPerSecond: 4}})
			alice, bob := dial(t, s, "/echo"), dial(t, s, "/echo")
			const burst = 4 * 10
			storm := strings.Repeat(string(test.frame), 200)
			bob.send("one")
			bob.want("one")
			alice.write([]byte(storm))
			answered := 0
			for {
				op, payload, err := alice.frame()
				if err != nil {
					t.Fatal(err)
				}
				if op == codec.OpClose {
					if code := codec.CloseCode(payload[0])<<8 | codec.CloseCode(payload[1]); code != 1008 || !strings.Contains(string(payload), "limits.messages_per_second") {
						t.Errorf("closed with %d %q", code, payload[2:])
					}
					break
				}
				if answered++; op != test.answer && test.answer == Text {
					t.Fatalf("answered with %v", op)
				}
			}
			if test.answer == Text && (answered < burst || answered > burst+4*int(patience/time.Second)) {
				t.Errorf("%d were answered, want %d", answered, burst)
			}
			bob.send("two")
			bob.want("two")
			if st := s.Stats(); st.Cuts[CutMessageRate] != 1 || st.Cuts[CutByteRate] != 0 || st.Closes[1008] != 1 {
				t.Errorf("counted %d and %d, closes %v", st.Cuts[CutMessageRate], st.Cuts[CutByteRate], st.Closes)
			}
		})
	}
}

// Fragments of one message that never ends are no messages, but they are bytes.
func TestBytesPerSecond(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{BytesPerSecond: 1 << 10, MaxMessage: -1, MaxFragments: -1}})
	alice, bob := dial(t, s, "/echo"), dial(t, s, "/echo")
	alice.send(strings.Repeat("x", 5<<10)) // within what ten seconds allow
	alice.want(strings.Repeat("x", 5<<10))
	alice.write(masked(0x01, nil))
	for range 20 {
		if _, err := alice.conn.Write(masked(0x00, []byte(strings.Repeat("x", 1<<10)))); err != nil {
			break
		}
	}
	alice.wantClose(1008, "limits.bytes_per_second")
	bob.send("hello")
	bob.want("hello")
	if st := s.Stats(); st.Cuts[CutByteRate] != 1 || st.Cuts[CutMessageRate] != 0 || st.Closes[1008] != 1 {
		t.Errorf("counted %d and %d, closes %v", st.Cuts[CutByteRate], st.Cuts[CutMessageRate], st.Closes)
	}
}

// A client that sends at the rate that it may is never closed, however long that goes on.
func TestMessagesAtTheRateAreTaken(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast(), Limits: Limits{MessagesPerSecond: 100, BytesPerSecond: 100 << 10}})
	c := dial(t, s, "/echo")
	for i := range 150 {
		c.send(words(i))
		c.want(words(i))
		time.Sleep(10 * time.Millisecond)
	}
	for conn := range s.Conns() {
		done := make(chan reactor.Debts, 1)
		conn.shard().PostDo(conn.core(), 0, func() { done <- *conn.core().Debts() })
		if d := <-done; d.Messages > uint32(time.Second/limit.Unit) || d.Bytes > uint32(time.Second/limit.Unit) {
			t.Errorf("its debts grow: %+v", d)
		}
	}
}
