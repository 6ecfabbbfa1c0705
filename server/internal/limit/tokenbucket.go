// Package limit bounds what clients may do: how often, and how many from one address.
package limit

import (
	"math"
	"sync"
	"time"
)

// TokenBucket is how often something may happen. The caller keeps the debt of each bucket, in 4 bytes: the time, in
// multiples of [Unit], that must go by until it is full again. (The limiters of
// golang.org/x/time/rate take 80 bytes and a lock each; a million connections would have two.)
type TokenBucket struct {
	charge float64 // units for one token; 0 is no limit
	max    uint32  // units: the debt of a bucket that is empty
}

// Unit is the unit of debts.
const Unit = 100 * time.Nanosecond

// NewTokenBucket allows rate tokens a second, and at once as many as fit into burst; rate < 0 is no limit.
func NewTokenBucket(rate int64, burst time.Duration) TokenBucket {
	if rate < 0 {
		return TokenBucket{}
	}
	return TokenBucket{charge: float64(time.Second/Unit) / float64(rate), max: uint32(burst / Unit)}
}

// Limited reports whether there is a limit.
func (b TokenBucket) Limited() bool { return b.charge > 0 }

// Allow charges a bucket for n tokens, or returns false if there are not enough in it. More than it can
// ever hold is granted when it is full, and has to be paid for before anything else is.
func (b TokenBucket) Allow(debt *uint32, n int) bool {
	charge := math.Floor(float64(n) * b.charge)
	if float64(*debt)+min(charge, float64(b.max)) > float64(b.max) {
		return false
	}
	*debt = uint32(min(float64(*debt)+charge, math.MaxUint32))
	return true
}

// Decay returns the debt that is left after some milliseconds.
func Decay(debt, passed uint32) uint32 {
	const each = uint32(time.Millisecond / Unit)
	if passed >= debt/each+1 {
		return 0
	}
	return debt - min(debt, passed*each)
}

// SharedBucket is a bucket that any goroutine may take from.
type SharedBucket struct {
	begin time.Time // of the clock

	mu       sync.Mutex
	debt, at uint32 // guarded by mu
}

// NewSharedBucket returns a full bucket. It reads the clock from begin on.
func NewSharedBucket(begin time.Time) *SharedBucket { return &SharedBucket{begin: begin} }

// Allow charges the bucket for one token, or returns false if it is empty.
func (b *SharedBucket) Allow(p TokenBucket) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := uint32(time.Since(b.begin).Milliseconds())
	b.debt, b.at = Decay(b.debt, now-b.at), now
	return p.Allow(&b.debt, 1)
}
