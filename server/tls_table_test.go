package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/internal/testenv"
)

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
				return open+waiting == 0 && s.Stats().Sockets == 0
			})
		})
	}
}

// A client whose place in the full table another one takes is closed, and counted.
func TestTLSEviction(t *testing.T) {
	a := newAuthority(t)
	s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxTLSHandshakes: 2}}))
	s.engine.TLSTable.SetGrace(time.Hour)
	hello := helloOf(t, a.client())
	var crowd []*client
	for i := range 2 {
		c := dialFrom(t, s, "127.0.0.2")
		c.write(hello)
		eventually(t, "it is under way", func() bool { n, _ := s.engine.TLSTable.Counts(); return n == i+1 })
		crowd = append(crowd, c)
	}
	c := dialFrom(t, s, "127.0.0.3")
	c.write(hello)
	if _, err := io.Copy(io.Discard, crowd[0].conn); err != nil {
		t.Errorf("the oldest is to be closed: %v", err)
	}
	eventually(t, "it is counted", func() bool { return s.Stats().Refusals[RefuseTLSEvicted] == 1 })
}
