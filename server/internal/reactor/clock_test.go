package reactor

import (
	"testing"
	"time"
)

// Stamps wrap, and the time between two of them does not.
func TestStampsWrap(t *testing.T) {
	const day = 24 * time.Hour
	for _, d := range []time.Duration{0, time.Microsecond, time.Second, 70 * time.Minute} {
		for _, from := range []time.Duration{0, time.Hour, 71*time.Minute + 34*time.Second, 72 * time.Minute, 100 * day} {
			if got := time.Duration(stampOf(from+d)-stampOf(from)) * time.Microsecond; got != d {
				t.Errorf("from %v, %v became %v", from, d, got)
			}
		}
	}
}
