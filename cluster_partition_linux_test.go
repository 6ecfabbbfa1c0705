package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/internal/needs"
)

// cutOffFor is how long a node is cut off: long enough for everything that has a time-out to notice.
const cutOffFor = time.Minute

// A node is cut off from the others for a minute: nothing says that a connection has ended, what is sent is just not
// there. Its clients stay with it. It refuses what is published to kept topics, and says that it is not ready; the
// others go on. When the way is open again, its clients get what they have missed, and what it has missed of a topic
// that nobody keeps is counted.
func TestANodeThatIsCutOffForAMinute(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	t.Run("from the other nodes", func(t *testing.T) {
		t.Parallel() // most of it is waiting
		if !inNetwork(t) {
			return
		}
		n := newNetwork(t, 3)
		s := n.site(teamConfig)
		s.run(s.haproxy(needs.Program(t, "haproxy"), ""))
		c := s.crowd(60)
		lonely := s.servers[2]
		news := s.news(0, 2)
		eventually(t, "news come", func() bool { return news.heard.Load() > 10 })
		c.press.goesOn()
		stays := lonely.count()

		n.machines[2].cut("back", true)
		began := time.Now()
		eventually(t, "the node says that it is not ready", func() bool { return strings.Contains(lonely.readiness(), "the cluster cannot be reached") })
		t.Logf("the node is not ready after %.1f s", time.Since(began).Seconds())
		for i := range 3 {
			if status, text := lonely.publish("team.0", `{"n":-1}`, fmt.Sprint("refused ", i)); status != http.StatusServiceUnavailable {
				t.Errorf("a message at the node that is cut off: %d %s", status, text)
			}
		}
		eventually(t, "the others are ready", func() bool { return s.servers[0].saysReady() && s.servers[1].saysReady() })
		t.Logf("the others are ready after %.1f s", time.Since(began).Seconds())
		c.press.goesOn()
		for _, b := range s.servers[:2] {
			b.knows(2)
		}
		lonely.knows(1)
		if status, text := lonely.publish("passing", `{}`, ""); status != http.StatusOK {
			t.Errorf("a message for a topic that nobody keeps, at the node that is cut off: %d %s", status, text)
		}
		time.Sleep(time.Until(began.Add(cutOffFor)))
		if lonely.saysReady() {
			t.Error("the node that is cut off says that it is ready")
		}
		if n := lonely.count(); n < stays-teamPublishers {
			t.Errorf("the node that is cut off has %d connections, it had %d", n, stays)
		}

		n.machines[2].cut("back", false)
		began = time.Now()
		for _, b := range s.servers {
			b.isReady()
		}
		t.Logf("all are together again after %.1f s", time.Since(began).Seconds())
		news.check(lonely)
		if moves := c.finish(); moves != 0 {
			t.Errorf("clients moved %d times", moves)
		}
	})
	t.Run("from everybody", func(t *testing.T) {
		t.Parallel()
		if !inNetwork(t) {
			return
		}
		n := newNetwork(t, 3)
		s := n.site(teamConfig)
		s.run(s.haproxy(needs.Program(t, "haproxy"), ""))
		c := s.crowd(60)
		c.press.goesOn()
		for _, bridge := range []string{"front", "back"} {
			n.machines[2].cut(bridge, true)
		}
		began := time.Now()
		eventually(t, "the others are ready, and two", func() bool {
			return s.servers[0].saysReady() && s.servers[1].saysReady() && s.servers[0].nodes() == 2 && s.servers[1].nodes() == 2
		})
		eventually(t, "the balancer notices", func() bool { return strings.HasPrefix(s.status(2), "DOWN") })
		c.press.goesOn()
		time.Sleep(time.Until(began.Add(cutOffFor)))
		c.press.goesOn()

		for _, bridge := range []string{"front", "back"} {
			n.machines[2].cut(bridge, false)
		}
		began = time.Now()
		for _, b := range s.servers {
			b.isReady()
		}
		t.Logf("all are together again after %.1f s", time.Since(began).Seconds())
		s.isTaken(2)
		c.finish()
	})
}

// publish publishes a message at a node.
func (b *behind) publish(topic, message, key string) (status int, text string) {
	b.t.Helper()
	r, err := http.NewRequest("POST", "http://"+b.internal+"/v1/topics/"+topic+"/messages", strings.NewReader(message))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	client := &http.Client{Timeout: long}
	resp, err := client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer json.RawMessage
	_ = json.NewDecoder(resp.Body).Decode(&answer)
	return resp.StatusCode, string(answer)
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

// news are messages of a topic that nobody keeps, from one node to a subscriber of another.
type news struct {
	t           *testing.T
	sent, heard atomic.Int64

	mu   sync.Mutex
	last int64 // guarded by mu
	lost int   // guarded by mu

	end, ended chan struct{}
}

const newsPace = 50 * time.Millisecond

func (s *site) news(from, to int) *news {
	t := s.t
	t.Helper()
	n := &news{t: t, end: make(chan struct{}), ended: make(chan struct{})}
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
			if status, text := from.publish("news", fmt.Sprintf(`{"n":%d}`, n.sent.Load()+1), ""); status != http.StatusOK {
				n.t.Errorf("the news are not published: %d %s", status, text)
				return
			}
			n.sent.Add(1)
		}
	}()
	return n
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
