package server

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"carillon/server/internal/logs"
)

// mostOrigins limits the lines about refused origins in a minute: clients can invent origins.
const mostOrigins = 60

// originLog samples log lines about refused origins: one for each origin and minute.
type originLog struct {
	omitted atomic.Uint64 // lines beyond mostOrigins

	mu     sync.Mutex
	minute time.Duration
	seen   map[string]bool // guarded by mu: logged in this minute
	silent uint64          // guarded by mu: omitted since the last line
}

// omittedLines is how many lines were left out.
func (l *originLog) omittedLines() uint64 { return l.omitted.Load() }

// take reports whether a line about the origin may be written, and how many before it were omitted.
func (l *originLog) take(origin string, now time.Duration) (ok bool, silent uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if minute := now / time.Minute; minute != l.minute || l.seen == nil {
		l.minute, l.seen = minute, map[string]bool{}
	}
	switch {
	case l.seen[origin]:
		return false, 0
	case len(l.seen) == mostOrigins:
		l.silent++
		l.omitted.Add(1)
		return false, 0
	}
	l.seen[origin] = true
	silent, l.silent = l.silent, 0
	return true, silent
}

// logOrigin logs that a page was refused because of its origin, and which settings would let it in.
func (s *Server) logOrigin(path string, r *Request) {
	text, _ := originHeader(&r.Request)
	origin := logs.Shorten(string(text))
	ok, silent := s.ops.origins.take(origin, s.elapsed())
	if !ok {
		return
	}
	args := []any{"origin", origin, "path", path, "host", logs.Shorten(string(r.Host)), "remote", shownAddr(r.RemoteAddr)}
	s.logSampled(slog.LevelInfo, "origin refused: add it to endpoints[].origins to allow it, or set public_url if it is this server's own", args, silent)
}
