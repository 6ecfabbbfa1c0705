package stats

import (
	"sync/atomic"
	"time"
)

// Bounds are the upper ends of a histogram's buckets, in microseconds; what is above the last one has a bucket of its
// own. All histograms have the same bounds, from the times of a quiet loop to those that no client waits for.
var Bounds = [...]uint32{
	50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
	1_000_000, 2_500_000, 5_000_000, 10_000_000,
}

// Buckets is the number of buckets.
const Buckets = len(Bounds) + 1

// Histogram counts times on one loop. The loop adds to plain numbers, and publishes them once in a turn,
// so that an observation costs no atomic operation.
type Histogram struct {
	// Owned by the loop.
	fresh    [Buckets]uint32 // not published yet
	freshSum uint64          // microseconds
	dirty    bool

	// Written by the loop, read by any goroutine.
	Counts [Buckets]atomic.Uint64
	Sum    atomic.Uint64 // microseconds
}

// Observe counts a time in microseconds.
func (h *Histogram) Observe(us uint32) {
	i := 0
	for i < len(Bounds) && us > Bounds[i] {
		i++
	}
	h.fresh[i]++
	h.freshSum += uint64(us)
	h.dirty = true
}

// Publish makes what was observed visible to other goroutines.
func (h *Histogram) Publish() {
	if !h.dirty {
		return
	}
	for i, n := range h.fresh {
		if n > 0 {
			h.Counts[i].Add(uint64(n))
		}
	}
	h.Sum.Add(h.freshSum)
	h.fresh, h.freshSum, h.dirty = [Buckets]uint32{}, 0, false
}

// Histograms are those of one loop.
type Histograms struct {
	Turn      Histogram   // from a turn's begin to its end
	Lag       Histogram   // from a wake-up to the turn that it asks for
	Handshake Histogram   // from accept to the answer
	TLS       Histogram   // from a client's first message to the end of its TLS handshake
	Flushed   []Histogram // from a message's publication to the last write of its pass, by the kind of the audience
}

// Publish publishes all of them.
func (m *Histograms) Publish() {
	m.Turn.Publish()
	m.Lag.Publish()
	m.Handshake.Publish()
	m.TLS.Publish()
	for i := range m.Flushed {
		m.Flushed[i].Publish()
	}
}

// Since counts the time from a moment to now; one that is too long for the clock counts as an hour.
func (h *Histogram) Since(from, now time.Duration) {
	h.Observe(uint32(min(max(now-from, 0), time.Hour) / time.Microsecond))
}
