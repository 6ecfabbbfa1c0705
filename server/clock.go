package server

import "time"

// stamp is a moment in microseconds since the server was made. It is half the size of a time and costs
// nothing to keep beside each message. It wraps after 71 minutes, so that two stamps are only good for
// their difference.
type stamp uint32

// uptime is the time since the server was made.
func (e *engine) uptime() time.Duration { return time.Since(e.begin) }

// ageMillis is the same in milliseconds.
func (e *engine) ageMillis() int64 { return e.uptime().Milliseconds() }

// bornMillis is the age at which a message came to be whose time another clock has told, which says now.
func (e *engine) bornMillis(t, now time.Time) int64 {
	return e.ageMillis() - max(now.Sub(t), 0).Milliseconds()
}

func (e *engine) stamp() stamp { return stampOf(e.uptime()) }

func stampOf(d time.Duration) stamp { return stamp(d / time.Microsecond) }
