package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// cutOffFor is how long a node is cut off: long enough for everything that has a time-out to notice.
const cutOffFor = time.Minute

// A node is cut off from the others for a minute: nothing says that a connection has ended, what is sent is just not
// there. Its clients stay with it. It refuses what is published to kept topics, and says that it is not ready; the
// others go on. When the way is open again, its clients get what they have missed, and what it has missed of a
// transient topic is counted.
func TestANodeThatIsCutOffForAMinute(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	t.Run("from the other nodes", func(t *testing.T) {
		t.Parallel() // most of it is waiting
		if inNetwork(t) {
			n := newNetwork(t, 3)
			n.cutOff(n.embedded(teamConfig), true)
		}
	})
	t.Run("from NATS", func(t *testing.T) {
		t.Parallel()
		if inNetwork(t) {
			n := newNetwork(t, 4)
			n.cutOff(n.around(teamConfig), false)
		}
	})
	t.Run("from all others", func(t *testing.T) {
		t.Parallel()
		if !inNetwork(t) {
			return
		}
		n := newNetwork(t, 3)
		s := n.embedded(teamConfig)
		s.run(s.haproxy(testenv.Program(t, "haproxy"), ""))
		c := s.crowd(60, 0)
		c.press.goesOn()
		n.machines[2].cut(true, "front", "back")
		began := time.Now()
		eventually(t, "the others are ready, and two", func() bool {
			return s.servers[0].saysReady() && s.servers[1].saysReady() && s.servers[0].nodes() == 2 && s.servers[1].nodes() == 2
		})
		eventually(t, "the balancer notices", func() bool { return strings.HasPrefix(s.status(2), "DOWN") })
		c.press.goesOn()
		time.Sleep(time.Until(began.Add(cutOffFor)))
		c.press.goesOn()

		n.machines[2].cut(false, "front", "back")
		began = time.Now()
		s.areReady()
		t.Logf("all are together again after %.1f s", time.Since(began).Seconds())
		s.isTaken(2)
		c.finish()
	})
}

// cutOff is the test in which clients can reach the node: by the back it is cut off from the other nodes, whose NATS
// servers are in them, or from the NATS server.
func (n *network) cutOff(s *site, embedded bool) {
	t := n.t
	t.Helper()
	s.run(s.haproxy(testenv.Program(t, "haproxy"), ""))
	c := s.crowd(60, 0)
	lonely := s.servers[2]
	news := s.news(0, 2, 1, 0)
	eventually(t, "news come", func() bool { return news.heard.Load() > 10 })
	c.press.goesOn()
	stays := lonely.count()

	n.machines[2].cut(true, "back")
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
	want := http.StatusServiceUnavailable
	if embedded {
		want = http.StatusOK // it is a part of the cluster of its own
		eventually(t, "the ways to the others are given up", func() bool { return lonely.metric(`carillon_nats_events_total{event="server_stale_connection"}`) > 0 })
	}
	time.Sleep(time.Until(began.Add(cutOffFor)))
	if status, text := lonely.publish("passing", `{}`, ""); status != want {
		t.Errorf("a message for a transient topic, at the node that is cut off: %d %s, want %d", status, text, want)
	}
	if lonely.saysReady() {
		t.Error("the node that is cut off says that it is ready")
	}
	if n := lonely.count(); n < stays-teamPublishers {
		t.Errorf("the node that is cut off has %d connections, it had %d", n, stays)
	}

	n.machines[2].cut(false, "back")
	began = time.Now()
	s.areReady()
	t.Logf("all are together again after %.1f s", time.Since(began).Seconds())
	news.check(lonely)
	if moves := c.finish(); moves != 0 {
		t.Errorf("clients moved %d times", moves)
	}
}
