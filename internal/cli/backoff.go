package cli

import (
	"math/rand/v2"
	"time"
)

// backoff says how long to wait before the next attempt to connect. The wait is a random part of a bound
// that doubles: clients that were all cut off at once must not all come back at once.
type backoff struct{ failures int }

const (
	firstBackoff = 250 * time.Millisecond
	maxBackoff   = 30 * time.Second
)

// bound is the longest that the next wait can be.
func (b *backoff) bound() time.Duration {
	if b.failures > 10 { // the shift below stays small
		return maxBackoff
	}
	return min(maxBackoff, firstBackoff<<b.failures)
}

func (b *backoff) next() time.Duration {
	wait := rand.N(b.bound() + 1)
	b.failures++
	return wait
}

// survived notes how long a connection lasted. Only one that outlives the longest wait makes the next one
// short again: a server that takes connections and drops them must not be hammered.
func (b *backoff) survived(d time.Duration) {
	if d > maxBackoff {
		b.failures = 0
	}
}
