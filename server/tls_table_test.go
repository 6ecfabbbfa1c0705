package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// setGrace changes how long a silent handshake may stay in a full table.
func setGrace(t *reactor.TLSTable, d time.Duration) {
	t.Mu.Lock()
	defer t.Mu.Unlock()
	t.Grace = d
}

// halfOpen keeps n TLS handshakes open that never go on, from the addresses that a function tells, until stop is
// called. One that the server ends is begun anew.
func halfOpen(t testing.TB, s *Server, n int, hello []byte, from func(int) net.IP) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i := range n {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from(i)}}
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := dialer.DialContext(ctx, "tcp", s.Addr().String())
				if err != nil {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				end := context.AfterFunc(ctx, func() { _ = conn.Close() })
				_, _ = conn.Write(hello)
				_, _ = io.Copy(io.Discard, conn)
				end()
				_ = conn.(*net.TCPConn).SetLinger(0) // no port is left behind
				_ = conn.Close()
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

func oneAddress(int) net.IP { return net.IPv4(127, 0, 0, 66) }

func manyAddresses(i int) net.IP { return net.IPv4(127, 1, byte(i>>8), byte(i)) }

// comesIn opens a WebSocket over TLS, has one echo, and reports whether all of that took less than the limit.
func comesIn(s *Server, config *tls.Config, limit time.Duration) bool {
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	secured := tls.Client(conn, config)
	if !enter(secured, "/echo") {
		return false
	}
	if _, err := secured.Write(text("hello")); err != nil {
		return false
	}
	b := make([]byte, 7)
	_, err = io.ReadFull(bufio.NewReader(secured), b)
	return err == nil && string(b[2:]) == "hello"
}

// Twelve hundred clients begin a TLS handshake and say nothing more, from one address or each from its own, and come
// back whenever they are closed. Others come in all the same, with the limits as they are by default.
func TestTLSHalfOpen(t *testing.T) {
	const newcomers = 120
	strangers, limits, least := 1200, Limits{}, int64(newcomers*11/12)
	if testenv.Race { // so many handshakes would take longer than they may, and the few may on a busy machine
		strangers, limits.MaxTLSHandshakes, least = 150, 128, newcomers/2
	}
	a := newAuthority(t)
	for name, from := range map[string]func(int) net.IP{"one address": oneAddress, "many addresses": manyAddresses} {
		t.Run(name, func(t *testing.T) {
			s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast(), Limits: limits, Logger: silent()}))
			most := s.opts().Limits.MaxTLSHandshakes
			stop := halfOpen(t, s, strangers, helloOf(t, a.client()), from)
			defer stop()
			eventually(t, "the table is full", func() bool { n, _ := s.engine.TLSTable.Counts(); return n == most })
			var in atomic.Int64
			var all sync.WaitGroup
			for range newcomers {
				all.Go(func() {
					if comesIn(s, a.client(), 8*time.Second) { // less than handshake_timeout, which would make room
						in.Add(1)
					}
				})
				time.Sleep(20 * time.Millisecond)
			}
			all.Wait()
			if n := in.Load(); n < least {
				t.Errorf("%d of %d newcomers came in", n, newcomers)
			}
			if s.Stats().Refusals[RefuseTLSEvicted] == 0 {
				t.Error("no handshake was evicted")
			}
			stop()
			eventually(t, "nothing is kept", func() bool {
				open, waiting := s.engine.TLSTable.Counts()
				return open+waiting == 0 && s.Stats().Sockets == 0 && sizeOf(s.engine.TLSTable) == 0
			})
		})
	}
}

// sizeOf is how many places of the table are used.
func sizeOf(t *reactor.TLSTable) int {
	t.Mu.Lock()
	defer t.Mu.Unlock()
	return t.Peers.Len() + len(t.Crowded) + t.Turns[reactor.TLSResumed].Len() + t.Turns[reactor.TLSNewcomers].Len() + t.Turns[reactor.TLSBehind].Len()
}

// fullTable is a server whose table has room for so many handshakes.
type fullTable struct {
	*Server
	t     *testing.T
	hello []byte
}

func newFullTable(t *testing.T, most int) *fullTable {
	a := newAuthority(t)
	s, _ := startChanged(t, a.overTLS(Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxTLSHandshakes: most}}), func(s *Server) {
		s.engine.TLSTable.Grace = time.Hour
	})
	return &fullTable{s, t, helloOf(t, a.client())}
}

func (f *fullTable) begin(from string) *client {
	f.t.Helper()
	c := dialFrom(f.t, f.Server, from)
	c.write(f.hello)
	return c
}

// silentCount is how many handshakes wait for their clients.
func silentCount(t *reactor.TLSTable) int {
	t.Mu.Lock()
	defer t.Mu.Unlock()
	return t.Silent.Len()
}

// has waits until so many handshakes are open, all of which wait for their clients, others wait to begin, and so many
// have been evicted.
func (f *fullTable) has(what string, open, waiting int, evicted uint64) {
	f.t.Helper()
	eventually(f.t, what, func() bool {
		o, w := f.engine.TLSTable.Counts()
		return o == open && w == waiting && silentCount(f.engine.TLSTable) == open && f.Stats().Refusals[RefuseTLSEvicted] == evicted
	})
}

// An address that has more than its share of the table loses its oldest at once, and only to others.
func TestTLSEvictionOfTheCrowd(t *testing.T) {
	f := newFullTable(t, 4)
	var crowd []*client
	for i := range 4 {
		crowd = append(crowd, f.begin("127.0.0.2"))
		f.has("it is under way", i+1, 0, 0)
	}
	f.begin("127.0.0.2")
	f.has("its own address makes no room", 4, 1, 0)
	f.begin("127.0.0.3")
	f.has("another does not wait", 4, 1, 1)
	if _, err := io.Copy(io.Discard, crowd[0].conn); err != nil {
		t.Errorf("the oldest is to be closed: %v", err)
	}
}

// Among equals it is the one that has been silent for longest, after the grace.
func TestTLSEvictionAfterTheGrace(t *testing.T) {
	f := newFullTable(t, 4)
	var all []*client
	for i := range 4 {
		all = append(all, f.begin(fmt.Sprintf("127.0.0.%d", 2+i)))
		f.has("it is under way", i+1, 0, 0)
	}
	f.begin("127.0.0.9")
	f.has("it waits", 4, 1, 0)
	setGrace(f.engine.TLSTable, 0)
	f.begin("127.0.0.10")
	f.has("both have come in", 4, 0, 2)
	for _, c := range all[:2] {
		if _, err := io.Copy(io.Discard, c.conn); err != nil {
			t.Errorf("the oldest are to be closed: %v", err)
		}
	}
}

// An address whose handshake came to nothing is evicted in favour of others, and waits behind them, until one of its
// handshakes succeeds.
func TestTLSEvictionOfSuspects(t *testing.T) {
	f := newFullTable(t, 2)
	left := f.begin("127.0.0.2")
	f.has("it is under way", 1, 0, 0)
	_ = left.conn.Close()
	f.has("it is gone", 0, 0, 0)
	f.begin("127.0.0.2")
	f.begin("127.0.0.3")
	f.has("there is room for two", 2, 0, 0)
	f.begin("127.0.0.4")
	f.has("another takes the place of the suspect", 2, 0, 1)
	f.begin("127.0.0.2")
	f.has("which waits now", 2, 1, 1)
}

// The processor is held up while eight handshakes of one address and one of another wait for it: that one is next.
func TestTLSProcessorsGoRoundTheAddresses(t *testing.T) {
	a := newAuthority(t)
	hello := helloOf(t, a.client())
	pair, err := tls.X509KeyPair(a.issue("server.test"))
	if err != nil {
		t.Fatal(err)
	}
	order, held := make(chan string, 16), make(chan struct{})
	config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		host, _, _ := net.SplitHostPort(hello.Conn.RemoteAddr().String())
		order <- host
		<-held
		return &pair, nil
	}}
	s, _ := startChanged(t, Options{TLS: TLS{Config: config}, Endpoints: echoAndBroadcast()}, func(s *Server) { s.engine.TLSTable.Idle = 1 })
	for i := range 9 {
		dialFrom(t, s, "127.0.0.2").write(hello)
		eventually(t, "it has come", func() bool { open, waiting := s.engine.TLSTable.Counts(); return open == 1 && waiting == i })
	}
	dialFrom(t, s, "127.0.0.3").write(hello)
	eventually(t, "the other has come", func() bool { _, waiting := s.engine.TLSTable.Counts(); return waiting == 9 })
	close(held)
	var got []string
	for range 10 {
		got = append(got, <-order)
	}
	if got[1] != "127.0.0.3" {
		t.Errorf("they went on in the order %v", got)
	}
}
