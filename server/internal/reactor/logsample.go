package reactor

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
	MaxEvents = 100
	MaxGrave  = 10
)

// LogsEvents reports whether LogEvent would write anything, so that its arguments need not be made for
// nothing.
func (e *Engine) LogsEvents() bool {
	return e.Log.Enabled(context.Background(), slog.LevelDebug)
}

// LogEvent logs what happened to one connection.
func (e *Engine) LogEvent(what string, args ...any) {
	e.LogSome(e.Events, slog.LevelDebug, what, args)
}

// LogLoss logs a connection that failed on its way between a loop and net/http.
func (e *Engine) LogLoss(what string, remote netip.AddrPort, err error) {
	if e.LogsEvents() {
		e.LogEvent(what, "remote", ShownAddr(remote), "error", err)
	}
}

// LogGrave logs a mistake that a client may be able to provoke.
func (e *Engine) LogGrave(what string, args ...any) {
	e.LogSome(e.Grave, slog.LevelError, what, args)
}

// LogSome logs an event, unless the sampler has had too many.
func (e *Engine) LogSome(from *logs.Sampler, level slog.Level, what string, args []any) {
	if ok, silent := from.Take(e.Uptime()); ok {
		e.LogSampled(level, what, args, silent)
	}
}

// LogSampled writes a line before which so many were left out.
func (e *Engine) LogSampled(level slog.Level, what string, args []any, silent uint64) {
	if silent > 0 {
		args = append(args, "omitted", silent)
	}
	e.logAt(level, what, args)
}

func (e *Engine) logAt(level slog.Level, what string, args []any) {
	e.Log.Log(context.Background(), level, what, args...)
}
