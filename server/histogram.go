package server

import (
	"sync/atomic"
	"time"
)

// bounds are the upper ends of a histogram's buckets, in microseconds; what is above the last one has a
// bucket of its own. All histograms have the same, from what a quiet loop does to what nobody waits for.
var bounds = [...]uint32{
	50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
	1_000_000, 2_500_000, 5_000_000, 10_000_000,
}

const buckets = len(bounds) + 1

// histogram counts times on one loop. The loop adds to plain numbers, and publishes them once in a turn,
// so that an observation costs no atomic operation.
type histogram struct {
	// Owned by the loop.
	fresh    [buckets]uint32 // not published yet
	freshSum uint64          // microseconds
	dirty    bool

	// Written by the loop, read by anyone.
	counts [buckets]atomic.Uint64
	sum    atomic.Uint64 // microseconds
}

// observe counts a time in microseconds.
func (h *histogram) observe(us uint32) {
	i := 0
	for i < len(bounds) && us > bounds[i] {
		i++
	}
	h.fresh[i]++
	h.freshSum += uint64(us)
	h.dirty = true
}

func (h *histogram) publish() {
	if !h.dirty {
		return
	}
	for i, n := range h.fresh {
		if n > 0 {
			h.counts[i].Add(uint64(n))
		}
	}
	h.sum.Add(h.freshSum)
	h.fresh, h.freshSum, h.dirty = [buckets]uint32{}, 0, false
}

// meters are the histograms of a shard.
type meters struct {
	turn      histogram   // from a turn's begin to its end
	lag       histogram   // from a ring of the bell to the turn that it asks for
	handshake histogram   // from accept to the answer
	tls       histogram   // from a client's first message to the end of its TLS handshake
	flushed   []histogram // from a message's publication to the last write of its pass, by audience.kind
}

func (m *meters) publish() {
	m.turn.publish()
	m.lag.publish()
	m.handshake.publish()
	m.tls.publish()
	for i := range m.flushed {
		m.flushed[i].publish()
	}
}

// since counts the time from a moment to now; one that is too long for the clock counts as an hour.
func (h *histogram) since(from, now time.Duration) {
	h.observe(uint32(min(max(now-from, 0), time.Hour) / time.Microsecond))
}
