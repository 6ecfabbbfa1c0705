package server

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"carillon/internal/shrink"
)

// httpTurns bounds how many requests of plain HTTP are served at once while many others wait. Go's scheduler serves
// all goroutines alike, so hundreds of connections with one request upon the other would leave an event loop one part
// in hundreds of the processors. A request that takes long, because it waits or computes, does not count any more
// after that time, so that the others need not wait for it.
type httpTurns struct {
	requests atomic.Int64 // that are served or wait

	mu      sync.Mutex
	most    int // turns at once
	time    time.Duration
	held    []*httpTurn             // those that count, in the order in which they began
	waiting shrink.Queue[*httpTurn] // in the order in which they came
	timer   *time.Timer             // set while any wait
}

// httpTurn is that of a connection, which has one request at a time.
type httpTurn struct {
	busy    atomic.Bool   // counts in httpTurns.requests
	granted chan struct{} // nil before the connection's first turn
	began   time.Time
}

// httpTurnsFrom is the number of requests at once above which those that come wait for a turn. The loops do not
// notice fewer.
const httpTurnsFrom = 16

// newHTTPTurns leaves a processor to the event loops.
func newHTTPTurns() *httpTurns {
	return &httpTurns{most: max(1, runtime.GOMAXPROCS(0)-1), time: 250 * time.Microsecond}
}

// take waits for the connection's turn, if there are many requests. The connection's goroutine calls it.
func (h *httpTurns) take(t *httpTurn) {
	t.busy.Store(true)
	if h.requests.Add(1) <= httpTurnsFrom {
		return
	}
	h.mu.Lock()
	if t.granted == nil {
		t.granted = make(chan struct{}, 1)
	}
	h.waiting.Push(t)
	h.next()
	h.mu.Unlock()
	<-t.granted
}

// leave ends the connection's request, if it has one, and its turn, if it has one that counts.
func (h *httpTurns) leave(t *httpTurn) {
	if !t.busy.Swap(false) {
		return
	}
	h.requests.Add(-1)
	if t.granted == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(t)
	h.next()
}

// remove ends a turn that counts. The caller holds mu.
func (h *httpTurns) remove(t *httpTurn) {
	for i, other := range h.held {
		if other == t {
			h.held = append(h.held[:i], h.held[i+1:]...)
			return
		}
	}
}

// grant begins a turn. The caller holds mu.
func (h *httpTurns) grant(t *httpTurn) {
	t.began = time.Now()
	h.held = append(h.held, t)
	t.granted <- struct{}{}
}

// next begins the turns that may begin. The caller holds mu.
func (h *httpTurns) next() {
	for h.waiting.Len() > 0 && len(h.held) < h.most {
		h.grant(h.waiting.Pop())
	}
	if h.waiting.Len() > 0 {
		h.setTimer()
	}
}

// setTimer has expire called when the oldest turn ceases to count. The caller holds mu, and there is one.
func (h *httpTurns) setTimer() {
	wait := time.Until(h.held[0].began.Add(h.time))
	if h.timer == nil {
		h.timer = time.AfterFunc(wait, h.expire)
	} else {
		h.timer.Reset(wait)
	}
}

// expire has turns begin in the place of those that have taken long.
func (h *httpTurns) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.waiting.Len() > 0 && len(h.held) > 0 && time.Since(h.held[0].began) >= h.time {
		h.held = append(h.held[:0], h.held[1:]...)
		h.next()
	}
}
