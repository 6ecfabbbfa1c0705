package server

import (
	"context"
	"log/slog"
)

// backend is the server as its internal HTTP interface sees it.
type backend struct{ srv *Server }

func (b backend) Token() string     { return string(b.srv.opts().Internal.Token) }
func (b backend) MaxMessage() int64 { return int64(b.srv.opts().Limits.MaxMessage) }

func (b backend) Nodes() []NodeInfo { return b.srv.hub.remote.nodes() }

func (b backend) Drain() drainInfo {
	st := b.srv.Drain()
	info := drainInfo{State: string(st.State), Reason: st.Reason, Listening: st.Listening, Total: st.Total, Remaining: st.Remaining}
	if !st.Began.IsZero() {
		info.Began, info.ETA = st.Began.UnixMilli(), st.ETA.UnixMilli()
	}
	return info
}

// StartDrain does what SIGTERM does to the program.
func (b backend) StartDrain() { b.srv.StartDrain("requested over HTTP", b.srv.opts().Drain.Delay) }

func (b backend) CancelDrain() error { return b.srv.CallOffDrain() }

func (b backend) Maintenance() bool      { return b.srv.ops.maintenance.Load() }
func (b backend) SetMaintenance(on bool) { b.srv.SetMaintenance(on) }
func (b backend) Unready() []condition   { return b.srv.unready() }
func (b backend) Stuck() []condition     { return b.srv.stuck() }

func (b backend) Memory() memoryState {
	limit, source := b.srv.MaxMemory()
	m := &b.srv.memory
	return memoryState{Max: int64(limit), Source: source, Used: m.used.Load(), Held: b.srv.heldBytes(), Refusing: m.refuses()}
}

func (backend) Build() Build { return BuildInfo() }

func (b backend) LogLevel() (level slog.Level, ok bool) {
	if l := b.srv.opts().LogLevel; l != nil {
		return l.Level(), true
	}
	return 0, false
}

func (b backend) SetLogLevel(ctx context.Context, level slog.Level) {
	to := b.srv.opts().LogLevel
	if to == nil {
		return
	}
	was := to.Level()
	to.Set(level)
	b.srv.log.Log(ctx, max(was, level), "log level", "was", was.String(), "is", level.String())
}

func (b backend) LogError(what string, args ...any) { b.srv.logGrave(what, args...) }
