package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"carillon/server/internal/reactor"
)

// scraped is what GET /metrics says: the value of each series, by its name and labels as they are written,
// such as `carillon_drops_total{reason="closed"}`. A histogram has its _count and _sum.
type scraped map[string]float64

func scrape(t testing.TB, s *Server) scraped {
	t.Helper()
	resp, err := http.Get("http://" + s.InternalAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Fatalf("%s %s: %s, %v", resp.Status, resp.Header.Get("Content-Type"), body, err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	all := scraped{}
	for name, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			suffix := ""
			if len(labels) > 0 {
				suffix = "{" + strings.Join(labels, ",") + "}"
			}
			if h := m.Histogram; h != nil {
				all[name+"_count"+suffix] = float64(h.GetSampleCount())
				all[name+"_sum"+suffix] = h.GetSampleSum()
				continue
			}
			all[name+suffix] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()
		}
	}
	return all
}

// want checks series, without their prefix. Those of a family that are not named must be 0.
func (all scraped) want(t *testing.T, want map[string]float64) {
	t.Helper()
	for name, v := range want {
		if got, there := all["carillon_"+name]; !there || got != v {
			t.Errorf("carillon_%s is %v (there: %v), want %v", name, got, there, v)
		}
		family, _, labelled := strings.Cut(name, "{")
		for other, got := range all {
			if _, named := want[strings.TrimPrefix(other, "carillon_")]; labelled && !named && got != 0 && strings.HasPrefix(other, "carillon_"+family+"{") {
				t.Errorf("%s is %v, want 0", other, got)
			}
		}
	}
}

// Everything that happens in a small story is in the metrics, exactly.
func TestMetricsTellWhatHappened(t *testing.T) {
	s := withAPI(t, Options{
		Loops:     1,
		Limits:    Limits{MaxConnections: 7, MaxTopics: 9},
		Topics:    []TopicRule{{Match: "kept", History: 2}},
		HTTP:      http.NotFoundHandler(),
		Endpoints: append(echoAndBroadcast(), topicsEndpoint()),
	})
	scrape(t, s).want(t, map[string]float64{
		"connections_accepted_total": 0, "connections_limit": 7, "topics_limit": 9, "ready": 1, "draining": 0, "maintenance": 0, "loops": 0,
		`connections_open{endpoint="/echo"}`: 0, `drops_total{reason="closed"}`: 0, `publish_flush_seconds_count{endpoint="topics"}`: 0,
	})

	// Alice and Bob hear 5 broadcasts of 3 bytes; Alice says 2 things to herself on another connection.
	alice, bob := dial(t, s, "/broadcast"), dial(t, s, "/broadcast")
	for range 5 {
		if err := s.Broadcast("/broadcast", Text, []byte("abc")); err != nil {
			t.Fatal(err)
		}
		alice.want("abc")
		bob.want("abc")
	}
	echo := dial(t, s, "/echo")
	for _, word := range []string{"one", "two"} {
		echo.send(word)
		echo.want(word)
	}
	// Cathy gets 3 messages of a topic that keeps 2; another topic has no subscriber.
	cathy := dial(t, s, "/ws?topic=kept")
	eventually(t, "she is subscribed", func() bool { return len(s.Subscribers("kept")) == 1 })
	for _, topic := range []string{"kept", "kept", "other", "kept"} {
		if _, err := s.Publish(Publication{Topic: topic, Payload: []byte("news")}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		cathy.want("news")
	}
	// Two are refused, one visits, one asks for the health, and Bob leaves.
	for _, path := range []string{"/echo", "/healthz", "/page"} {
		c := dialRaw(t, s)
		c.write([]byte("GET " + path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
		if _, err := io.ReadAll(c.response().Body); err != nil {
			t.Fatal(err)
		}
		_ = c.conn.Close()
	}
	c := dialRaw(t, s)
	c.write([]byte("nonsense\r\n\r\n"))
	_, _ = io.ReadAll(c.r)
	_ = c.conn.Close()
	bob.write(masked(0x88, []byte{0x03, 0xe9}))
	bob.wantClose(1001, "")
	_ = bob.conn.Close()
	eventually(t, "four are left", func() bool { return s.Stats().Sockets == 3 })

	got := scrape(t, s)
	st := s.Stats()
	got.want(t, map[string]float64{
		"connections_accepted_total": 8, "connections_opened_total": 4, "sockets_open": 3,
		"http_connections_total": 1, "http_connections_open": 0, "http_connections_returned_total": 0, "health_checks_total": 1,
		`connections_open{endpoint="/broadcast"}`:            1,
		`connections_open{endpoint="/echo"}`:                 1,
		`connections_open{endpoint="/ws"}`:                   1,
		`connections_refused_total{reason="no_upgrade"}`:     1,
		`connections_refused_total{reason="malformed"}`:      1,
		`connections_closed_total{code="1001"}`:              1,
		"messages_received_total":                            2,
		"received_bytes_total":                               float64(st.BytesIn),
		"sent_bytes_total":                                   float64(st.BytesOut),
		"writes_total":                                       float64(st.Writes),
		"deliveries_total":                                   2*5 + 2 + 3,
		`publishes_total{endpoint="/broadcast"}`:             5,
		`publishes_total{endpoint="topics"}`:                 4,
		`publish_flush_seconds_count{endpoint="/broadcast"}`: 5,
		`publish_flush_seconds_count{endpoint="topics"}`:     3,
		"handshake_seconds_count":                            4,
		"topics":                                             2,
		"patterns":                                           0,
		"history_messages":                                   2,
		"history_bytes":                                      8,
		"outbox_bytes":                                       0,
		"backlog_bytes":                                      0,
		"handler_panics_total":                               0,
		"loops":                                              1,
		"ready":                                              1,
		`drops_total{reason="closed"}`:                       0,
	})
	for name, most := range map[string]float64{
		`publish_flush_seconds_sum{endpoint="/broadcast"}`: 5, `publish_flush_seconds_sum{endpoint="topics"}`: 3,
		"handshake_seconds_sum": 4, "loop_turn_seconds_sum": patience.Seconds(), "loop_lag_seconds_sum": patience.Seconds(),
	} {
		if v := got["carillon_"+name]; v <= 0 || v > most {
			t.Errorf("%s is %v, want something up to %v", name, v, most)
		}
	}
	if got["carillon_loop_turn_seconds_count"] < 10 || got["carillon_loop_lag_seconds_count"] < 1 {
		t.Errorf("%v turns, %v of them asked for", got["carillon_loop_turn_seconds_count"], got["carillon_loop_lag_seconds_count"])
	}
	for _, name := range []string{"go_goroutines", "process_open_fds"} {
		if _, there := got[name]; !there && name != "process_open_fds" {
			t.Errorf("no %s", name)
		}
	}
}

// Bob does not read. What he never gets is counted by its reason, and what waits for him is shown.
func TestMetricsCountDropsByReason(t *testing.T) {
	s := withAPI(t, Options{Loops: 1, Endpoints: []Endpoint{
		{Path: "/newest", Mode: ModeBroadcast, SlowConsumer: SlowConsumer{Policy: PolicyDropNewest, MaxQueue: 3 << 20}},
	}})
	bob := dial(t, s, "/newest")
	message := make([]byte, 1<<20)
	const messages = 40
	for range messages {
		if err := s.Broadcast("/newest", Binary, message); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is handed out", func() bool { return s.engine.BacklogBytes() == 0 })
	}
	waiting := s.Stats()
	got := scrape(t, s)
	got.want(t, map[string]float64{
		`drops_total{reason="drop_newest"}`: float64(waiting.Drops[DropNewest]),
		"outbox_bytes":                      float64(waiting.QueuedBytes),
		"deliveries_total":                  messages,
	})
	if waiting.Drops[DropNewest] == 0 || waiting.QueuedBytes < 2<<20 {
		t.Fatalf("dropped %v, %d bytes wait", waiting.Drops, waiting.QueuedBytes)
	}
	// He goes away: what waited is dropped for that.
	_ = bob.conn.Close()
	eventually(t, "he is gone", func() bool { return s.Stats().Sockets == 0 })
	got = scrape(t, s)
	dropped := got[`carillon_drops_total{reason="closed"}`]
	if dropped < 2 || dropped > 4 || got["carillon_outbox_bytes"] != 0 {
		t.Errorf("%v dropped because he is gone, %v bytes wait", dropped, got["carillon_outbox_bytes"])
	}
}

// The time of a broadcast ends with the write to the last receiver: one that comes after a handler has
// held the loop up for 60 ms is slow, also for those who waited in the mailbox.
func TestPublishToFlushedTimeCountsTheWait(t *testing.T) {
	free := make(chan struct{})
	entered := make(chan struct{})
	s := withAPI(t, Options{Loops: 1, Endpoints: []Endpoint{
		{Path: "/block", Handler: Handler{Open: func(*Conn) { close(entered); <-free }}},
		{Path: "/broadcast", Mode: ModeBroadcast},
	}})
	alice := dial(t, s, "/broadcast")
	blocker := dialRaw(t, s)
	blocker.write([]byte(upgradeHead("/block")))
	<-entered
	const messages, held = 10, 60 * time.Millisecond
	for i := range messages {
		if err := s.Broadcast("/broadcast", Text, []byte(words(i))); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(held)
	close(free)
	for i := range messages {
		alice.want(words(i))
	}
	eventually(t, "the turn has ended", func() bool {
		return scrape(t, s)[`carillon_publish_flush_seconds_count{endpoint="/broadcast"}`] == messages
	})
	got := scrape(t, s)
	if sum := got[`carillon_publish_flush_seconds_sum{endpoint="/broadcast"}`]; sum < messages*held.Seconds() || sum > messages*patience.Seconds() {
		t.Errorf("%d messages took %v s together, want at least %v", messages, sum, messages*held.Seconds())
	}
	if sum := got["carillon_loop_turn_seconds_sum"]; sum < held.Seconds() {
		t.Errorf("the turns took %v s, want at least %v", sum, held.Seconds())
	}
}

// The names and units are as Prometheus wants them, and no path can break the format.
func TestMetricsAreWellFormed(t *testing.T) {
	s, err := New(Options{Endpoints: []Endpoint{
		{Path: "/plain", Mode: ModeEcho}, {Path: "/\"\\\n\x00ü", Mode: ModeEcho}, {Path: "/\xff", Mode: ModeEcho}, {Path: "/\xfe", Mode: ModeEcho},
	}})
	if err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.CollectAndLint(s.Metrics())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	w := newRecorder()
	r, _ := http.NewRequest("GET", "http://localhost/metrics", nil)
	s.API().ServeHTTP(w, r)
	if w.status != 200 {
		t.Fatalf("%d %s", w.status, w.body.String())
	}
	found, err := promlint.New(bytes.NewReader(w.body.Bytes())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		if strings.HasPrefix(p.Metric, "carillon_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// What the program and an application tell of lines that were lost is in the metrics.
func TestLostLinesAreMetrics(t *testing.T) {
	w := NewLogWriter(brokenWriter{}, nil)
	defer w.Close(patience)
	opts := Options{Endpoints: echoAndBroadcast(), LogLost: w.Lost, Logger: slog.New(slog.NewTextHandler(w, nil))}
	s := withAPI(t, opts)
	s.log.Info("this goes nowhere")
	eventually(t, "they are counted", func() bool { return scrape(t, s)["carillon_log_lines_lost_total"] >= 1 })
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// Requests for metrics are gathered for one after the other, whatever number comes, and a client that goes is no error.
func TestMetricsAreGatheredOneAtATime(t *testing.T) {
	var running, most atomic.Int64
	g := &serialGatherer{Gatherer: prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(time.Millisecond)
		running.Add(-1)
		return nil, nil
	})}
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { _, _ = g.Gather() })
	}
	all.Wait()
	if n := most.Load(); n != 1 {
		t.Errorf("%d were gathered for at once", n)
	}
	var log strings.Builder
	var e reactor.Engine
	e.Init(nil, slog.New(slog.NewTextHandler(&log, nil)))
	l := scrapeLog{&e}
	l.Println("error encoding and sending metric family:", &net.OpError{Op: "write", Err: syscall.EPIPE})
	if log.Len() > 0 {
		t.Errorf("a client that has gone is logged: %s", log.String())
	}
	l.Println("error gathering metrics:", errors.New("broken"))
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "broken") {
		t.Errorf("an error is logged as %q", log.String())
	}
}
