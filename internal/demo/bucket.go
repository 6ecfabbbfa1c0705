package demo

import "time"

// bucket is a token bucket. The zero value is full.
type bucket struct {
	tokens float64
	filled time.Time
}

// take reports whether there is a token, and takes it. The rate is in tokens per second.
func (b *bucket) take(now time.Time, rate, burst float64) bool {
	if elapsed := now.Sub(b.filled); elapsed > 0 {
		b.tokens, b.filled = min(burst, b.tokens+rate*elapsed.Seconds()), now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
