package server

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// What clients do is logged at debug level, and what they provoke, such as a panic, at any: neither must
// be able to fill the log. Of each kind so many a second are written, and the next line that is says how
// many were left out before it.
const (
	mostEvents = 100
	mostGrave  = 10
)

// sampler lets some lines of each second through.
type sampler struct {
	most    int
	omitted atomic.Uint64

	mu     sync.Mutex
	second time.Duration
	lines  int
	silent uint64 // left out since the last line
}

// take says whether a line may be written, and how many before it were not.
func (s *sampler) take(now time.Duration) (ok bool, silent uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if second := now / time.Second; second != s.second {
		s.second, s.lines = second, 0
	}
	if s.lines == s.most {
		s.silent++
		s.omitted.Add(1)
		return false, 0
	}
	s.lines++
	silent, s.silent = s.silent, 0
	return true, silent
}

// logsEvents says whether logEvent would write anything, so that its arguments need not be made for
// nothing.
func (s *Server) logsEvents() bool {
	return s.log.Enabled(context.Background(), slog.LevelDebug)
}

// logEvent logs what happened to one connection.
func (s *Server) logEvent(what string, args ...any) {
	s.logSome(&s.ops.events, slog.LevelDebug, what, args)
}

// logLoss logs a connection that failed on its way between a loop and net/http.
func (s *Server) logLoss(what string, remote netip.AddrPort, err error) {
	if s.logsEvents() {
		s.logEvent(what, "remote", shownAddr(remote), "error", err)
	}
}

// logGrave logs a mistake that a client may be able to provoke.
func (s *Server) logGrave(what string, args ...any) {
	s.logSome(&s.ops.grave, slog.LevelError, what, args)
}

func (s *Server) logSome(from *sampler, level slog.Level, what string, args []any) {
	if ok, silent := from.take(s.elapsed()); ok {
		s.logSampled(level, what, args, silent)
	}
}

// logSampled writes a line before which so many were left out.
func (s *Server) logSampled(level slog.Level, what string, args []any, silent uint64) {
	if silent > 0 {
		args = append(args, "omitted", silent)
	}
	s.logAt(level, what, args)
}

func (s *Server) logAt(level slog.Level, what string, args []any) {
	s.log.Log(context.Background(), level, what, args...)
}

// omitted is how many lines were left out.
func (s *Server) omitted() uint64 {
	return s.ops.events.omitted.Load() + s.ops.grave.omitted.Load() + s.ops.origins.omitted.Load()
}

// mostShown is how much of a client's text gets into one line of the log. To escape it is the handler's
// part, as it is for all text; those of log/slog do.
const mostShown = 200

func shown(s string) string { return shownUpTo(s, mostShown) }

func shownUpTo(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "..."
}

// netLog takes what net/http has to say about connections: mostly panics, with their stacks.
type netLog struct{ srv *Server }

const mostOfNet = 8 << 10

func (l netLog) Write(p []byte) (int, error) {
	l.srv.logGrave("net/http", "says", shownUpTo(string(p), mostOfNet))
	return len(p), nil
}
