package server

import (
	"math"
	"net/http"
	"strconv"
	"sync/atomic"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"carillon/codec"
	"carillon/server/stats"
)

// Metrics returns what GET /metrics of the internal interface shows about this server, for those who
// have a registry of their own. The names and their meaning are in docs/metrics.md. Values are read when
// they are asked for: the loops do not know of it.
func (s *Server) Metrics() prometheus.Collector { return newMetrics(s) }

// metricsHandler serves the server's metrics beside those of the process.
func (s *Server) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newMetrics(s), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if c, ok := s.opts().Broker.(prometheus.Collector); ok {
		r.MustRegister(c)
	}
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: s.netLog})
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

var singles = []single{
	{"connections_limit", "Sockets that may be open at once.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.MaxConnections()) }},
	{"sockets_open", "Sockets that are open: handshakes, closes and plain HTTP included.", prometheus.GaugeValue, func(_ *Server, st *Stats) float64 { return float64(st.Sockets) }},
	{"http_connections_open", "Connections that the handler of plain HTTP has.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return s.plainOpen() }},
	{"connections_accepted_total", "Connections that were accepted.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Accepted) }},
	{"accept_errors_total", "Tries to accept a connection of a unix socket that failed, and that are made again.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.AcceptErrors) }},
	{"connections_opened_total", "Handshakes that succeeded.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Opened) }},
	{"http_connections_total", "Connections that were handed to the handler of plain HTTP.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.PlainHTTP) }},
	{"http_connections_returned_total", "Connections that came back from there with a request for an endpoint.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Returned) }},
	{"health_checks_total", "Connections that were answered as health checks.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.HealthChecks) }},
	{"messages_received_total", "Whole messages from clients.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.MessagesIn) }},
	{"received_bytes_total", "Bytes from sockets, handshakes and framing included.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.BytesIn) }},
	{"deliveries_total", "Messages handed to one connection each, whether they then waited or not.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Deliveries) }},
	{"sent_bytes_total", "Bytes to sockets, handshakes and framing included.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.BytesOut) }},
	{"writes_total", "System calls that sending took.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Writes) }},
	{"outbox_bytes", "Memory of what waits for slow consumers, shared messages in full for each.", prometheus.GaugeValue, func(_ *Server, st *Stats) float64 { return float64(st.QueuedBytes) }},
	{"backlog_bytes", "About the memory of what was published or sent and that the loops have not handed to connections, in bytes.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.backlogBytes()) }},
	{"handler_panics_total", "Panics in handlers of the application.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Panics) }},
	{"requests_limited_total", "Requests of the JSON protocol that were refused as rate_limited.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Limited) }},
	{"topics", "Topics that exist.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.count.Load()) }},
	{"topics_limit", "Topics that may exist at once; +Inf without a limit.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return orInfinite(s.opts().Limits.MaxTopics) }},
	{"patterns", "Patterns that have subscribers.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.patternCount()) }},
	{"history_messages", "Messages that topics keep.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { n, _ := s.hub.kept(); return float64(n) }},
	{"history_bytes", "Payload bytes that topics keep.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { _, n := s.hub.kept(); return float64(n) }},
	{"idempotency_keys", "Idempotency keys that are remembered.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.keys.count()) }},
	{"idempotency_keys_evicted_total", "Idempotency keys that were forgotten early because limits.max_key_memory was reached.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.keys.evicted.Load()) }},
	{"loops", "Event loops that have had a connection.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(len(s.allShards())) }},
	{"loop_silence_seconds", "The longest time for which a loop has been at its turn, or has not come to one that it was asked for.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return s.longestSilence().Seconds() }},
	{"loop_blocked_total", "Times that a loop did not come round for a second, as when a handler blocks.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.Blocked) }},
	{"memory_used_bytes", "Memory of the Go runtime without what it has free; 0 when limits.max_memory is off.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.memory.used.Load()) }},
	{"memory_limit_bytes", "limits.max_memory in force, also when it is the default; +Inf when that is off.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { n, _ := s.MaxMemory(); return orInfinite(int(n)) }},
	{"log_lines_lost_total", "Lines of the log that could not be written.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.lostLines()) }},
	{"ready", "1 when the server wants new connections, else 0: see /readyz.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(len(s.unready()) == 0) }},
	{"draining", "1 when the server drains.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(s.ending.current() != nil) }},
	{"maintenance", "1 when maintenance was switched on.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(s.ops.maintenance.Load()) }},
	{"config_last_reload_successful", "1 when the last reload of the options succeeded, or there was none.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(s.reloads.good.Load()) }},
	{"config_last_reload_success_timestamp_seconds", "When options were taken for the last time, the start included, in seconds since 1970.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return float64(s.reloads.goodAt.Load()) / 1000 }},
	{"tls_handshakes_total", "TLS handshakes that went well.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.TLSHandshakes) }},
	{"tls_resumed_total", "TLS handshakes that went on with a session from before.", prometheus.CounterValue, func(_ *Server, st *Stats) float64 { return float64(st.TLSResumed) }},
	{"tls_handshakes_running", "TLS handshakes that have a goroutine.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { n, _ := s.tlsTable.counts(); return float64(n) }},
	{"tls_handshakes_waiting", "TLS handshakes that have not begun: see limits.max_tls_handshakes.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { _, n := s.tlsTable.counts(); return float64(n) }},
	{"cluster_up", "1 while messages pass between this server and others; 0 while they do not, or when there is no cluster.", prometheus.GaugeValue, func(s *Server, _ *Stats) float64 { return asNumber(s.hub.remote.isUp()) }},
	{"cluster_publish_errors_total", "Messages that the cluster did not take, or perhaps not.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.remote.counts().failures.Load()) }},
	{"cluster_holes_total", "Times that messages of other servers were missing when later ones came.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.remote.counts().holes.Load()) }},
	{"cluster_gaps_total", "Times that messages were missing for subscribers of a topic and could not be loaded.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.remote.counts().gaps.Load()) }},
	{"cluster_loads_total", "Times that kept messages of a topic were asked for.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.remote.counts().loads.Load()) }},
	{"cluster_load_errors_total", "Those that failed.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.remote.counts().loadFailures.Load()) }},
	{"cluster_resyncs_total", "Times that all kept topics were looked at again.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.remote.counts().resyncs.Load()) }},
	{"cluster_asks_total", "Questions to other servers.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.remote.counts().asks.Load()) }},
	{"cluster_asks_partial_total", "Those that not every server answered in time.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.hub.remote.counts().partial.Load()) }},
	{"log_events_omitted_total", "Events of single connections that were not logged because there were too many.", prometheus.CounterValue, func(s *Server, _ *Stats) float64 { return float64(s.omitted()) }},
}

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
	metricCluster
	metricBuild
	numLabelled
)

var labelled = [numLabelled]struct {
	name, help string
	labels     []string
}{
	metricOpen:         {"connections_open", "WebSockets and streams of server-sent events that are open.", []string{"endpoint"}},
	metricRefused:      {"connections_refused_total", "Connections that did not become WebSockets.", []string{"reason"}},
	metricClosed:       {"connections_closed_total", "WebSockets that ended, by close code.", []string{"code"}},
	metricDrops:        {"drops_total", "Messages that one receiver each never got.", []string{"reason"}},
	metricCuts:         {"connections_cut_total", "WebSockets that the server ended by itself.", []string{"reason"}},
	metricHTTPCuts:     {"http_connections_cut_total", "Connections of plain HTTP that the server ended by itself.", []string{"reason"}},
	metricPublished:    {"publishes_total", "Messages that were published to all of an endpoint, or to topics.", []string{"endpoint"}},
	metricFlushed:      {"publish_flush_seconds", "From a message's publication to the write to the last receiver of its loop.", []string{"endpoint"}},
	metricHandshake:    {"handshake_seconds", "From accepting a connection to the answer that opened it.", nil},
	metricTLS:          {"tls_handshake_seconds", "From a client's first TLS message to the end of its TLS handshake.", nil},
	metricCertificates: {"tls_reloads_total", "Certificates that were read again, by result.", []string{"result"}},
	metricExpires:      {"tls_certificate_expires_seconds", "When the first certificate of a listener expires, in seconds since 1970; 0 is not known.", []string{"listener"}},
	metricTurn:         {"loop_turn_seconds", "How long turns of the event loops took.", nil},
	metricLag:          {"loop_lag_seconds", "From asking a loop for a turn to the turn.", nil},
	metricReloads:      {"config_reloads_total", "Reloads of the options, by result.", []string{"result"}},
	metricBuild:        {"build_info", "Always 1; the labels say what was built.", []string{"version", "revision", "go_version"}},
	metricCluster:      {"cluster_messages_total", "Messages that went to other servers, or came from the cluster.", []string{"direction", "kind"}},
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
	shards := s.allShards()
	for i, ep := range s.endpoints {
		ep.mu.Lock()
		open := ep.subscribers
		ep.mu.Unlock()
		m.send(to, metricOpen, prometheus.GaugeValue, float64(open), m.paths[i])
		m.send(to, metricPublished, prometheus.CounterValue, float64(ep.published.Load()), m.paths[i])
		m.sum(to, metricFlushed, shards, func(sh *shard) *stats.Histogram { return &sh.histograms.Flushed[i+1] }, m.paths[i])
	}
	m.send(to, metricPublished, prometheus.CounterValue, float64(s.hub.published.Load()), topicsLabel)
	m.sum(to, metricFlushed, shards, func(sh *shard) *stats.Histogram { return &sh.histograms.Flushed[0] }, topicsLabel)
	m.sum(to, metricHandshake, shards, func(sh *shard) *stats.Histogram { return &sh.histograms.Handshake })
	m.sum(to, metricTLS, shards, func(sh *shard) *stats.Histogram { return &sh.histograms.TLS })
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
	m.sum(to, metricTurn, shards, func(sh *shard) *stats.Histogram { return &sh.histograms.Turn })
	m.sum(to, metricLag, shards, func(sh *shard) *stats.Histogram { return &sh.histograms.Lag })
	for i, result := range reloadResults {
		m.send(to, metricReloads, prometheus.CounterValue, float64(s.reloads.done[i].Load()), result)
	}
	cl := s.hub.remote.counts()
	for _, one := range []struct {
		direction, kind string
		count           *atomic.Uint64
	}{
		{"out", "kept", &cl.keptOut}, {"out", "passing", &cl.passingOut}, {"out", "broadcast", &cl.broadcastsOut},
		{"in", "kept", &cl.keptIn}, {"in", "passing", &cl.passingIn}, {"in", "broadcast", &cl.broadcastsIn},
	} {
		m.send(to, metricCluster, prometheus.CounterValue, float64(one.count.Load()), one.direction, one.kind)
	}
	m.send(to, metricBuild, prometheus.GaugeValue, 1, m.build...)
}

// topicsLabel stands where the path of an endpoint would, which begins with a slash.
const topicsLabel = "topics"

func (m *metrics) send(to chan<- prometheus.Metric, which int, kind prometheus.ValueType, v float64, labels ...string) {
	to <- prometheus.MustNewConstMetric(m.descs[len(singles)+which], kind, v, labels...)
}

// sum adds up a histogram of all loops.
func (m *metrics) sum(to chan<- prometheus.Metric, which int, shards []*shard, of func(*shard) *stats.Histogram, labels ...string) {
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

// backlogBytes is what the loops have not handed to connections.
func (s *Server) backlogBytes() (n int64) {
	for _, sh := range s.allShards() {
		n += sh.backlog.Load()
	}
	return n
}

func (h *hub) patternCount() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	n := 0
	for _, p := range h.patterns.names.All() { // in a cluster they linger
		p.mu.Lock()
		if p.subscribers > 0 {
			n++
		}
		p.mu.Unlock()
	}
	return n
}

// kept is what all topics keep, in messages and in bytes of payload.
func (h *hub) kept() (messages, bytes int64) { return h.messages.Load(), h.bytes.Load() }

// lostLines is how many lines of the log could not be written, as far as that is known.
func (s *Server) lostLines() uint64 {
	if f := s.opts().LogLost; f != nil {
		return f()
	}
	return 0
}
