package server

import (
	"math"
	"sync"
	"time"
)

// pace is how often something may happen: a token bucket. What is kept for each bucket is only its debt,
// in 4 bytes: the time, in units of paceUnit, that must go by until it is full again. (The limiters of
// golang.org/x/time/rate take 80 bytes and a lock each; a million connections would have two.)
type pace struct {
	charge float64 // units for one time; 0 is no limit
	most   uint32  // units: the debt of a bucket that is empty
}

const paceUnit = 100 * time.Nanosecond

// newPace allows so many in each second, and at once as many as in burst; rate < 0 is no limit.
func newPace(rate int64, burst time.Duration) pace {
	if rate < 0 {
		return pace{}
	}
	return pace{charge: float64(time.Second/paceUnit) / float64(rate), most: uint32(burst / paceUnit)}
}

func (p pace) limited() bool { return p.charge > 0 }

// take charges the bucket for n at once, or is false when there is not enough in it. More than it can
// ever hold is granted when it is full, and has to be paid for before anything else is.
func (p pace) take(debt *uint32, n int) bool {
	charge := math.Floor(float64(n) * p.charge)
	if float64(*debt)+min(charge, float64(p.most)) > float64(p.most) {
		return false
	}
	*debt = uint32(min(float64(*debt)+charge, math.MaxUint32))
	return true
}

// relax is the debt that is left after some milliseconds.
func relax(debt, passed uint32) uint32 {
	const each = uint32(time.Millisecond / paceUnit)
	if passed >= debt/each+1 {
		return 0
	}
	return debt - min(debt, passed*each)
}

// bucket is one that all loops take from.
type bucket struct {
	begin time.Time // of the clock

	mu       sync.Mutex
	debt, at uint32 // guarded by mu
}

func (b *bucket) take(p pace) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := uint32(time.Since(b.begin).Milliseconds())
	b.debt, b.at = relax(b.debt, now-b.at), now
	return p.take(&b.debt, 1)
}

// How much may come at once. What a client could not send while its network was away for a moment is no
// reason to close its connection.
const (
	handshakeBurst = time.Second
	messageBurst   = 10 * time.Second
)
