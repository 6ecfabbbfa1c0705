package server

import (
	"context"
	"log/slog"
	"net/netip"

	"carillon/server/internal/logs"
)

// What clients do is logged at debug level, and what they provoke, such as a panic, at any: neither must
// be able to fill the log. Of each kind so many a second are written, and the next line that is says how
// many were left out before it.
const (
	maxEvents = 100
	maxGrave  = 10
)

// logsEvents reports whether logEvent would write anything, so that its arguments need not be made for
// nothing.
func (s *Server) logsEvents() bool {
	return s.log.Enabled(context.Background(), slog.LevelDebug)
}

// logEvent logs what happened to one connection.
func (s *Server) logEvent(what string, args ...any) {
	s.logSome(s.ops.events, slog.LevelDebug, what, args)
}

// logLoss logs a connection that failed on its way between a loop and net/http.
func (s *Server) logLoss(what string, remote netip.AddrPort, err error) {
	if s.logsEvents() {
		s.logEvent(what, "remote", shownAddr(remote), "error", err)
	}
}

// logGrave logs a mistake that a client may be able to provoke.
func (s *Server) logGrave(what string, args ...any) {
	s.logSome(s.ops.grave, slog.LevelError, what, args)
}

func (s *Server) logSome(from *logs.Sampler, level slog.Level, what string, args []any) {
	if ok, silent := from.Take(s.uptime()); ok {
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
	return s.ops.events.Omitted() + s.ops.grave.Omitted() + s.ops.origins.Omitted()
}

// netLog takes what net/http has to say about connections: mostly panics, with their stacks.
type netLog struct{ srv *Server }

const maxNetworkLog = 8 << 10

func (l netLog) Write(p []byte) (int, error) {
	l.srv.logGrave("net/http", "says", logs.ShortenTo(string(p), maxNetworkLog))
	return len(p), nil
}
