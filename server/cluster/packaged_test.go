package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/topic"
)

// packagedTrio is three servers of an installed nats-server, with JetStream, as one cluster.
type packagedTrio struct {
	t       *testing.T
	path    string
	dir     string
	clients [3]string // addresses
	routes  [3]string
	running [3]*exec.Cmd
}

func newPackagedTrio(t *testing.T, path string) *packagedTrio {
	x := &packagedTrio{t: t, path: path, dir: t.TempDir()}
	list := freeAddresses(t, 6)
	copy(x.clients[:], list)
	copy(x.routes[:], list[3:])
	t.Cleanup(func() {
		for i := range 3 {
			x.end(i, syscall.SIGTERM)
			if text, _ := os.ReadFile(x.file(i, "log")); t.Failed() {
				t.Logf("nats-server %d:\n%s", i, text)
			}
		}
	})
	return x
}

func (x *packagedTrio) file(i int, name string) string {
	return filepath.Join(x.dir, fmt.Sprint(name, i))
}

func (x *packagedTrio) url() string { return "nats://" + strings.Join(x.clients[:], ",nats://") }

func (x *packagedTrio) start(which ...int) {
	x.t.Helper()
	for _, i := range which {
		_, port, _ := net.SplitHostPort(x.clients[i])
		cmd := testenv.Command(x.path, "-a", "127.0.0.1", "-p", port, "-n", fmt.Sprint("server", i), "-js", "-sd", x.file(i, "store"),
			"--cluster_name", "packaged", "--cluster", "nats://"+x.routes[i], "--routes", "nats://"+strings.Join(x.routes[:], ",nats://"))
		out, err := os.OpenFile(x.file(i, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			x.t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = out, out
		err = cmd.Start()
		out.Close()
		if err != nil {
			x.t.Fatal(err)
		}
		x.running[i] = cmd
	}
	for _, i := range which {
		eventually(x.t, "nats-server listens", func() bool {
			c, err := net.Dial("tcp", x.clients[i])
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
}

// end ends a server, if it runs, by a signal.
func (x *packagedTrio) end(i int, signal os.Signal) {
	cmd := x.running[i]
	if cmd == nil {
		return
	}
	x.running[i] = nil
	endCommand(cmd, signal)
}

// streamLeader is the number of the server that leads the stream.
func streamLeader(t *testing.T, n *testNode) (number int) {
	eventually(t, "the stream has a leader", func() bool {
		m, err := n.nc.Request("$JS.API.STREAM.INFO."+n.streams[0].name, nil, infoTimeout)
		if err != nil {
			return false
		}
		var answer struct{ Cluster struct{ Leader string } }
		if err := json.Unmarshal(m.Data, &answer); err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Sscanf(answer.Cluster.Leader, "server%d", &number)
		return err == nil
	})
	return number
}

// packagedCluster is three nodes on three servers, with all that they are known to have.
type packagedCluster struct {
	*packagedTrio
	nodes   [3]*testNode
	history bool // the servers are new enough for it

	passing, stored []string
	last            topic.Position // of what is stored
}

// settle waits until all nodes are well, with none on a server that is gone, and every server knows what they follow.
func (x *packagedCluster) settle(gone string) {
	x.t.Helper()
	eventually(x.t, "all are well", func() bool {
		return !slices.ContainsFunc(x.nodes[:], func(n *testNode) bool {
			return n.Err() != nil || len(n.Nodes()) != 3 || n.nc.ConnectedAddr() == gone
		})
	})
	for _, n := range x.nodes {
		n.follow("after." + gone) // the servers of the other nodes know then what it followed before
		if x.history {
			eventually(x.t, "the stream's leader knows it, too", func() bool {
				_, err := n.awaitInfo(n.streams[0])
				return err == nil
			})
		}
	}
}

// say has the first node publish a transient message and a broadcast, and all nodes the same message for a topic with
// history.
func (x *packagedCluster) say(text string) {
	x.t.Helper()
	first := x.nodes[0]
	x.passing = append(x.passing, text)
	if err := first.publish("plain", text, uint64(len(x.passing))); err != nil {
		x.t.Fatal(err)
	}
	sent := make(chan error, 1)
	first.Broadcast("/broadcast", codec.OpText, []byte(text), uint64(len(x.passing)), func(err error) { sent <- err })
	if err := <-sent; err != nil {
		x.t.Fatal(err)
	}
	for i, n := range x.nodes[1:] {
		eventually(x.t, fmt.Sprintf("%s comes to node %d", text, i+1), func() bool {
			return len(n.all()) == len(x.passing) && n.all()[len(x.passing)-1].payload == text && len(n.Broadcasts()) == len(x.passing)
		})
	}
	if !x.history {
		return
	}
	x.stored = append(x.stored, text)
	for i, n := range x.nodes {
		var at topic.Position
		eventually(x.t, "it is stored", func() bool {
			var err error
			at, err = n.store("kept.a", text, text)
			return err == nil
		})
		if i > 0 && at != x.last {
			x.t.Errorf("%s is at %v, and before it was at %v", text, at, x.last)
		}
		x.last = at
	}
	for i, n := range x.nodes {
		eventually(x.t, fmt.Sprintf("%s comes to node %d, which follows its topic", text, i), func() bool {
			return slices.ContainsFunc(n.allKept(), func(k kept) bool { return k.payload == text && k.offset == x.last.Offset })
		})
	}
}

// Three servers of the distribution's nats-server, with every message on all three. One that leads is killed, and comes
// back: transient messages and broadcasts go on, and what is kept is there once, and is read on at any node.
func TestThreePackagedNATSServersAreACluster(t *testing.T) {
	t.Parallel()
	path := testenv.Program(t, "nats-server")
	x := &packagedCluster{packagedTrio: newPackagedTrio(t, path), history: !isOlder(packagedVersion(t, path), leastVersion)}
	x.start(0, 1, 2)
	var rules []topic.Rule
	if x.history {
		rules = append(rules, topic.Rule{Match: "kept.>", History: 1000})
	}
	for i := range x.nodes {
		x.nodes[i] = join(t, Options{Replicas: 3, Timeout: 2 * time.Second, NATS: NATS{URL: x.url()}}, rules...)
		x.nodes[i].follow("plain", "kept.a")
	}
	x.settle("none")
	for i := range 10 {
		x.say(fmt.Sprint("before ", i))
	}
	before, victim := x.last, 1
	if x.history {
		victim = streamLeader(t, x.nodes[0])
	}
	x.end(victim, syscall.SIGKILL)
	x.settle(x.clients[victim])
	x.say("without it")
	x.start(victim)
	x.settle("none")
	x.say("with it")
	if !x.history {
		return
	}
	for i, n := range x.nodes {
		eventually(t, fmt.Sprintf("node %d has all", i), func() bool {
			k, err := n.load("kept.a", 0)
			return err == nil && k.Epoch == x.last.Epoch && slices.Equal(payloads(k.Messages), x.stored)
		})
		if k, err := n.load("kept.a", before.Offset); err != nil || k.Since != before.Offset || !slices.Equal(payloads(k.Messages), x.stored[10:]) {
			t.Errorf("node %d, after %v: since %d, %v, %v", i, before, k.Since, payloads(k.Messages), err)
		}
	}
}
