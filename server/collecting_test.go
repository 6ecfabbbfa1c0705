package server

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"carillon/server/internal/reactor"
)

// A loop collects few large messages at a time, and those that stand still keep no place from others.
func TestLargeMessagesTakePlaces(t *testing.T) {
	const strangers = 3 * reactor.MaxCollecting
	s := start(t, Options{Loops: 1, Endpoints: besieged(), Logger: silent()})
	whole := append(header(0x82, 1<<20), make([]byte, 4+1<<20)...) // of which the first four are its mask
	var all sync.WaitGroup
	goOn := make(chan struct{})
	for range strangers {
		conn := enterEcho(t, s)
		all.Go(func() {
			_, _ = conn.Write(whole[:200_000])
			<-goOn
			if _, err := conn.Write(whole[200_000:]); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() { wantEcho(t, conn) })
	}

	sh := s.engine.AllShards()[0]
	most := 0
	look := func() { // on the loop
		done := make(chan struct{})
		for c := range s.Conns() {
			if err := c.Do(func() {
				defer close(done)
				most = max(most, len(sh.Run.Collecting.Holders))
			}); err != nil {
				t.Fatal(err)
			}
			<-done
			return
		}
	}
	eventually(t, "the places are taken", func() bool { look(); return most >= reactor.MaxCollecting })
	late := enterEcho(t, s)
	all.Go(func() { _, _ = late.Write(whole) })
	wantEcho(t, late)

	close(goOn)
	eventually(t, "all messages are echoed", func() bool { return s.Stats().MessagesIn == strangers+1 })
	all.Wait()
	if look(); most > reactor.MaxCollecting {
		t.Errorf("%d messages were collected at a time, want at most %d", most, reactor.MaxCollecting)
	}
}

func enterEcho(t *testing.T, s *Server) net.Conn {
	t.Helper()
	conn := dialRaw(t, s).conn
	_ = conn.SetDeadline(time.Now().Add(patience))
	if !enter(conn, "/echo") {
		t.Fatal("it does not come in")
	}
	return conn
}

// wantEcho reads as much as the echo of 1 MiB has, with its header.
func wantEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := io.CopyN(io.Discard, conn, 10+1<<20); err != nil {
		t.Errorf("%d bytes of an echo of 1 MiB came: %v", n, err)
	}
}
