package server

import (
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/codec"
	"carillon/internal/testenv"
)

// attack is one row of the tests below: what strangers do to a server while a citizen lives there.
type attack struct {
	sentence string
	options  func(*Options)
	change   func(*Server)
	run      func(t *testing.T, s *Server)
	counted  func(Stats) uint64 // what the server says of it
	at       uint64             // least
}

func (row attack) against(t *testing.T) {
	opts := Options{Loops: 2, Endpoints: besieged(), Logger: silent()}
	if row.options != nil {
		row.options(&opts)
	}
	if row.change == nil {
		row.change = func(*Server) {}
	}
	s, _ := startChanged(t, opts, row.change)
	z := settle(t, s)
	z.serves(20)
	before := footprintOf(s)
	row.run(t, s)
	z.serves(20)
	eventually(t, "it is counted", func() bool { return row.counted(s.Stats()) >= row.at })
	before.wantBack(t, s)
	z.serves(20)
	z.leave()
}

// raid lets n strangers loose at once, each with a connection of its own that is closed for it.
func raid(t *testing.T, s *Server, n int, do func(net.Conn)) {
	t.Helper()
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			conn, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			do(conn)
		})
	}
	all.Wait()
}

// enter opens a WebSocket, in so far as the answer is a 101.
func enter(conn net.Conn, path string, headers ...string) bool {
	_, _ = io.WriteString(conn, upgradeHead(path, headers...))
	var head []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, b[0]) {
		if _, err := conn.Read(b); err != nil {
			return false
		}
	}
	return strings.HasPrefix(string(head), "HTTP/1.1 101")
}

// pour writes the same again and again until that fails, or so many bytes are out.
func pour(conn net.Conn, b []byte, most int) {
	for n := 0; n < most; n += len(b) {
		if _, err := conn.Write(b); err != nil {
			return
		}
	}
}

// dribble writes a byte now and then until that fails.
func dribble(conn net.Conn, b []byte) {
	for _, one := range b {
		if _, err := conn.Write([]byte{one}); err != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	_, _ = io.Copy(io.Discard, conn)
}

// untilEnd waits until the server ends the connection.
func untilEnd(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func refusedFor(why RefuseReason) func(Stats) uint64 {
	return func(st Stats) uint64 { return st.Refusals[why] }
}

func cutFor(why CutReason) func(Stats) uint64 { return func(st Stats) uint64 { return st.Cuts[why] } }

func closedWith(code codec.CloseCode) func(Stats) uint64 {
	return func(st Stats) uint64 { return st.Closes[code] }
}

func repeat(b []byte, n int) []byte { return []byte(strings.Repeat(string(b), n)) }

const few = 300 * time.Millisecond

// enough is how long the citizen may be kept from the processor by what else a machine does.
const enough = 4 * time.Second

// many is a fourth of a number under the race detector, which takes most of the processors' time.
func many(n int) int {
	if testenv.Race {
		return n / 4
	}
	return n
}

// What strangers may do to a server, each next to a citizen who must not suffer from it. Afterwards the server has
// counted it, and is as small as it was before.
func TestUnderAttack(t *testing.T) {
	for _, row := range []attack{
		{
			sentence: "heads that dribble in",
			options:  func(o *Options) { o.Limits.HandshakeTimeout, o.Limits.CloseTimeout = few, few },
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(200), func(conn net.Conn) {
					dribble(conn, []byte(upgradeHead("/echo", "X-Fill: "+strings.Repeat("x", 4000))))
				})
			},
			counted: refusedFor(RefuseTimeout), at: uint64(many(200)),
		},
		{
			sentence: "heads that never begin",
			options:  func(o *Options) { o.Limits.HandshakeTimeout = few },
			run:      func(t *testing.T, s *Server) { raid(t, s, many(300), untilEnd) },
			counted:  refusedFor(RefuseTimeout), at: uint64(many(300)),
		},
		{
			sentence: "heads that never end",
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(200), func(conn net.Conn) {
					pour(conn, []byte(upgradeHead("/echo")[:100]+"X-Fill: "+strings.Repeat("x", 1000)), 1<<20)
				})
			},
			counted: func(st Stats) uint64 { return st.Refusals[RefuseHeadTooLong] }, at: uint64(many(200)),
		},
		{
			sentence: "more sockets than there may be",
			options:  func(o *Options) { o.Limits.MaxConnections = 50 },
			run: func(t *testing.T, s *Server) {
				inside := make(chan struct{})
				var strangers sync.WaitGroup
				strangers.Go(func() {
					raid(t, s, 47, func(conn net.Conn) {
						_ = enter(conn, "/echo")
						<-inside
					})
				})
				eventually(t, "it is full", func() bool { return s.Stats().Open == 50 })
				raid(t, s, many(400), func(conn net.Conn) { _ = enter(conn, "/echo") })
				close(inside)
				strangers.Wait()
			},
			counted: refusedFor(RefuseFull), at: uint64(many(200)),
		},
		{
			// A loop makes room among its own connections, and of two loops one may get more newcomers than it has
			// silent ones.
			sentence: "as many silent sockets as there may be, and others who want in",
			options:  func(o *Options) { o.Loops, o.Limits.MaxConnections = 1, 50 },
			run: func(t *testing.T, s *Server) {
				inside := make(chan struct{})
				var strangers sync.WaitGroup
				strangers.Go(func() { raid(t, s, 47, func(net.Conn) { <-inside }) })
				eventually(t, "it is full", func() bool { return s.Stats().Sockets == 50 })
				raid(t, s, 20, func(conn net.Conn) {
					if !enter(conn, "/echo") {
						t.Error("it does not come in")
					}
				})
				close(inside)
				strangers.Wait()
			},
			counted: refusedFor(RefuseEvicted), at: 1,
		},
		{
			sentence: "frames that dribble in",
			options:  func(o *Options) { o.Limits.IdleTimeout, o.Limits.CloseTimeout = enough, few },
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(100), func(conn net.Conn) {
					if enter(conn, "/echo") {
						dribble(conn, append(header(0x82, 1<<20), make([]byte, 10_000)...))
					}
				})
			},
			counted: cutFor(CutIdle), at: uint64(many(100)),
		},
		{
			sentence: "a flood of pings whose answers are not read",
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(10), func(conn net.Conn) {
					if enter(conn, "/echo") {
						pour(conn, repeat(masked(0x89, []byte("are you there?")), 1000), many(8<<20))
					}
				})
			},
			counted: closedWith(codec.CloseAbnormal), at: uint64(many(10)),
		},
		{
			sentence: "a flood of messages and pings above the rate",
			options:  func(o *Options) { o.Limits.MessagesPerSecond = 2000 },
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(20), func(conn net.Conn) {
					if enter(conn, "/echo") {
						pour(conn, repeat(masked(0x89, nil), 1000), 8<<20)
					}
				})
			},
			counted: cutFor(CutMessageRate), at: uint64(many(20)),
		},
		{
			sentence: "messages in fragments without end",
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(50), func(conn net.Conn) {
					if enter(conn, "/echo") {
						_, _ = conn.Write(masked(0x01, nil))
						pour(conn, repeat(masked(0x00, nil), 500), 8<<20)
					}
				})
			},
			counted: closedWith(codec.ClosePolicyViolation), at: uint64(many(50)),
		},
		{
			sentence: "tiny frames whose echoes are not read",
			options: func(o *Options) {
				o.Endpoints[0].SlowConsumer.MaxQueue = 64 << 10
				o.Limits.CloseTimeout = few
			},
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(10), func(conn net.Conn) {
					if !enter(conn, "/echo") {
						return
					}
					for c := range s.Conns() { // the kernel would take millions of them
						_ = unix.SetsockoptInt(int(c.core().FD()), unix.SOL_SOCKET, unix.SO_SNDBUF, 8192)
					}
					pour(conn, repeat(masked(0x81, []byte("x")), 1000), 64<<20)
				})
			},
			counted: cutFor(CutSlowConsumer), at: uint64(many(10)),
		},
		{
			sentence: "compression bombs",
			options:  func(o *Options) { o.Endpoints[0].Compression.Enabled = true },
			run: func(t *testing.T, s *Server) {
				bomb := masked(0xc1, deflated(t, strings.Repeat("\x00", 16<<20)))
				raid(t, s, many(20), func(conn net.Conn) {
					if enter(conn, "/echo", "Sec-WebSocket-Extensions: permessage-deflate") {
						_, _ = conn.Write(bomb)
						untilEnd(conn)
					}
				})
			},
			counted: closedWith(codec.CloseMessageTooBig), at: uint64(many(20)),
		},
		{
			sentence: "compression bombs that are within limits.max_message",
			options: func(o *Options) {
				o.Endpoints[0].Compression.Enabled = true
				o.Limits.DecompressedBytesPerSecond = 64 << 10
			},
			run: func(t *testing.T, s *Server) {
				bomb := masked(0xc2, deflated(t, strings.Repeat("\x00", 1<<20)))
				raid(t, s, many(20), func(conn net.Conn) {
					if enter(conn, "/echo", "Sec-WebSocket-Extensions: permessage-deflate") {
						for range 4 {
							_, _ = conn.Write(bomb)
						}
						untilEnd(conn)
					}
				})
			},
			counted: cutFor(CutDecompressionRate), at: uint64(many(20)),
		},
		{
			sentence: "announcements of what never comes",
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(200), func(conn net.Conn) {
					if enter(conn, "/echo") {
						_, _ = conn.Write(header(0x82, 1<<40))
						untilEnd(conn)
					}
				})
			},
			options: func(o *Options) { o.Limits.CloseTimeout = few },
			counted: closedWith(codec.CloseMessageTooBig), at: uint64(many(200)),
		},
		{
			sentence: "peers that vanish without a close",
			options: func(o *Options) {
				o.Ping = Ping{Interval: few, Timeout: enough, Jitter: -1}
				o.Limits.CloseTimeout = few
			},
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(150), func(conn net.Conn) {
					if enter(conn, "/echo") {
						untilEnd(conn)
					}
				})
			},
			counted: cutFor(CutPingTimeout), at: uint64(many(150)),
		},
		{
			sentence: "subscribers that never read",
			options:  func(o *Options) { o.Limits.CloseTimeout = few },
			run: func(t *testing.T, s *Server) {
				flood(t, s, 20, func() bool { return s.Stats().Cuts[CutSlowConsumer] >= 20 })
			},
			counted: cutFor(CutSlowConsumer), at: 20,
		},
		{
			sentence: "subscribers that never read, whatever may wait for them",
			options: func(o *Options) {
				o.Limits.WriteTimeout = few
				o.Endpoints[2].SlowConsumer = SlowConsumer{Policy: PolicyDropOldest, MaxQueue: 256 << 10}
			},
			run: func(t *testing.T, s *Server) {
				flood(t, s, 20, func() bool { return s.Stats().Cuts[CutWriteTimeout] >= 20 })
			},
			counted: cutFor(CutWriteTimeout), at: 20,
		},
		{
			sentence: "so much for those who never read that memory is short",
			options: func(o *Options) {
				o.Endpoints[2].SlowConsumer.MaxQueue = -1
				o.Limits.MaxMemory, o.Limits.CloseTimeout = Size(memoryUsed()+48<<20), few
			},
			change: watchful,
			run: func(t *testing.T, s *Server) {
				flood(t, s, 8, func() bool { return s.Stats().Cuts[CutMemory] >= 8 })
				eventually(t, "newcomers are welcome again", func() bool { return !s.memory.over.Load() })
			},
			counted: cutFor(CutMemory), at: 8,
		},
		{
			sentence: "messages that make a handler panic",
			options: func(o *Options) {
				o.Endpoints = append(o.Endpoints, Endpoint{Path: "/fragile", Handler: Handler{Message: func(*Conn, Opcode, []byte) { panic("kaboom") }}})
			},
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(300), func(conn net.Conn) {
					if enter(conn, "/fragile") {
						_, _ = conn.Write(text("now"))
						untilEnd(conn)
					}
				})
			},
			counted: func(st Stats) uint64 { return st.Panics }, at: uint64(many(300)),
		},
		{
			sentence: "requests to subscribe and to publish without end",
			options: func(o *Options) {
				o.Limits.RequestsPerSecond, o.Limits.PublishesPerSecond = 10, 2000
			},
			run: func(t *testing.T, s *Server) {
				raid(t, s, 10, func(conn net.Conn) {
					if enter(conn, "/ws", speakJSON) {
						var reading sync.WaitGroup
						reading.Go(func() { untilEnd(conn) })
						pour(conn, repeat(text(`{"id":1,"history":{"topic":"x"}}`), 200), many(400<<10))
						_, _ = conn.Write(masked(0x88, nil))
						reading.Wait()
					}
				})
			},
			counted: func(st Stats) uint64 { return st.Limited }, at: uint64(many(10_000)),
		},
		{
			sentence: "requests that make no sense, without end",
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(20), func(conn net.Conn) {
					if enter(conn, "/ws", speakJSON) {
						go untilEnd(conn)
						pour(conn, repeat(text(`{"id":1,"subscribe":[]}`), 200), 8<<20)
					}
				})
			},
			counted: cutFor(CutMistakes), at: uint64(many(20)),
		},
		{
			sentence: "requests to subscribe to what a client has already, without end",
			run: func(t *testing.T, s *Server) {
				raid(t, s, many(20), func(conn net.Conn) {
					if enter(conn, "/ws", speakJSON) {
						go untilEnd(conn)
						pour(conn, repeat(text(`{"subscribe":{"topic":"x"}}`), 200), 8<<20)
					}
				})
			},
			counted: cutFor(CutMistakes), at: uint64(many(20)),
		},
		{
			sentence: "large answers that are not waited for",
			options:  func(o *Options) { o.Topics = []TopicRule{{Match: "past", History: 1000}} },
			run: func(t *testing.T, s *Server) {
				for range 1000 {
					mustPublish(t, s, "past", strings.Repeat("x", 100))
				}
				raid(t, s, 4, func(conn net.Conn) {
					if enter(conn, "/ws", speakJSON) {
						pour(conn, repeat(text(`{"history":{"topic":"past","limit":1000}}`), 1000), many(1<<20))
						_, _ = conn.Write(text(`{"id":1,"ping":{}}`))
						_, _ = conn.Read(make([]byte, 1))
					}
				})
			},
			counted: func(st Stats) uint64 { return st.MessagesIn }, at: uint64(many(4 << 20 / 60)),
		},
	} {
		t.Run(row.sentence, row.against)
	}
}

// flood broadcasts to strangers who never read until that is done.
func flood(t *testing.T, s *Server, n int, done func() bool) {
	t.Helper()
	ended := make(chan struct{})
	var strangers sync.WaitGroup
	strangers.Go(func() {
		raid(t, s, n, func(conn net.Conn) {
			_ = conn.(*net.TCPConn).SetReadBuffer(4096)
			if enter(conn, "/broadcast") {
				<-ended
			}
		})
	})
	eventually(t, "all are there", func() bool { return s.Count() == n+3 })
	payload := make([]byte, 256<<10)
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("it is not enough: %+v", s.Stats())
			break
		}
		_ = s.Broadcast("/broadcast", Binary, payload) // it may be overloaded
	}
	close(ended)
	strangers.Wait()
}

// failedHandshakes is how many the next test makes: a million with the variable, some minutes under the race
// detector.
func failedHandshakes() int {
	if n, err := strconv.Atoi(os.Getenv("CARILLON_TEST_HANDSHAKES")); err == nil {
		return n
	}
	return many(20_000)
}

// Strangers ask for what they do not get, thousands of times, each on a connection of its own.
func TestFailedHandshakes(t *testing.T) {
	requests := []string{
		upgradeHead("/nowhere"),
		"GET /echo HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"POST /echo HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		upgradeHead("/echo", "Origin: https://evil.example"),
		"GET /echo HTTP/1.1\r\n",
	}
	n := failedHandshakes()
	began := time.Now()
	attack{
		run: func(t *testing.T, s *Server) {
			var all sync.WaitGroup
			const hands = 16
			for hand := range hands {
				all.Go(func() {
					// Each hand has an address of its own, so that ports do not run out.
					dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(hand+1))}}
					answer := make([]byte, 4096)
					for i := hand; i < n; i += hands {
						conn, err := dialer.Dial("tcp", s.Addr().String())
						if err != nil {
							t.Error(err)
							return
						}
						_ = conn.SetDeadline(time.Now().Add(patience))
						request := requests[i%len(requests)]
						_, _ = io.WriteString(conn, request)
						if strings.HasSuffix(request, "\r\n\r\n") {
							if got, _ := conn.Read(answer); !strings.HasPrefix(string(answer[:got]), "HTTP/1.1 4") {
								t.Errorf("%.40q is answered %.40q", request, answer[:got])
							}
						}
						_ = conn.(*net.TCPConn).SetLinger(0) // no port is left behind
						_ = conn.Close()
					}
				})
			}
			all.Wait()
		},
		counted: refusalsOf, at: uint64(n),
	}.against(t)
	t.Logf("%d handshakes failed in %v", n, time.Since(began).Round(time.Millisecond))
}
