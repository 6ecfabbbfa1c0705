package server

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"carillon/codec"
	"carillon/server/internal/reactor"
	"carillon/server/stats"
)

// Metrics returns what GET /metrics of the internal interface shows about this server, for those who
// have a registry of their own. The names and their meaning are in docs/metrics.md. Values are read when
// they are asked for: the loops do not know of it.
func (s *Server) Metrics() prometheus.Collector { return newMetrics(s) }

// metricsHandler serves the server's metrics along with those of the process.
func (s *Server) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newMetrics(s), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if c, ok := s.opts().Broker.(prometheus.Collector); ok {
		r.MustRegister(c)
	}
	return promhttp.HandlerFor(&serialGatherer{Gatherer: r}, promhttp.HandlerOpts{ErrorLog: scrapeLog{&s.engine}})
}

// serialGatherer gathers for one request at a time: each walks over all loops and topics, and the processors are for
// the loops.
type serialGatherer struct {
	prometheus.Gatherer
	mu sync.Mutex
}

func (g *serialGatherer) Gather() ([]*dto.MetricFamily, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Gatherer.Gather()
}

// scrapeLog takes what goes wrong with a request for metrics.
type scrapeLog struct{ engine *reactor.Engine }

func (l scrapeLog) Println(v ...any) {
	log := l.engine.LogGrave
	for _, one := range v {
		if err, ok := one.(error); ok {
			if _, ok := errors.AsType[net.Error](err); ok {
				log = l.engine.Log.Debug // the client has gone
			}
		}
	}
	log("metrics request failed", "error", strings.TrimSpace(fmt.Sprintln(v...)))
}

// metrics reads the server's counters when Prometheus asks. Every value of a label is of a closed set or
// stands in the configuration, so that no client can add one.
type metrics struct {
	srv   *Server
	paths []string // of the endpoints, as values of a label
	build []string
	descs []*prometheus.Desc // of singles, then of labelled
}

// single is a metric without labels.
type single struct {
	name string
	help string
	kind prometheus.ValueType
	read func(*Server, *Stats) float64
}

var singles = withOldNames([]single{
	{"connections_limit", "Maximum number of open sockets.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.MaxConnections()) }},
	{"sockets_open", "Open sockets, including handshakes, closing connections and plain HTTP.", prometheus.GaugeValue, func(_ *Server, st *Stats) float64 { return float64(st.Sockets) }},
	{"http_connections_open", "Connections that the plain HTTP handler holds.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return s.plainOpen() }},
	{"connections_accepted_total", "Accepted connections.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Accepted) }},
	{"accept_errors_total", "Failed attempts to accept a connection on a unix socket; each is retried.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.AcceptErrors) }},
	{"connections_opened_total", "Successful handshakes.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Opened) }},
	{"http_connections_total", "Connections handed to the plain HTTP handler.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.PlainHTTP) }},
	{"http_connections_returned_total", "Connections that the plain HTTP handler returned with a request for an endpoint.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Returned) }},
	{"health_checks_total", "Connections answered as health checks.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.HealthChecks) }},
	{"messages_received_total", "Complete messages received from clients.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.MessagesIn) }},
	{"received_bytes_total", "Bytes received, including handshakes and framing.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.BytesIn) }},
	{"deliveries_total", "Messages handed to a connection, counted once per receiver, queued or not.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Deliveries) }},
	{"sent_bytes_total", "Bytes sent, including handshakes and framing.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.BytesOut) }},
	{"writes_total", "System calls made to send.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Writes) }},
	{"outbox_bytes", "Bytes queued for slow consumers; a shared message counts in full for each.", prometheus.GaugeValue, func(_ *Server, st *Stats) float64 { return float64(st.QueuedBytes) }},
	{"backlog_bytes", "Approximate bytes published or sent that the loops have not yet handed to connections.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.engine.BacklogBytes()) }},
	{"handler_panics_total", "Panics in the application's handlers.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Panics) }},
	{"requests_limited_total", "Requests of the JSON protocol refused as rate_limited.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Limited) }},
	{"topics", "Existing topics.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Count.Load()) }},
	{"topics_limit", "Maximum number of topics; +Inf without a limit.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return orInfinite(s.opts().Limits.MaxTopics) }},
	{"patterns", "Patterns with subscribers.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.PatternCount()) }},
	{"history_messages", "Messages in the history of topics.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { n, _ := s.hub.MessageCount(); return float64(n) }},
	{"history_bytes", "Payload bytes in the history of topics.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { _, n := s.hub.MessageCount(); return float64(n) }},
	{"idempotency_keys", "Remembered idempotency keys.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Keys.Count()) }},
	{"idempotency_keys_evicted_total", "Idempotency keys evicted early because limits.max_key_memory was reached.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Keys.Evicted.Load()) }},
	{"loops", "Event loops that have had a connection.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(len(s.engine.AllShards())) }},
	{"loop_silence_seconds", "Longest time that any loop has been busy with one turn, or has been due for one.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return s.engine.LongestSilence().Seconds() }},
	{"loop_blocked_total", "Number of times an event loop was blocked for over a second.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Blocked) }},
	{"memory_used_bytes", "Memory in use by the Go runtime; 0 if limits.max_memory is off.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.memory.used.Load()) }},
	{"memory_limit_bytes", "Effective limits.max_memory, including the default; +Inf if off.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { n, _ := s.MaxMemory(); return orInfinite(int(n)) }},
	{"log_lines_lost_total", "Log lines that could not be written.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.lostLines()) }},
	{"ready", "1 if the server is ready for new connections, else 0: see /readyz.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(len(s.unready()) == 0) }},
	{"draining", "1 if the server is draining, else 0.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(s.drainState.current() != nil) }},
	{"maintenance", "1 if maintenance is on, else 0.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(s.ops.maintenance.Load()) }},
	{"config_last_reload_successful", "1 if the last reload of the options succeeded, or if there was none; else 0.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(s.reloads.good.Load()) }},
	{"config_last_reload_success_timestamp_seconds", "Unix time at which options were last applied, including at the start.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.reloads.goodAt.Load()) / 1000 }},
	{"tls_handshakes_total", "Successful TLS handshakes.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.TLSHandshakes) }},
	{"tls_resumed_total", "TLS handshakes that resumed a session.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.TLSResumed) }},
	{"tls_handshakes_running", "TLS handshakes in progress.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { n, _ := s.engine.TLSTable.Counts(); return float64(n) }},
	{"tls_handshakes_waiting", "TLS handshakes waiting to start: see limits.max_tls_handshakes.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { _, n := s.engine.TLSTable.Counts(); return float64(n) }},
	{"cluster_up", "1 if this server exchanges messages with the cluster; 0 if not, or without a cluster.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(s.hub.Remote.IsUp()) }},
	{"cluster_publish_errors_total", "Messages that the cluster refused or did not acknowledge.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Remote.Counts().Failures.Load()) }},
	{"cluster_sequence_gaps_total", "Gaps detected in the messages from other servers.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Remote.Counts().SequenceGaps.Load()) }},
	{"cluster_gaps_total", "Gaps reported to subscribers because messages could not be loaded.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Remote.Counts().Gaps.Load()) }},
	{"cluster_loads_total", "Loads of persistent topics.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Remote.Counts().Loads.Load()) }},
	{"cluster_load_errors_total", "Failed loads of persistent topics.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Remote.Counts().LoadFailures.Load()) }},
	{"cluster_resyncs_total", "Reloads of all persistent topics.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Remote.Counts().Resyncs.Load()) }},
	{"cluster_queries_total", "Queries to other servers.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Remote.Counts().Queries.Load()) }},
	{"cluster_queries_partial_total", "Queries to other servers that some did not answer in time.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.Remote.Counts().Partial.Load()) }},
	{"log_events_omitted_total", "Per-connection log events omitted by sampling.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.omitted()) }},
})

// oldNames are names that singles had before, to be removed in the next release.
var oldNames = []struct{ before, now string }{
	{"cluster_holes_total", "cluster_sequence_gaps_total"},
	{"cluster_asks_total", "cluster_queries_total"},
	{"cluster_asks_partial_total", "cluster_queries_partial_total"},
}

func withOldNames(list []single) []single {
	for _, name := range oldNames {
		one := list[slices.IndexFunc(list, func(s single) bool { return s.name == name.now })]
		one.name, one.help = name.before, deprecated(name.now)
		list = append(list, one)
	}
	return list
}

func deprecated(now string) string { return "Deprecated: use " + namespace + "_" + now + "." }

const (
	metricOpen = iota
	metricRefused
	metricClosed
	metricDrops
	metricCuts
	metricHTTPCuts
	metricPublished
	metricFlushed
	metricHandshake
	metricTLS
	metricCertificates
	metricExpires
	metricTurn
	metricLag
	metricReloads
	metricRelayed
	metricRelayedOld
	metricBuild
	numLabelled
)

var labelled = [numLabelled]struct {
	name, help string
	labels     []string
}{
	metricOpen:         {"connections_open", "Open WebSockets and event streams.", []string{"endpoint"}},
	metricRefused:      {"connections_refused_total", "Connections that did not become WebSockets, by reason.", []string{"reason"}},
	metricClosed:       {"connections_closed_total", "Closed WebSockets, by close code.", []string{"code"}},
	metricDrops:        {"drops_total", "Messages not delivered, counted once per receiver, by reason.", []string{"reason"}},
	metricCuts:         {"connections_cut_total", "WebSockets that the server cut, by reason.", []string{"reason"}},
	metricHTTPCuts:     {"http_connections_cut_total", "Plain HTTP connections that the server cut, by reason.", []string{"reason"}},
	metricPublished:    {"publishes_total", "Messages published to all connections of an endpoint, or to topics.", []string{"endpoint"}},
	metricFlushed:      {"publish_flush_seconds", "Time from publishing a message to the write to the last receiver on a loop.", []string{"endpoint"}},
	metricHandshake:    {"handshake_seconds", "Time from accepting a connection to the response that opened it.", nil},
	metricTLS:          {"tls_handshake_seconds", "Time from a client's first TLS message to the end of its TLS handshake.", nil},
	metricCertificates: {"tls_reloads_total", "Certificate reloads, by result.", []string{"result"}},
	metricExpires:      {"tls_certificate_expires_seconds", "Unix time at which the first certificate of a listener expires; 0 if unknown.", []string{"listener"}},
	metricTurn:         {"loop_turn_seconds", "Duration of event loop turns.", nil},
	metricLag:          {"loop_lag_seconds", "Delay between waking a loop and the start of its turn.", nil},
	metricReloads:      {"config_reloads_total", "Reloads of the options, by result.", []string{"result"}},
	metricBuild:        {"build_info", "Always 1; the labels describe the build.", []string{"version", "revision", "go_version"}},
	metricRelayed:      {"cluster_relayed_total", "Messages sent to other servers or received from the cluster.", []string{"direction", "kind"}},
	metricRelayedOld:   {"cluster_messages_total", deprecated("cluster_relayed_total"), []string{"direction", "kind"}},
}

const namespace = "carillon"

func newMetrics(s *Server) *metrics {
	b := BuildInfo()
	m := &metrics{srv: s, build: []string{b.Version, b.Revision, b.Go}}
	for _, one := range singles {
		m.descs = append(m.descs, prometheus.NewDesc(namespace+"_"+one.name, one.help, nil, nil))
	}
	for _, l := range labelled {
		m.descs = append(m.descs, prometheus.NewDesc(namespace+"_"+l.name, l.help, l.labels, nil))
	}
	for _, ep := range s.endpoints {
		m.paths = append(m.paths, labelOf(ep.Path))
	}
	return m
}

// labelOf makes a path a value that Prometheus takes; two paths never become one.
func labelOf(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	return strconv.QuoteToASCII(path)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range m.descs {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	s := m.srv
	st := s.Stats()
	for i, one := range singles {
		to <- prometheus.MustNewConstMetric(m.descs[i], one.kind, one.read(s, &st))
	}
	for r := range stats.NumRefuseReasons {
		m.send(to, metricRefused, prometheus.CounterValue, float64(st.Refusals[r]), r.String())
	}
	for r := range stats.NumDropReasons {
		m.send(to, metricDrops, prometheus.CounterValue, float64(st.Drops[r]), r.String())
	}
	for r := range stats.NumCutReasons {
		m.send(to, metricCuts, prometheus.CounterValue, float64(st.Cuts[r]), r.String())
	}
	for r := range stats.NumPlainCutReasons {
		m.send(to, metricHTTPCuts, prometheus.CounterValue, float64(st.HTTPCuts[r]), r.String())
	}
	for code := codec.CloseNormal; code < codec.CloseNormal+stats.NumCloseCodes; code++ {
		m.send(to, metricClosed, prometheus.CounterValue, float64(st.Closes[code]), strconv.Itoa(int(code)))
	}
	m.send(to, metricClosed, prometheus.CounterValue, float64(st.Closes[0]), "other")
	shards := s.engine.AllShards()
	for i, ep := range s.endpoints {
		ep.Mu.Lock()
		open := ep.Subscribers
		ep.Mu.Unlock()
		m.send(to, metricOpen, prometheus.GaugeValue, float64(open), m.paths[i])
		m.send(to, metricPublished, prometheus.CounterValue, float64(ep.Published.Load()), m.paths[i])
		m.sum(to, metricFlushed, shards, func(sh *reactor.Shard) *stats.Histogram { return &sh.Histograms.Flushed[i+1] }, m.paths[i])
	}
	m.send(to, metricPublished, prometheus.CounterValue, float64(s.hub.Published.Load()), topicsLabel)
	m.sum(to, metricFlushed, shards, func(sh *reactor.Shard) *stats.Histogram { return &sh.Histograms.Flushed[0] }, topicsLabel)
	m.sum(to, metricHandshake, shards, func(sh *reactor.Shard) *stats.Histogram { return &sh.Histograms.Handshake })
	m.sum(to, metricTLS, shards, func(sh *reactor.Shard) *stats.Histogram { return &sh.Histograms.TLS })
	var certificates, failures uint64
	for name, one := range s.allCerts() {
		var expires int64
		if one != nil {
			certificates += one.Reloads()
			failures += one.Failures()
			expires = one.Expires()
		}
		m.send(to, metricExpires, prometheus.GaugeValue, float64(expires), name)
	}
	m.send(to, metricCertificates, prometheus.CounterValue, float64(certificates), "ok")
	m.send(to, metricCertificates, prometheus.CounterValue, float64(failures), "failed")
	m.sum(to, metricTurn, shards, func(sh *reactor.Shard) *stats.Histogram { return &sh.Histograms.Turn })
	m.sum(to, metricLag, shards, func(sh *reactor.Shard) *stats.Histogram { return &sh.Histograms.Lag })
	for i, result := range reloadResults {
		m.send(to, metricReloads, prometheus.CounterValue, float64(s.reloads.done[i].Load()), result)
	}
	cl := s.hub.Remote.Counts()
	for _, one := range []struct {
		direction, kind, before string
		count                   *atomic.Uint64
	}{
		{"out", "persistent", "kept", &cl.PersistentOut}, {"out", "transient", "passing", &cl.TransientOut}, {"out", "broadcast", "broadcast", &cl.BroadcastsOut},
		{"in", "persistent", "kept", &cl.PersistentIn}, {"in", "transient", "passing", &cl.TransientIn}, {"in", "broadcast", "broadcast", &cl.BroadcastsIn},
	} {
		n := float64(one.count.Load())
		m.send(to, metricRelayed, prometheus.CounterValue, n, one.direction, one.kind)
		m.send(to, metricRelayedOld, prometheus.CounterValue, n, one.direction, one.before)
	}
	m.send(to, metricBuild, prometheus.GaugeValue, 1, m.build...)
}

// topicsLabel stands where the path of an endpoint would, which begins with a slash.
const topicsLabel = "topics"

func (m *metrics) send(to chan<- prometheus.Metric, which int, kind prometheus.ValueType, v float64, labels ...string) {
	to <- prometheus.MustNewConstMetric(m.descs[len(singles)+which], kind, v, labels...)
}

// sum adds up a histogram of all loops.
func (m *metrics) sum(to chan<- prometheus.Metric, which int, shards []*reactor.Shard, of func(*reactor.Shard) *stats.Histogram, labels ...string) {
	var count, us uint64
	cumulative := make(map[float64]uint64, len(stats.Bounds))
	for i := range stats.Buckets {
		for _, sh := range shards {
			count += of(sh).Counts[i].Load()
		}
		if i < len(stats.Bounds) {
			cumulative[float64(stats.Bounds[i])/1e6] = count
		}
	}
	for _, sh := range shards {
		us += of(sh).Sum.Load()
	}
	to <- prometheus.MustNewConstHistogram(m.descs[len(singles)+which], count, float64(us)/1e6, cumulative, labels...)
}

func asNumber(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func orInfinite(limit int) float64 {
	if limit < 0 {
		return math.Inf(1)
	}
	return float64(limit)
}

// plainOpen is how many connections Options.HTTP has.
func (s *Server) plainOpen() float64 {
	if s.plain == nil {
		return 0
	}
	l := s.plain.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.conns.Len())
}

// lostLines is how many lines of the log could not be written, as far as that is known.
func (s *Server) lostLines() uint64 {
	if f := s.opts().LogLost; f != nil {
		return f()
	}
	return 0
}
