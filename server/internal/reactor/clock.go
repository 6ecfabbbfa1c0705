package reactor

import "time"

// Stamp is a moment in microseconds since the server was made. It is half the size of a time and costs
// nothing to keep beside each message. It wraps after 71 minutes, so that two stamps are only good for
// their difference.
type Stamp uint32

// Uptime is the time since the server was made.
func (e *Engine) Uptime() time.Duration { return time.Since(e.Begin) }

// AgeMillis is the same in milliseconds.
func (e *Engine) AgeMillis() int64 { return e.Uptime().Milliseconds() }

// BornMillis is the age at which a message came to be whose time another clock has told, which says now.
func (e *Engine) BornMillis(t, now time.Time) int64 {
	return e.AgeMillis() - max(now.Sub(t), 0).Milliseconds()
}

// Stamp is the present moment.
func (e *Engine) Stamp() Stamp { return stampOf(e.Uptime()) }

// stampOf is the moment at an uptime. It wraps after 71 minutes.
func stampOf(d time.Duration) Stamp { return Stamp(d / time.Microsecond) }
