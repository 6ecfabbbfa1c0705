package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// crowd is what uses a cluster during a test: clients, each of which keeps a log of one topic, and publishers.
type crowd struct {
	s       *site
	clients []*member
	press   *press

	cancel              context.CancelFunc
	running, publishing sync.WaitGroup
}

// crowd brings clients, and when all are subscribed, publishers. If wander is not 0, clients go from one server to
// another all the time.
func (s *site) crowd(clients int, wander time.Duration) *crowd {
	t := s.t
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{s: s, clients: make([]*member, clients), cancel: cancel}
	t.Cleanup(c.leave)
	door := make(chan struct{}, 64)
	for i := range c.clients {
		m := &member{roamer: &roamer{url: "ws://" + s.address + "/ws", topic: fmt.Sprint("team.", i%teamTopics), door: door, wander: wander}}
		m.take = m.hear
		c.clients[i] = m
		c.running.Go(func() { m.roam(ctx) })
	}
	for _, m := range c.clients {
		eventually(t, "all clients are subscribed", m.began.Load)
	}
	s.waitForClients(clients, s.all()...)
	s.watch()
	c.press = &press{s: s, end: make(chan struct{}), offsets: map[int64]uint64{}, last: time.Now()}
	for i := range 2 * teamPublishers {
		c.publishing.Go(func() { c.press.publish(ctx, i) })
	}
	return c
}

// watch logs at the end when which server was ready, and after a failure, what each has to say.
func (s *site) watch() {
	ctx, cancel := context.WithCancel(s.t.Context())
	var watching sync.WaitGroup
	var mu sync.Mutex
	var seen []string
	began := time.Now()
	for i, b := range s.servers {
		watching.Go(func() {
			for last := "?"; ctx.Err() == nil; sleep(ctx, 100*time.Millisecond) {
				now := b.readiness()
				if now == last {
					continue
				}
				last = now
				mu.Lock()
				seen = append(seen, fmt.Sprintf("%6.1f s, server %d: %s", time.Since(began).Seconds(), i, now))
				mu.Unlock()
			}
		})
	}
	s.t.Cleanup(func() {
		cancel()
		watching.Wait()
		s.t.Logf("ready were:\n%s", strings.Join(seen, "\n"))
		if s.t.Failed() {
			for i, b := range s.servers {
				s.t.Logf("server %d says\n%s\n%s", i, b.p.stderr.String(), b.figures())
			}
		}
	})
}

// figures are the server's metrics of the cluster that are not zero.
func (b *behind) figures() string {
	resp, err := watcher.Get("http://" + b.internal + "/metrics")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return strings.Join(regexp.MustCompile(`(?m)^carillon_(cluster|nats|connections_open).* [^0\n].*$`).FindAllString(string(text), -1), "\n")
}

// readiness is what a server says of it.
func (b *behind) readiness() string {
	resp, err := watcher.Get("http://" + b.internal + "/readyz")
	if err != nil {
		return "no answer"
	}
	defer resp.Body.Close()
	var answer struct{ Detail string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode == http.StatusOK {
		return resp.Status
	}
	return resp.Status + ": " + answer.Detail
}

var watcher = http.Client{Timeout: time.Second}

// all are the numbers of the servers.
func (s *site) all() (list []int) {
	for i := range s.servers {
		list = append(list, i)
	}
	return list
}

// connections is how many there are when all clients have one: each publisher over WebSocket, too.
func (c *crowd) connections() int { return len(c.clients) + teamPublishers }

// leave ends everything.
func (c *crowd) leave() {
	c.cancel()
	c.running.Wait()
	c.publishing.Wait()
}

// finish ends the publishing, waits until all clients have everything, and compares their logs with the topics, and
// these with what the publishers were told. It returns how often clients came to another server.
func (c *crowd) finish() (moves int) {
	t, s, p := c.s.t, c.s, c.press
	t.Helper()
	p.goesOn()
	close(p.end)
	c.publishing.Wait()
	if t.Failed() {
		return 0
	}
	topics := p.topics()
	for i, want := range topics {
		for server, b := range s.servers {
			log := b.log(i)
			for end := time.Now().Add(long); len(log) < len(want) && time.Now().Before(end); log = b.log(i) {
				time.Sleep(100 * time.Millisecond) // what was published at others may be on its way
			}
			if !slices.Equal(log, want) {
				t.Fatalf("server %d keeps %d messages of topic %d, of which %d were acknowledged, and they differ at %d", server, len(log), i, len(want),
					differ(log, want))
			}
		}
	}
	late := time.Now().Add(long)
	for i, m := range c.clients {
		for int(m.heard.Load()) < len(topics[i%teamTopics]) && time.Now().Before(late) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	c.leave()
	gaps, wrong := 0, 0
	for i, m := range c.clients {
		moves, gaps = moves+len(m.away), gaps+m.gaps
		if want := topics[i%teamTopics]; !slices.Equal(m.log, want) && wrong < 10 {
			wrong++
			t.Errorf("client %d has a log of %d messages, its topic has %d, and they differ at %d", i, len(m.log), len(want), differ(m.log, want))
		}
	}
	if gaps > 0 {
		t.Errorf("clients were told of %d gaps", gaps)
	}
	t.Logf("%d messages; %d attempts to publish were not acknowledged, and for at most %.1f s none was; %d clients moved %d times", p.count.Load(),
		p.failed.Load(), p.pause.Seconds(), len(c.clients), moves)
	return moves
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
	get := func(url string) (p page) {
		eventually(b.t, "a node says what it keeps", func() bool { // it cannot while JetStream has no leader
			resp, err := http.Get(url)
			if err != nil {
				b.t.Fatal(err)
			}
			defer resp.Body.Close()
			return resp.StatusCode == http.StatusOK && json.NewDecoder(resp.Body).Decode(&p) == nil
		})
		return p
	}
	epoch, since := get(url).Epoch, uint64(0)
	for {
		p := get(fmt.Sprintf("%s&since=%d&epoch=%s", url, since, epoch))
		if !p.Recovered {
			b.t.Fatalf("after %d of epoch %s a node keeps %+v", since, epoch, p)
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
	pause   time.Duration    // guarded by mu: the longest without an acknowledgement to any publisher
}

const perPublisher = 1_000_000

// patience is how long a publisher waits for an answer, of a node that may be stopped or cut off, before it tries
// again.
const patience = 10 * time.Second

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
	client := &http.Client{Timeout: patience}
	return func(ctx context.Context, n int64) (uint64, error) {
		b := p.s.servers[node%len(p.s.servers)]
		node++
		url := fmt.Sprintf("http://%s/v1/topics/team.%d/messages", b.internal, topicOf(n))
		status, text, err := post(ctx, client, url, fmt.Sprintf(`{"n":%d}`, n), fmt.Sprint(n))
		if err != nil || status != http.StatusOK {
			return 0, fmt.Errorf("%d, %w", status, err)
		}
		var receipt position
		err = json.Unmarshal(text, &receipt)
		return receipt.Offset, err
	}
}

// topics are what was acknowledged, in the order of the offsets, which has each publisher's messages in its order.
func (p *press) topics() (topics [teamTopics][]entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, offset := range p.offsets {
		topics[topicOf(n)] = append(topics[topicOf(n)], entry{n, offset})
	}
	for i, log := range topics {
		slices.SortFunc(log, func(a, b entry) int { return cmp.Compare(a.offset, b.offset) })
		last := map[int64]int64{} // by publisher
		for _, e := range log {
			if who := e.n / perPublisher; last[who] > e.n {
				p.s.t.Errorf("topic %d has message %d after %d of the same publisher", i, e.n, last[who])
			}
			last[e.n/perPublisher] = e.n
		}
	}
	return topics
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
		dialer := websocket.Dialer{Subprotocols: []string{"carillon.v1.json"}, HandshakeTimeout: patience}
		if w.conn, _, err = dialer.DialContext(ctx, w.url, nil); err != nil {
			w.conn = nil
			return 0, err
		}
	}
	_ = w.conn.SetReadDeadline(time.Now().Add(patience))
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
