package cluster

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server"
	"carillon/server/topic"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// patience is how long a condition is waited for on a machine that has much else to do.
const patience = 60 * time.Second

var eventually = testenv.Eventually

// testLog keeps what is logged and shows it when the test fails.
type testLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if testing.Verbose() {
		os.Stderr.Write(b)
	}
	return l.text.Write(b)
}

func (l *testLog) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.text.Bytes(), []byte(text))
}

func (l *testLog) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte(text))
}

func newLog(t *testing.T) (*slog.Logger, *testLog) {
	l := &testLog{}
	t.Cleanup(func() {
		if t.Failed() {
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Logf("log of a node:\n%s", l.text.String())
		}
	})
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})), l
}

// natsAt is a NATS server of the test's. With a negative port it gets one at which another may follow it.
func natsAt(t *testing.T, port int, store string) *natsserver.Server {
	t.Helper()
	if port < 0 {
		port, _ = strconv.Atoi(testenv.Port(t, "127.0.0.1"))
	}
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, JetStream: store != "", StoreDir: store})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("the NATS server does not start")
	}
	t.Cleanup(s.Shutdown)
	return s
}

// freeAddresses are addresses of this machine where nothing listens.
func freeAddresses(t *testing.T, number int) (list []string) {
	t.Helper()
	for range number {
		list = append(list, testenv.Address(t))
	}
	return list
}

func portOf(a net.Addr) int { return a.(*net.TCPAddr).Port }

func urlOf(s *natsserver.Server) string { return "nats://127.0.0.1:" + strconv.Itoa(portOf(s.Addr())) }

// passed is a message that a fake node got.
type passed struct {
	from             string
	incarnation, seq uint64
	topic, payload   string
}

// kept is one for a topic with history.
type kept struct {
	topic, payload, epoch string
	offset, prev          uint64
}

// fakeNode is a server as a broker sees it.
type fakeNode struct {
	options server.Options

	mu         sync.Mutex
	passed     []passed
	broadcasts []passed
	kept       []kept
	resyncs    []string
	block      chan struct{} // when not nil, messages wait until it is closed
}

func (n *fakeNode) wait() {
	n.mu.Lock()
	block := n.block
	n.mu.Unlock()
	if block != nil {
		<-block
	}
}

func (n *fakeNode) Transient(from string, incarnation, seq uint64, p topic.Publication, at time.Time) {
	n.wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.passed = append(n.passed, passed{from, incarnation, seq, p.Topic, string(p.Payload)})
}

func (n *fakeNode) Broadcast(from string, path string, op codec.Opcode, payload []byte, seq uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broadcasts = append(n.broadcasts, passed{from, uint64(op), seq, path, string(payload)})
}

func (n *fakeNode) Persistent(m topic.Message, epoch string, prev uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.kept = append(n.kept, kept{m.Topic, string(m.Payload), epoch, m.Offset, prev})
}

func (n *fakeNode) Resync(why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resyncs = append(n.resyncs, why)
}

func (n *fakeNode) Answer(subject string, question []byte) []byte {
	return []byte(subject + ": " + string(question) + "!")
}

func (n *fakeNode) Info() topic.NodeInfo {
	return topic.NodeInfo{Version: "test", Connections: 7, State: "ready"}
}
func (n *fakeNode) Rules() []topic.Rule { return n.options.Topics }
func (n *fakeNode) MaxMessage() int64   { return int64(n.options.Limits.MaxMessage) }

func (n *fakeNode) all() []passed {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.passed)
}

func (n *fakeNode) allKept() []kept {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.kept)
}

func (n *fakeNode) resynced() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.resyncs)
}

// testNode is a fake node with its broker.
type testNode struct {
	*Broker
	fake *fakeNode
	t    *testing.T
	log  *testLog
}

func (n *testNode) all() []passed   { return n.fake.all() }
func (n *testNode) allKept() []kept { return n.fake.allKept() }
func (n *testNode) resynced() int   { return n.fake.resynced() }

func (n *testNode) Broadcasts() []passed {
	n.fake.mu.Lock()
	defer n.fake.mu.Unlock()
	return slices.Clone(n.fake.broadcasts)
}

// join starts a broker.
func join(t *testing.T, o Options, rules ...topic.Rule) *testNode {
	t.Helper()
	n, err := tryJoin(t, o, rules...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tryJoin(t *testing.T, o Options, rules ...topic.Rule) (*testNode, error) {
	t.Helper()
	return tryJoinTuned(t, o, nil, rules...)
}

func tryJoinTuned(t *testing.T, o Options, tune func(*natsserver.Options), rules ...topic.Rule) (*testNode, error) {
	t.Helper()
	return tryJoinPrepared(t, o, func(b *Broker) { b.tune = tune }, rules...)
}

func tryJoinPrepared(t *testing.T, o Options, prepare func(*Broker), rules ...topic.Rule) (*testNode, error) {
	t.Helper()
	logger, log := newLog(t)
	o.Logger = logger
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	prepare(b)
	so, err := server.Options{Topics: rules}.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{b, &fakeNode{options: so}, t, log}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.Start(ctx, n.fake); err != nil {
		return nil, err
	}
	t.Cleanup(n.leave)
	return n, nil
}

func (n *testNode) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n.Broker.Stop(ctx)
}

// knows waits until the node has heard of so many.
func (n *testNode) knows(count int) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("%d nodes", count), func() bool { return len(n.Nodes()) == count })
}

// follow waits until a name is followed.
func (n *testNode) follow(names ...string) {
	n.t.Helper()
	joined := make(chan error, len(names))
	for _, name := range names {
		n.Follow(name, func(err error) { joined <- err })
	}
	for range names {
		if err := <-joined; err != nil {
			n.t.Fatalf("follow: %v", err)
		}
	}
}

// publish publishes to a transient topic and waits until NATS has the message.
func (n *testNode) publish(name, payload string, seq uint64) error {
	done := make(chan error, 1)
	n.PublishTransient(topic.Publication{Topic: name, Payload: []byte(payload)}, 1, seq, func(err error) { done <- err })
	return <-done
}

// store publishes to a topic with history and waits for the answer.
func (n *testNode) store(name, payload, key string) (topic.Position, error) {
	return n.storeBy("", name, payload, key)
}

func (n *testNode) storeBy(publisher, name, payload, key string) (topic.Position, error) {
	type answer struct {
		p   topic.Position
		err error
	}
	done := make(chan answer, 1)
	n.PublishPersistent(topic.Publication{Topic: name, Payload: []byte(payload), Key: key, Publisher: publisher}, 0, func(p topic.Position, err error) { done <- answer{p, err} })
	a := <-done
	return a.p, a.err
}

func (n *testNode) load(name string, after uint64) (topic.Snapshot, error) {
	return n.loadRule(0, name, after)
}

func payloads(list []topic.Message) (texts []string) {
	for _, m := range list {
		texts = append(texts, string(m.Payload))
	}
	return texts
}

func (n *testNode) loadRule(rule int, name string, after uint64) (topic.Snapshot, error) {
	type answer struct {
		k   topic.Snapshot
		err error
	}
	done := make(chan answer, 1)
	n.Load(name, rule, after, func(k topic.Snapshot, err error) { done <- answer{k, err} })
	a := <-done
	return a.k, a.err
}
