package e2e

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"carillon/internal/testenv"
)

const (
	teamClients    = 300
	teamTopics     = 10
	teamPublishers = 3                     // over HTTP, and as many over WebSocket
	teamPace       = 40 * time.Millisecond // between two messages of a publisher
	teamConfig     = `endpoints: [{path: /ws, mode: topics, topics: {publish: [">"]}}]
topics: [{match: team.>, history: 100000, max_age: 24h, max_bytes: 64MiB}]
`
)

// Three nodes of a cluster, each with NATS inside and a store of its own, behind HAProxy. One after the other ends and
// comes back with its store, while clients are connected to all of them and messages are published, over HTTP at the
// nodes and over WebSocket through the balancer. In the end each client's log is the topic's: every message that was
// acknowledged, once, at the offset that its publisher was told, and no client was told of a gap.
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
			program := testenv.Program(t, "haproxy")
			s := clusterSite(t, teamConfig, "")
			s.rotate(s.haproxy(program, ""), row.ends)
		})
	}
}

// clusterSite is a site whose servers are a cluster. They run the program that is given, if one is.
func clusterSite(t *testing.T, config, path string, env ...[]string) *site {
	t.Helper()
	var routes []string
	for i := range 3 {
		ip := fmt.Sprintf("127.0.0.%d", 11+i)
		routes = append(routes, ip+":"+freePort(t, ip))
	}
	s := prepareSite(t, 3, config, "CARILLON_TRUSTED_PROXIES=[127.0.0.1]",
		"CARILLON_DRAIN_DELAY=1s", "CARILLON_DRAIN_DURATION=2s", "CARILLON_DRAIN_DEADLINE=30s")
	for i, b := range s.servers {
		b.path = path
		if env != nil {
			b.env = append(b.env, env[i]...)
		}
	}
	s.join(routes)
	return s
}

// join starts the servers as a cluster, each with NATS inside.
func (s *site) join(routes []string) {
	s.t.Helper()
	password := "CARILLON_CLUSTER_NATS_PASSWORD=" + rand.Text()
	for i, b := range s.servers {
		b.env = append(b.env, fmt.Sprint("CARILLON_CLUSTER_NODE=node", i), "CARILLON_CLUSTER_START_TIMEOUT="+(2*long).String(),
			"CARILLON_CLUSTER_NATS_EMBEDDED=true", "CARILLON_CLUSTER_NATS_USER=node", password, "CARILLON_CLUSTER_NATS_ROUTES=["+strings.Join(routes, ", ")+"]",
			"CARILLON_CLUSTER_NATS_ROUTES_LISTEN="+routes[i], "CARILLON_CLUSTER_NATS_STORE_DIR="+filepath.Join(s.dir, fmt.Sprint("store", i)))
	}
	s.begin()
}

// joinBy starts the servers as a cluster on NATS servers that are there.
func (s *site) joinBy(urls []string) {
	s.t.Helper()
	for i, b := range s.servers {
		b.env = append(b.env, fmt.Sprint("CARILLON_CLUSTER_NODE=node", i), "CARILLON_CLUSTER_START_TIMEOUT="+(2*long).String(),
			"CARILLON_CLUSTER_NATS_URL="+strings.Join(urls, ","))
	}
	s.begin()
}

// begin starts the servers together: a majority has to be there.
func (s *site) begin() {
	s.t.Helper()
	for _, b := range s.servers {
		b.begin(s.dir)
	}
	s.areReady()
}

// areReady waits until all servers are one cluster.
func (s *site) areReady() {
	s.t.Helper()
	for _, b := range s.servers {
		b.isReady()
	}
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

func (b *behind) saysReady() bool { return isOK("http://" + b.internal + "/readyz") }

func isOK(url string) bool {
	resp, err := http.Get(url)
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
	c := s.crowd(teamClients, 0)
	for i, b := range s.servers {
		c.press.goesOn()
		s.waitForClients(c.connections(), 0, 1, 2)
		t.Logf("server %d ends with %d connections, after %d messages", i, b.count(), c.press.count.Load())
		end(b)
		s.waitForClients(c.connections(), (i+1)%3, (i+2)%3)
		c.press.goesOn()
		b.begin(s.dir)
		b.isReady()
		s.isTaken(i)
	}
	if moves := c.finish(); moves < teamClients/2 {
		t.Errorf("the clients moved only %d times", moves)
	}
}

// isTaken waits until the balancer sends clients to a server again.
func (s *site) isTaken(i int) {
	s.t.Helper()
	eventually(s.t, "the balancer takes the server again", func() bool { return strings.HasPrefix(s.status(i), "UP") })
}
