package auth

import (
	"sync"
	"sync/atomic"
	"time"
)

// maxOrigins limits the lines about refused origins in a minute: clients can invent origins.
const maxOrigins = 60

// OriginLog samples log lines about refused origins: one for each origin and minute. The zero value is ready to use,
// from any goroutine.
type OriginLog struct {
	omitted atomic.Uint64 // lines beyond maxOrigins

	mu     sync.Mutex
	minute time.Duration
	seen   map[string]bool // guarded by mu: logged in this minute
	silent uint64          // guarded by mu: omitted since the last line
}

// Omitted returns how many lines were left out.
func (l *OriginLog) Omitted() uint64 { return l.omitted.Load() }

// Take reports whether a line about the origin may be written, and how many before it were omitted.
func (l *OriginLog) Take(origin string, now time.Duration) (ok bool, silent uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if minute := now / time.Minute; minute != l.minute || l.seen == nil {
		l.minute, l.seen = minute, map[string]bool{}
	}
	switch {
	case l.seen[origin]:
		return false, 0
	case len(l.seen) == maxOrigins:
		l.silent++
		l.omitted.Add(1)
		return false, 0
	}
	l.seen[origin] = true
	silent, l.silent = l.silent, 0
	return true, silent
}
