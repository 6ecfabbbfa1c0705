package server

import (
	"context"
	"log/slog"
	"net/http"

	"carillon/server/internal/admin"
)

// API returns the internal HTTP interface, for applications that serve it themselves, besides or instead of
// [Internal.Listen]. Its paths begin with /v1/, except /metrics, /livez, /readyz and /debug/. It requires
// Internal.Token if that is set, except at /livez and /readyz; otherwise the application has to restrict
// access.
func (s *Server) API() http.Handler {
	return admin.New(backend{s}, s.metricsHandler(), s.opts().Internal.Debug)
}

// backend is the server as its internal HTTP interface sees it.
type backend struct{ srv *Server }

func (b backend) Token() string     { return string(b.srv.opts().Internal.Token) }
func (b backend) MaxMessage() int64 { return int64(b.srv.opts().Limits.MaxMessage) }

func (b backend) Nodes() []NodeInfo { return b.srv.hub.Remote.Nodes() }

func (b backend) Drain() admin.Drain {
	st := b.srv.Drain()
	info := admin.Drain{State: string(st.State), Reason: st.Reason, Listening: st.Listening,
		Total: st.Total, Remaining: st.Remaining}
	if !st.Began.IsZero() {
		info.Began, info.ETA = st.Began.UnixMilli(), st.ETA.UnixMilli()
	}
	return info
}

func (b backend) StartDrain() { b.srv.StartDrain("requested over HTTP", b.srv.opts().Drain.Delay) }

func (b backend) CancelDrain() error { return b.srv.CallOffDrain() }

func (b backend) Maintenance() bool          { return b.srv.ops.maintenance.Load() }
func (b backend) SetMaintenance(on bool)     { b.srv.SetMaintenance(on) }
func (b backend) Unready() []admin.Condition { return b.srv.unready() }
func (b backend) Stuck() []admin.Condition   { return b.srv.stuck() }

func (b backend) Memory() admin.Memory {
	limit, source := b.srv.MaxMemory()
	m := &b.srv.memory
	return admin.Memory{Max: int64(limit), Source: source, Used: m.used.Load(), Held: b.srv.engine.HeldBytes(), Refusing: m.refuses()}
}

func (backend) Build() admin.Build { return admin.Build(BuildInfo()) }

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

func (b backend) LogError(what string, args ...any) { b.srv.engine.LogGrave(what, args...) }
