package server

import (
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// While many requests wait, no more are served at once than there are turns, in the order of arrival.
func TestHTTPTurnsAreBounded(t *testing.T) {
	const most = 3
	h := &httpTurns{most: most, time: time.Hour}
	var few [httpTurnsFrom]httpTurn
	for i := range few {
		h.take(&few[i]) // few enough to need no turn
	}
	var running, seen, served atomic.Int64
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			var turn httpTurn
			for range 20 {
				h.take(&turn)
				n := running.Add(1)
				for was := seen.Load(); n > was && !seen.CompareAndSwap(was, n); was = seen.Load() {
				}
				runtime.Gosched()
				running.Add(-1)
				served.Add(1)
				h.leave(&turn)
			}
		})
	}
	all.Wait()
	for i := range few {
		h.leave(&few[i])
	}
	if n := seen.Load(); n > most {
		t.Errorf("%d requests were served at once, %d may be", n, most)
	}
	if h.requests.Load() != 0 || len(h.held) > 0 || h.waiting.Len() > 0 {
		t.Errorf("%d requests, %d turns are held, %d wait", h.requests.Load(), len(h.held), h.waiting.Len())
	}
}

// Connections of plain HTTP whose requests have been served, cut or given back leave nothing.
func TestHTTPTurnsAreLeft(t *testing.T) {
	release := make(chan struct{})
	s := start(t, Options{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	})})
	turns := s.plain.turns
	var conns []*client
	for range 2 * httpTurnsFrom {
		c := dialRaw(t, s)
		c.write([]byte("GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		conns = append(conns, c)
	}
	eventually(t, "all requests wait", func() bool { return turns.requests.Load() == 2*httpTurnsFrom })
	for _, c := range conns[:httpTurnsFrom] {
		_ = c.conn.Close()
	}
	eventually(t, "half have gone", func() bool { return turns.requests.Load() == httpTurnsFrom })
	close(release)
	eventually(t, "none is left", func() bool {
		turns.mu.Lock()
		defer turns.mu.Unlock()
		return turns.requests.Load() == 0 && len(turns.held) == 0 && turns.waiting.Len() == 0
	})
}

// A request that waits for something else keeps no other from a turn for longer than a turn.
func TestHTTPTurnsOfThoseThatWaitEnd(t *testing.T) {
	h := &httpTurns{most: 1, time: time.Millisecond}
	h.requests.Store(httpTurnsFrom)
	release, done := make(chan struct{}), make(chan struct{})
	var slow [5]httpTurn
	for i := range slow {
		h.take(&slow[i])
		go func() {
			<-release
			h.leave(&slow[i])
			done <- struct{}{}
		}()
	}
	var quick httpTurn
	h.take(&quick)
	h.leave(&quick)
	close(release)
	for range slow {
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("a turn does not end")
		}
	}
	h.leave(&quick) // once more changes nothing
	if len(h.held) > 0 || h.waiting.Len() > 0 {
		t.Errorf("%d turns are held, %d wait", len(h.held), h.waiting.Len())
	}
}
