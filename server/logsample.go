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
func (e *engine) logsEvents() bool {
	return e.log.Enabled(context.Background(), slog.LevelDebug)
}

// logEvent logs what happened to one connection.
func (e *engine) logEvent(what string, args ...any) {
	e.logSome(e.events, slog.LevelDebug, what, args)
}

// logLoss logs a connection that failed on its way between a loop and net/http.
func (e *engine) logLoss(what string, remote netip.AddrPort, err error) {
	if e.logsEvents() {
		e.logEvent(what, "remote", shownAddr(remote), "error", err)
	}
}

// logGrave logs a mistake that a client may be able to provoke.
func (e *engine) logGrave(what string, args ...any) {
	e.logSome(e.grave, slog.LevelError, what, args)
}

func (e *engine) logSome(from *logs.Sampler, level slog.Level, what string, args []any) {
	if ok, silent := from.Take(e.uptime()); ok {
		e.logSampled(level, what, args, silent)
	}
}

// logSampled writes a line before which so many were left out.
func (e *engine) logSampled(level slog.Level, what string, args []any, silent uint64) {
	if silent > 0 {
		args = append(args, "omitted", silent)
	}
	e.logAt(level, what, args)
}

func (e *engine) logAt(level slog.Level, what string, args []any) {
	e.log.Log(context.Background(), level, what, args...)
}
