package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

const (
	teamClients    = 300
	teamTopics     = 10
	teamPublishers = 3                     // over HTTP, and as many over WebSocket
	teamPace       = 40 * time.Millisecond // between two messages of a publisher
	teamConfig     = `endpoints: [{path: /ws, mode: topics, topics: {publish: [">"]}}]
topics: [{match: ">", history: 10000, max_bytes: 64MiB}]
cluster: {nats: {embedded: true, routes: ["%s"]}}
`
)

// Three nodes of a cluster, each with NATS inside and a store of its own, behind HAProxy. One after the other ends and
// comes back with its store, while clients are connected to all of them and messages are published, over HTTP at the
// nodes and over WebSocket through the balancer. In the end each client's log is the topic's: every message that was
// acknowledged, once, at the offset that its publisher was told, and nobody was told of a gap.
func TestClusterRollingRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	for _, row := range []struct {
		name string
		ends func(b *behind)
	}{
		{"drained", func(b *behind) {
			b.p.signal(syscall.SIGTERM)
			b.p.ended()
			if status := b.p.cmd.ProcessState.ExitCode(); status != 0 {
				b.t.Fatalf("a node ended with %d:\n%s", status, b.p.stderr.String())
			}
		}},
		{"killed", func(b *behind) {
			b.p.signal(syscall.SIGKILL)
			b.p.ended()
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			program := needs(t, "haproxy")
			s := clusterSite(t)
			s.rotate(s.haproxy(program, ""), row.ends)
		})
	}
}

// clusterSite is a site whose servers are a cluster.
func clusterSite(t *testing.T) *site {
	t.Helper()
	var routes []string
	for i := range 3 {
		ip := fmt.Sprintf("127.0.0.%d", 11+i)
		routes = append(routes, ip+":"+freePort(t, ip))
	}
	s := prepareSite(t, 3, fmt.Sprintf(teamConfig, strings.Join(routes, `", "`)), "CARILLON_TRUSTED_PROXIES=[127.0.0.1]",
		"CARILLON_DRAIN_DELAY=1s", "CARILLON_DRAIN_DURATION=2s", "CARILLON_DRAIN_DEADLINE=30s", "CARILLON_CLUSTER_START_TIMEOUT="+long.String())
	for i, b := range s.servers {
		b.env = append(b.env, fmt.Sprint("CARILLON_CLUSTER_NODE=node", i), "CARILLON_CLUSTER_NATS_ROUTES_LISTEN="+routes[i],
			"CARILLON_CLUSTER_NATS_STORE_DIR="+filepath.Join(s.dir, fmt.Sprint("store", i)))
	}
	for _, b := range s.servers { // together: a majority has to be there
		b.begin(s.dir)
	}
	for _, b := range s.servers {
		b.isReady()
	}
	return s
}

// ended waits for the end.
func (p *program) ended() {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(long):
		p.t.Fatal("a node does not end")
	}
}

// isReady waits until the node is one of three.
func (b *behind) isReady() {
	b.t.Helper()
	eventually(b.t, "a node is ready, and knows the others", func() bool {
		select {
		case <-b.p.done:
			b.t.Fatalf("a node has ended:\n%s", b.p.stderr.String())
		default:
		}
		return b.saysReady() && strings.Contains(ask(b.t, "GET", "http://"+b.internal+"/metrics", ""), "\ncarillon_nats_nodes 3\n")
	})
}

func (b *behind) saysReady() bool {
	resp, err := http.Get("http://" + b.internal + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// rotate is the test, with one way to end a node.
func (s *site) rotate(balancer *exec.Cmd, end func(*behind)) {
	t := s.t
	s.run(balancer)
	ctx, cancel := context.WithCancel(t.Context())
	var running, publishing sync.WaitGroup
	defer running.Wait()
	defer cancel()

	clients, door := make([]*member, teamClients), make(chan struct{}, 64)
	for i := range clients {
		m := &member{roamer: &roamer{url: "ws://" + s.address + "/ws", topic: fmt.Sprint("team.", i%teamTopics), door: door}}
		m.take = m.hear
		clients[i] = m
		running.Go(func() { m.roam(ctx) })
	}
	s.waitForClients(teamClients, 0, 1, 2)

	p := &press{s: s, end: make(chan struct{}), offsets: map[int64]uint64{}, last: time.Now()}
	for i := range 2 * teamPublishers {
		publishing.Go(func() { p.publish(ctx, i) })
	}
	everybody := teamClients + teamPublishers // each publisher over WebSocket is a connection, too
	for i, b := range s.servers {
		p.goesOn()
		s.waitForClients(everybody, 0, 1, 2)
		t.Logf("server %d ends with %d connections, after %d messages", i, b.count(), p.count.Load())
		end(b)
		s.waitForClients(everybody, (i+1)%3, (i+2)%3)
		p.goesOn()
		b.begin(s.dir)
		b.isReady()
		eventually(t, "the balancer takes the server again", func() bool { return strings.HasPrefix(s.status(i), "UP") })
	}
	p.goesOn()
	close(p.end)
	publishing.Wait()
	if t.Failed() {
		return
	}

	topics := make([][]entry, teamTopics)
	for i := range topics {
		topics[i] = s.servers[0].log(i)
		for _, other := range s.servers[1:] {
			if !slices.Equal(topics[i], other.log(i)) {
				t.Errorf("the nodes do not keep the same of topic %d", i)
			}
		}
	}
	late := time.Now().Add(long)
	for i, m := range clients {
		for int(m.heard.Load()) < len(topics[i%teamTopics]) && time.Now().Before(late) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	cancel()
	running.Wait()
	p.check(topics)
	moves, gaps, wrong := 0, 0, 0
	for i, m := range clients {
		moves, gaps = moves+len(m.away), gaps+m.gaps
		if want := topics[i%teamTopics]; !slices.Equal(m.log, want) && wrong < 10 {
			wrong++
			t.Errorf("client %d has a log of %d messages, its topic has %d, and they differ at %d", i, len(m.log), len(want), differ(m.log, want))
		}
	}
	if gaps > 0 {
		t.Errorf("clients were told of %d gaps", gaps)
	}
	if moves < teamClients/2 {
		t.Errorf("the clients moved only %d times", moves)
	}
	t.Logf("%d messages; %d attempts to publish were not acknowledged, and for at most %.1f s none was; %d clients moved %d times", p.count.Load(),
		p.failed.Load(), p.pause.Seconds(), teamClients, moves)
}

// entry is a message's number and where it is in the topic.
type entry struct {
	n      int64
	offset uint64
}

func differ(a, b []entry) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// member is a client that keeps its log as it comes.
type member struct {
	*roamer
	log []entry
}

func (m *member) hear(n int64, offset uint64) {
	m.log = append(m.log, entry{n, offset})
	m.heard.Store(int64(len(m.log)))
}

// log is what a node says that a topic keeps.
func (b *behind) log(topic int) (list []entry) {
	b.t.Helper()
	url := fmt.Sprintf("http://%s/v1/topics/team.%d/messages?limit=1000", b.internal, topic)
	type page struct {
		position
		Recovered bool
		Messages  []struct {
			Offset uint64
			Data   struct{ N int64 }
		}
	}
	// It is not for some seconds after a message that was not acknowledged.
	eventually(b.t, "a node is ready", b.saysReady)
	var p page
	if err := json.Unmarshal([]byte(ask(b.t, "GET", url, "")), &p); err != nil {
		b.t.Fatal(err)
	}
	epoch, since := p.Epoch, uint64(0)
	for {
		p = page{}
		text := ask(b.t, "GET", fmt.Sprintf("%s&since=%d&epoch=%s", url, since, epoch), "")
		if err := json.Unmarshal([]byte(text), &p); err != nil || !p.Recovered {
			b.t.Fatalf("after %d a node keeps %.300s, %v", since, text, err)
		}
		if len(p.Messages) == 0 {
			return list
		}
		for _, m := range p.Messages {
			since = m.Offset
			list = append(list, entry{m.Data.N, m.Offset})
		}
	}
}

// press publishes, each message until it is acknowledged.
type press struct {
	s   *site
	end chan struct{} // closed when nothing new is to be published

	count, failed atomic.Int64 // messages that were acknowledged, attempts that were not

	mu      sync.Mutex
	offsets map[int64]uint64 // guarded by mu: of each message
	last    time.Time        // guarded by mu: something was acknowledged
	pause   time.Duration    // guarded by mu: the longest without an acknowledgement to anybody
}

const perPublisher = 1_000_000

// topicOf says to which topic a message belongs: a publisher goes from one to the next.
func topicOf(n int64) int { return int(n % perPublisher % teamTopics) }

func (p *press) publish(ctx context.Context, publisher int) {
	try := p.overHTTP(publisher)
	if publisher >= teamPublishers {
		talker := &talker{url: "ws://" + p.s.address + "/ws"}
		defer talker.close()
		try = talker.publish
	}
	for n := int64(publisher) * perPublisher; ; n++ {
		select {
		case <-p.end:
			return
		case <-ctx.Done():
			return
		case <-time.After(teamPace):
		}
		offset, err := try(ctx, n)
		for ; err != nil; offset, err = try(ctx, n) {
			p.failed.Add(1)
			if sleep(ctx, 50*time.Millisecond); ctx.Err() != nil {
				return
			}
		}
		if n%7 == 0 { // as if the answer had been lost
			if again, err := try(ctx, n); err == nil && again != offset {
				p.s.t.Errorf("message %d is at %d, and at %d with the same key", n, offset, again)
			}
		}
		p.mu.Lock()
		p.offsets[n] = offset
		p.pause, p.last = max(p.pause, time.Since(p.last)), time.Now()
		p.mu.Unlock()
		p.count.Add(1)
	}
}

// overHTTP publishes at one node after the other.
func (p *press) overHTTP(node int) func(context.Context, int64) (uint64, error) {
	client := &http.Client{Timeout: 2 * soon}
	return func(ctx context.Context, n int64) (uint64, error) {
		b := p.s.servers[node%3]
		node++
		url := fmt.Sprintf("http://%s/v1/topics/team.%d/messages", b.internal, topicOf(n))
		r, err := http.NewRequestWithContext(ctx, "POST", url, strings.NewReader(fmt.Sprintf(`{"n":%d}`, n)))
		if err != nil {
			return 0, err
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", fmt.Sprint(n))
		resp, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("%s, %w", resp.Status, err)
		}
		var receipt position
		err = json.Unmarshal(text, &receipt)
		return receipt.Offset, err
	}
}

// check holds the topics against what the publishers were told.
func (p *press) check(topics [][]entry) {
	t := p.s.t
	p.mu.Lock()
	defer p.mu.Unlock()
	total := 0
	for i, log := range topics {
		total += len(log)
		last := map[int64]int64{} // by publisher
		for _, e := range log {
			if offset, acknowledged := p.offsets[e.n]; !acknowledged || offset != e.offset || topicOf(e.n) != i {
				t.Errorf("topic %d has message %d at %d; its publisher knows of %d, %v", i, e.n, e.offset, offset, acknowledged)
			}
			if who := e.n / perPublisher; last[who] > e.n {
				t.Errorf("topic %d has message %d after %d of the same publisher", i, e.n, last[who])
			}
			last[e.n/perPublisher] = e.n
		}
	}
	if total != len(p.offsets) {
		t.Errorf("the topics keep %d messages, %d were acknowledged", total, len(p.offsets))
	}
}

// goesOn waits until some more is acknowledged.
func (p *press) goesOn() {
	p.s.t.Helper()
	before := p.count.Load()
	eventually(p.s.t, "publishing goes on", func() bool { return p.count.Load() > before+100 })
}

// talker publishes over a WebSocket, and comes back when that is closed.
type talker struct {
	url  string
	conn *websocket.Conn
}

func (w *talker) close() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

func (w *talker) publish(ctx context.Context, n int64) (offset uint64, err error) {
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.conn == nil {
		dialer := websocket.Dialer{Subprotocols: []string{"carillon.v1.json"}, HandshakeTimeout: 2 * soon}
		if w.conn, _, err = dialer.DialContext(ctx, w.url, nil); err != nil {
			w.conn = nil
			return 0, err
		}
	}
	_ = w.conn.SetReadDeadline(time.Now().Add(2 * soon))
	if err := w.conn.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"id":%d,"publish":{"topic":"team.%d","data":{"n":%[1]d},"key":"%[1]d"}}`,
		n, topicOf(n))); err != nil {
		return 0, err
	}
	_, text, err := w.conn.ReadMessage()
	if err != nil {
		return 0, err
	}
	var answer struct {
		ID        int64
		Published *position
	}
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&answer); err != nil || answer.ID != n || answer.Published == nil {
		return 0, fmt.Errorf("the server says %s, %v", text, err)
	}
	return answer.Published.Offset, nil
}
