package generator

import (
	"math/rand/v2"
	"time"
)

// reconnector runs the storm: each connection that was closed reconnects after a random delay that grows
// with every failure ("full jitter").
type reconnector struct {
	running  bool
	cutNext  int // the next connection that the tool closes
	returns  int // connections that have reconnected
	retries  map[int64][]int32
	tick     int64 // retries up to here have been made
	back     []int64
	failedBy map[string]int
}

const (
	retryTick = 5 * time.Millisecond // resolution of the delays
	maxCuts   = 256                  // per turn
)

func (r *reconnector) start(w *worker, at int64) {
	r.running = true
	r.retries, r.failedBy = map[int64][]int32{}, map[string]int{}
	r.tick = at / int64(retryTick)
	if w.spec.CutBy == "tool" {
		w.CutAt = at
	} else {
		r.cutNext = len(w.conns)
	}
}

// turn closes connections and starts the attempts that are due.
func (r *reconnector) turn(w *worker, now int64) (next int64) {
	next = now + int64(idleTurn)
	for n := 0; r.cutNext < len(w.conns); n++ {
		if n == maxCuts {
			next = now
			break
		}
		if c := &w.conns[r.cutNext]; c.member && c.state == stateOpen && !c.back {
			w.close(c)
			r.later(w, r.cutNext)
		}
		r.cutNext++
	}
	for ; r.tick < now/int64(retryTick); r.tick++ {
		for _, i := range r.retries[r.tick] {
			w.Attempts++
			w.dialer.start(w, int(i), Monotonic())
		}
		delete(r.retries, r.tick)
	}
	w.dialer.expire(w, now)
	if len(r.retries) > 0 {
		next = min(next, (r.tick+1)*int64(retryTick))
	}
	return next
}

// cut handles a connection that the server has closed.
func (r *reconnector) cut(w *worker, i int) {
	if w.CutAt == 0 {
		w.CutAt = Monotonic()
	}
	r.later(w, i)
}

func (r *reconnector) failed(w *worker, i int, reason string) {
	count(r.failedBy, reason)
	r.later(w, i)
}

// later schedules the next attempt of a connection.
func (r *reconnector) later(w *worker, i int) {
	c := &w.conns[i]
	delay := min(w.spec.Backoff<<min(c.tries, 20), w.spec.MaxDelay)
	c.tries = min(c.tries+1, 20)
	at := Monotonic() + rand.Int64N(int64(delay))
	tick := max(at/int64(retryTick), r.tick) + 1
	r.retries[tick] = append(r.retries[tick], int32(i))
}

func (r *reconnector) returned(c *conn, now int64) {
	c.tries = 0
	if !c.back {
		c.back = true
		r.returns++
		r.back = append(r.back, now)
	}
}

// done reports whether all connections are back.
func (r *reconnector) done(w *worker) bool {
	return r.running && w.Members > 0 && r.returns == w.Members && w.Open == w.Members
}
