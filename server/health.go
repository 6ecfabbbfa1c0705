package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"carillon/codec"
	"carillon/server/internal/admin"
	"carillon/server/internal/auth"
)

// ops is what operators see and set while the server runs.
type ops struct {
	// Immutable once the server runs.
	stuckAfter time.Duration // a loop that is silent for longer is stuck
	lookEvery  time.Duration // at the files of certificates

	origins auth.OriginLog

	maintenance atomic.Bool
	settled     atomic.Int64 // when the server was last told to take connections, as of uptime
}

// stuckAfter is long, because probes that ask for it kill the server: a loop that only has much to do comes round every
// few milliseconds.
const stuckAfter = 10 * time.Second

func newOps() ops {
	return ops{stuckAfter: stuckAfter, lookEvery: lookEvery}
}

// unready says why the server should get no new connections now.
func (s *Server) unready() (list []admin.Condition) {
	add := func(reason, format string, args ...any) {
		list = append(list, admin.Condition{Reason: reason, Detail: fmt.Sprintf(format, args...)})
	}
	select {
	case <-s.engine.Started:
	default:
		add("starting", "the server is not listening yet")
		return list
	}
	if s.drainState.current() != nil {
		add("draining", "the server is draining")
	}
	if s.ops.maintenance.Load() {
		add("maintenance", "maintenance is on")
	}
	if !s.opts().ClusterOptional {
		if err := s.hub.Remote.Unready(); err != nil {
			add("cluster", "%v", err)
		}
	}
	if n, most := s.engine.Sockets.Load(), s.settings().loops.MaxSockets; n >= int64(most) {
		add("full", "%d sockets are open: limits.max_connections is %d", n, most)
	}
	if s.engine.FDReserve.IsShort() {
		add("descriptors", "no file descriptors left: something in this process opened too many")
	}
	if s.memory.refuses() {
		limit, source := s.MaxMemory()
		add("memory", "low on memory: %v in use, limits.max_memory is %v (%s)", roundedSize(s.memory.used.Load()), limit, source)
	}
	return list
}

// stuck names the loops that have been silent for too long.
func (s *Server) stuck() (list []admin.Condition) {
	now := s.engine.Uptime()
	for i, sh := range s.engine.AllShards() {
		if d := sh.Mail.Waits(now); d > s.ops.stuckAfter {
			list = append(list, admin.Condition{Reason: "loop_stuck", Detail: fmt.Sprintf("loop %d has not responded for %v", i, d.Round(time.Millisecond))})
		}
	}
	return list
}

// SetMaintenance tells balancers, by the health checks and the agent's port, to send no new clients here, or to do
// so again. Connections that are open stay, and new ones are served.
func (s *Server) SetMaintenance(on bool) {
	if s.ops.maintenance.Swap(on) == on {
		return
	}
	s.ops.settled.Store(int64(s.engine.Uptime()))
	s.log.Info("maintenance", "on", on)
}

// The health check of the public port is answered by the loop, so that it says that loops turn, and before
// the limit of connections is looked at, so that a full server can say so.

var errHealth = errors.New("a health check")

var rejectHealthMethod = &codec.Rejection{Status: 405, Reason: "a health check must be GET or HEAD", Header: [][2]string{{"Allow", "GET, HEAD"}}}

func (c *checker) healthPath(o *Options) {
	if o.HealthPath == "" {
		o.HealthPath = "/healthz"
	}
	if o.HealthPath == optionOff {
		return
	}
	if !isPath(o.HealthPath) {
		c.Add("health_path", "%q is not a path: expected one that starts with / and has no query, fragment or space, or off", o.HealthPath)
	}
	for i, e := range o.Endpoints {
		if e.Path == o.HealthPath {
			c.Add("health_path", "%s is the path of endpoints[%d]: expected another one, or off", o.HealthPath, i)
		}
	}
}

func (s *Server) isHealthPath(path string) bool {
	return path == s.opts().HealthPath && path != optionOff
}

func decideHealth(r *Request) (RefuseReason, error) {
	if m := string(r.Method); m != http.MethodGet && m != http.MethodHead {
		return RefuseMethod, rejectHealthMethod
	}
	return 0, errHealth
}

// publicHealth is the status and what is told to strangers: a word, and nothing of why.
func (s *Server) publicHealth() (status int, word string) {
	if s.drainState.current() != nil {
		return http.StatusServiceUnavailable, "draining\n"
	}
	// The check's own connection is one of the sockets.
	if s.engine.Sockets.Load() > int64(s.settings().loops.MaxSockets) {
		return http.StatusServiceUnavailable, "full\n"
	}
	for _, c := range s.unready() {
		if c.Reason != "full" {
			return http.StatusServiceUnavailable, c.Reason + "\n"
		}
	}
	return http.StatusOK, "ok\n"
}

// tellHealth answers a health check and ends its connection.
func (c *Conn) tellHealth(method string) {
	sh := c.shard()
	sh.Stats.Checks.Add(1)
	status, word := c.Server().publicHealth()
	b := append(sh.Control[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(append(b, ' '), http.StatusText(status)...)
	b = append(b, "\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(word)), 10)
	b = append(b, "\r\n\r\n"...)
	if method != http.MethodHead {
		b = append(b, word...)
	}
	sh.Control = b
	c.core().LastAnswer(b)
}

// serveHealth answers a health check on a connection that net/http has, because another request came
// before it.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, rejectHealthMethod.Reason, http.StatusMethodNotAllowed)
		return
	}
	status, word := s.publicHealth()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, word)
}
