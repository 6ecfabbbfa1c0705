package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// natsServer is a place for a NATS server with JetStream, at the same addresses with the same store.
type natsServer struct {
	t               *testing.T
	client, monitor string
	file            string
	enter           []string // the command that runs it elsewhere, if any
	p               *program
}

// natsServers runs NATS servers as processes of their own, as one cluster if there are more than one.
func natsServers(t *testing.T, number int, more string) (list []*natsServer) {
	t.Helper()
	dir := t.TempDir()
	var routes, names []string
	for i := range number {
		ip := fmt.Sprintf("127.0.0.%d", 21+i)
		list = append(list, &natsServer{t: t, client: ip + ":" + freePort(t, ip), monitor: ip + ":" + freePort(t, ip), file: filepath.Join(dir, fmt.Sprint(i, ".conf"))})
		routes, names = append(routes, ip+":"+freePort(t, ip)), append(names, fmt.Sprint("nats", i))
	}
	for i, n := range list {
		text := more
		if number > 1 {
			text += fmt.Sprintf("\ncluster { name: test, listen: %q, routes: [nats://%s] }", routes[i], strings.Join(routes, ", nats://"))
		}
		n.write(names[i], text)
	}
	return list
}

// write writes the server's configuration.
func (n *natsServer) write(name, more string) {
	n.t.Helper()
	text := fmt.Sprintf("server_name: %s\nlisten: %q\nhttp: %q\njetstream { store_dir: %q }\n%s\n", name, n.client, n.monitor, n.file+".store", more)
	if err := os.WriteFile(n.file, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *natsServer) begin() {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	command := append(slices.Clone(n.enter), self, "-c", n.file)
	n.p = startCommand(n.t, []string{natsEnv + "=1"}, exec.Command(command[0], command[1:]...))
}

// isWell waits until the server has everything that it should have.
func (n *natsServer) isWell() {
	n.t.Helper()
	eventually(n.t, "a NATS server is well", func() bool { return isOK("http://" + n.monitor + "/healthz") })
}

func (n *natsServer) kill() {
	n.t.Helper()
	n.p.signal(syscall.SIGKILL)
	n.p.ended()
}

// natsSite is three nodes behind HAProxy that are joined by NATS servers, and these.
func natsSite(t *testing.T, number int, more string) (*site, []*natsServer) {
	t.Helper()
	balancer := testenv.Program(t, "haproxy")
	servers := natsServers(t, number, more)
	var urls []string
	for _, n := range servers {
		n.begin()
		urls = append(urls, "nats://"+n.client)
	}
	for _, n := range servers {
		n.isWell()
	}
	s := prepareSite(t, 3, teamConfig, "CARILLON_TRUSTED_PROXIES=[127.0.0.1]", "CARILLON_CLUSTER_REPLICAS="+strconv.Itoa(number))
	s.joinBy(urls)
	s.run(s.haproxy(balancer, ""))
	return s, servers
}

// NATS servers are killed one after the other, and then all at once. Clients stay with their nodes. What is published
// while no NATS server can take it is refused, and when NATS is back, with what it has stored, all goes on where it
// was.
func TestNATSServersAreKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	t.Parallel() // most of it is waiting
	s, servers := natsSite(t, 3, "")
	c := s.crowd(60, 0)
	for _, n := range servers {
		c.press.goesOn()
		n.kill()
		c.press.goesOn()
		n.begin()
		n.isWell()
	}
	c.press.goesOn()
	s.waitForClients(c.connections(), s.all()...)
	for _, n := range servers {
		n.kill()
	}
	for _, b := range s.servers {
		eventually(t, "a node says that it is not ready", func() bool { return strings.Contains(b.readiness(), "not connected to NATS") })
		for _, topic := range []string{"team.0", "passing"} {
			if status, text := b.publish(topic, `{"n":-1}`, ""); status != http.StatusServiceUnavailable || !strings.Contains(text, "no-cluster") {
				t.Errorf("a message for %s without NATS: %d %s", topic, status, text)
			}
		}
		if b.metric("carillon_nats_connected") != 0 || b.metric(`carillon_nats_events_total{event="disconnect"}`) == 0 {
			t.Error("the metrics do not say that NATS is away")
		}
	}
	for _, n := range servers {
		n.begin()
	}
	s.areReady()
	if moves := c.finish(); moves != 0 {
		t.Errorf("clients moved %d times", moves)
	}
}

// roundsEnv says how many nodes TestNodesAreKilledAtRandom kills: some in an ordinary run, hundreds by hand.
const roundsEnv = "CARILLON_TEST_ROUNDS"

// One node after the other, as chance has it, is killed at whatever moment and comes back, or stops for some seconds
// and wakes up as if nothing had been. Clients, to which publishers publish without a pause, wander from node to node
// meanwhile, and resume at each. In the end each has the topic.
func TestNodesAreKilledAtRandom(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	t.Parallel()
	rounds, err := strconv.Atoi(os.Getenv(roundsEnv))
	if err != nil {
		rounds = 6
	}
	s := clusterSite(t, teamConfig, "")
	s.run(s.haproxy(testenv.Program(t, "haproxy"), ""))
	c := s.crowd(60, 2*time.Second)
	for round := range rounds {
		time.Sleep(rand.N(time.Second))
		b := s.servers[rand.N(len(s.servers))]
		if rand.N(3) > 0 {
			b.p.signal(syscall.SIGKILL)
			b.p.ended()
			time.Sleep(rand.N(2 * time.Second))
			b.begin(s.dir)
		} else {
			b.p.signal(syscall.SIGSTOP)
			time.Sleep(rand.N(10 * time.Second))
			b.p.signal(syscall.SIGCONT)
		}
		b.isReady()
		c.press.goesOn()
		if rounds > 20 && round%10 == 9 {
			t.Logf("%d rounds, %d messages", round+1, c.press.count.Load())
		}
	}
	if moves := c.finish(); moves < rounds*len(c.clients)/6 {
		t.Errorf("clients moved only %d times", moves)
	}
}

// A node stops to read for a while. NATS cuts it off as a slow consumer; the others go on. When it reads again, it
// notices, says so, makes good what topics with history have, and counts what others had.
func TestASlowNodeIsCutOffAndCatchesUp(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Parallel()
	s, servers := natsSite(t, 1, "write_deadline: \"1s\"\nmax_pending: 8MB")
	c := s.crowd(60, 0)
	news := s.news(0, 2, 100, 2000) // as much as fills all buffers within seconds
	eventually(t, "news come", func() bool { return news.heard.Load() > 10 })
	slow := s.servers[2]
	slow.p.signal(syscall.SIGSTOP)
	eventually(t, "NATS cuts the node off", func() bool { return servers[0].slowConsumers() > 0 })
	c.press.goesOn()
	slow.p.signal(syscall.SIGCONT)
	slow.isReady()
	if n := slow.metric(`carillon_nats_events_total{event="disconnect"}`); n == 0 {
		t.Error("the node has not counted that it was cut off")
	}
	news.check(slow)
	if news.lost == 0 {
		t.Error("the node has missed nothing: was it slow?")
	}
	if moves := c.finish(); moves != 0 {
		t.Errorf("clients moved %d times", moves)
	}
}

// slowConsumers is how many clients a NATS server has cut off because they did not read.
func (n *natsServer) slowConsumers() int {
	n.t.Helper()
	var v struct {
		SlowConsumers int `json:"slow_consumers"`
	}
	if err := json.Unmarshal([]byte(ask(n.t, "GET", "http://"+n.monitor+"/varz", "")), &v); err != nil {
		n.t.Fatal(err)
	}
	return v.SlowConsumers
}
