package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// publish publishes a message at a node.
func (b *behind) publish(topic, message, key string) (status int, text string) {
	b.t.Helper()
	status, answer, err := post(b.t.Context(), &http.Client{Timeout: long}, "http://"+b.internal+"/v1/topics/"+topic+"/messages", message, key)
	if err != nil {
		b.t.Fatal(err)
	}
	return status, string(answer)
}

// metric is the value of a metric, as it is written with its labels; 0 if there is none.
func (b *behind) metric(name string) int {
	b.t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(ask(b.t, "GET", "http://"+b.internal+"/metrics", ""))
	if m == nil {
		return 0
	}
	value, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		b.t.Fatal(err)
	}
	return int(value)
}

func (b *behind) nodes() int { return b.metric("carillon_nats_nodes") }

// knows waits until a node knows of so many.
func (b *behind) knows(nodes int) {
	b.t.Helper()
	eventually(b.t, fmt.Sprintf("a node knows of %d", nodes), func() bool { return b.nodes() == nodes })
}

// news are messages of a transient topic, from one node to a subscriber of another.
type news struct {
	t           *testing.T
	batch       int
	text        string
	sent, heard atomic.Int64

	mu   sync.Mutex
	last int64 // guarded by mu
	lost int   // guarded by mu

	end, ended chan struct{}
}

const newsPace = 50 * time.Millisecond

// news are published at one server, so many at once, with so much text, and are heard at another one.
func (s *site) news(from, to, batch, size int) *news {
	t := s.t
	t.Helper()
	n := &news{t: t, batch: batch, text: strings.Repeat("x", size), end: make(chan struct{}), ended: make(chan struct{})}
	dialer := websocket.Dialer{Subprotocols: []string{"carillon.v1.json"}, HandshakeTimeout: long}
	conn, _, err := dialer.Dial("ws://"+s.servers[to].public+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return n.run(conn, s.servers[from])
}

func (n *news) run(conn *websocket.Conn, from *behind) *news {
	n.t.Helper()
	say(n.t, conn, `{"id":1,"subscribe":{"topic":"news"}}`)
	if _, text, err := conn.ReadMessage(); err != nil || !strings.Contains(string(text), `"subscribed"`) {
		n.t.Fatalf("the server says %s, %v", text, err)
	}
	go n.listen(conn)
	go func() {
		defer close(n.ended)
		for {
			select {
			case <-n.end:
				return
			case <-time.After(newsPace):
			}
			if err := n.publish(from); err != nil {
				n.t.Errorf("the news are not published: %v", err)
				return
			}
		}
	}()
	return n
}

func (n *news) publish(at *behind) error {
	var lines strings.Builder
	for i := range n.batch {
		fmt.Fprintf(&lines, `{"topic":"news","data":{"n":%d,"text":%q}}`+"\n", n.sent.Load()+int64(i)+1, n.text)
	}
	resp, err := http.Post("http://"+at.internal+"/v1/messages", "application/x-ndjson", strings.NewReader(lines.String()))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || bytes.Contains(answer, []byte("/problems/")) {
		return fmt.Errorf("%s %.300s, %w", resp.Status, answer, err)
	}
	n.sent.Add(int64(n.batch))
	return nil
}

func (n *news) listen(conn *websocket.Conn) {
	for {
		var frame struct{ Data struct{ N int64 } }
		if err := conn.ReadJSON(&frame); err != nil {
			return // the test ends
		}
		n.mu.Lock()
		if frame.Data.N <= n.last {
			n.t.Errorf("news %d come after %d", frame.Data.N, n.last)
		}
		n.lost += int(frame.Data.N - n.last - 1)
		n.last = frame.Data.N
		n.mu.Unlock()
		n.heard.Add(1)
	}
}

// check ends the news, when they come again. What did not come is what the node has counted.
func (n *news) check(at *behind) {
	t := n.t
	t.Helper()
	before := n.sent.Load()
	eventually(t, "news come again", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.last > before
	})
	close(n.end)
	<-n.ended
	eventually(t, "the last news come", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.last == n.sent.Load()
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if counted := at.metric(`carillon_drops_total{reason="cluster_gap"}`); counted != n.lost {
		t.Errorf("%d of %d news did not come, and the node has counted %d", n.lost, n.last, counted)
	}
	t.Logf("%d of %d news did not come", n.lost, n.last)
}
