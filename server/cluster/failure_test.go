package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/topic"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

func TestWhileNATSIsAwayNothingIsSwallowedAndAfterItAllGoesOn(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	s := natsAt(t, -1, store)
	port := portOf(s.Addr())
	o := Options{NATS: NATS{URL: urlOf(s)}, Timeout: time.Second}
	rule := topic.Rule{Match: "kept.>", History: 100}
	alice, bob := join(t, o, rule), join(t, o, rule)
	bob.follow("kept.a", "plain")
	if _, err := alice.store("kept.a", "before", ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it comes", func() bool { return len(bob.allKept()) == 1 })

	s.Shutdown()
	s.WaitForShutdown()
	eventually(t, "the nodes say so", func() bool { return alice.Err() != nil && bob.Err() != nil })
	if err := alice.Err(); err == nil || !strings.Contains(err.Error(), "not connected to NATS") {
		t.Errorf("Err is %v", err)
	}
	if err := alice.publish("plain", "x", 1); !errors.Is(err, topic.ErrNoCluster) {
		t.Errorf("a passing message: %v, want %v", err, topic.ErrNoCluster)
	}
	if _, err := alice.store("kept.a", "x", ""); !errors.Is(err, topic.ErrNoCluster) {
		t.Errorf("a kept message: %v, want %v", err, topic.ErrNoCluster)
	}
	if _, err := bob.load("kept.a", 0); err == nil {
		t.Error("loading did not fail")
	}
	joined := make(chan error, 1)
	bob.Follow("late", func(err error) { joined <- err })
	if err := <-joined; err == nil {
		t.Error("following did not fail")
	}

	natsAt(t, port, store)
	eventually(t, "the nodes are back", func() bool { return alice.Err() == nil && bob.Err() == nil })
	eventually(t, "bob looks again", func() bool { return bob.resynced() > 0 })
	bob.follow("late")
	var p topic.Position
	eventually(t, "JetStream is back", func() bool {
		var err error
		p, err = alice.store("kept.a", "after", "after")
		return err == nil
	})
	eventually(t, "it comes", func() bool {
		return slices.ContainsFunc(bob.allKept(), func(k kept) bool { return k.payload == "after" && k.epoch == p.Epoch })
	})
	k, err := bob.load("kept.a", 0)
	if err != nil || !slices.Equal(payloads(k.Messages), []string{"before", "after"}) || k.Epoch != bob.allKept()[0].epoch {
		t.Errorf("kept are %v in %s, %v", payloads(k.Messages), k.Epoch, err)
	}
	for i, topic := range []string{"plain", "late"} {
		if err := alice.publish(topic, "x", 1); err != nil {
			t.Error(err)
		}
		eventually(t, "a passing message comes", func() bool { return len(bob.all()) == i+1 })
	}
	if alice.Stats().Disconnects == 0 || alice.Stats().Refused < 2 {
		t.Errorf("numbers are %+v", alice.Stats())
	}
}

// What was sent before the connection broke may have arrived or not. What was acknowledged has.
func TestWhatIsAcknowledgedSurvivesRestartsOfNATS(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	s := natsAt(t, -1, store)
	port := portOf(s.Addr())
	o := Options{NATS: NATS{URL: urlOf(s)}, Timeout: 2 * time.Second}
	rule := topic.Rule{Match: ">", History: 100_000}
	alice, bob := join(t, o, rule), join(t, o, rule)
	stop, stopped := make(chan struct{}), make(chan []string)
	go func() {
		var certain []string
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- certain
				return
			default:
			}
			if _, err := alice.store("a", fmt.Sprint(i), fmt.Sprint("key", i)); err == nil {
				certain = append(certain, fmt.Sprint(i))
			} else {
				i-- // with the same key once more: it must not be there twice
				time.Sleep(5 * time.Millisecond)
			}
		}
	}()
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		s.Shutdown()
		s.WaitForShutdown()
		s = natsAt(t, port, store)
		eventually(t, "alice is back", func() bool { return alice.Err() == nil })
	}
	time.Sleep(100 * time.Millisecond)
	close(stop)
	certain := <-stopped
	eventually(t, "bob is back", func() bool { return bob.Err() == nil })
	k, err := bob.load("a", 0)
	if err != nil || !slices.Equal(payloads(k.Messages), certain) {
		t.Errorf("%d are kept, %d are certain, %v", len(k.Messages), len(certain), err)
	}
}

func TestAStreamThatIsDeletedBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := topic.Rule{Match: ">", History: 100}
	n, others := join(t, o, rule), []*testNode{join(t, o, rule), join(t, o, rule)}
	n.follow("a")
	var p topic.Position
	for i := range 50 {
		var err error
		if p, err = n.store("a", fmt.Sprint(i), ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, one := range append(others, n) {
		eventually(t, "the node knows how far the stream is", func() bool {
			st := one.streams[0]
			st.mu.Lock()
			defer st.mu.Unlock()
			return st.seen.seq == p.Offset
		})
	}
	if m, err := n.nc.Request("$JS.API.STREAM.DELETE."+n.streams[0].name, nil, patience); err != nil || !strings.Contains(string(m.Data), "true") {
		t.Fatal(m, err)
	}
	var q topic.Position
	eventually(t, "there is another stream", func() bool {
		var err error
		q, err = n.store("a", "new", "key")
		return err == nil && q.Epoch != p.Epoch
	})
	for _, one := range append(others, n) {
		eventually(t, "the node looks again", func() bool { return one.resynced() > 0 })
	}

	// It is shorter than the one before. That does not mean that it has lost something.
	time.Sleep(5 * probeInterval)
	for _, one := range append(others, n) {
		if again, err := one.store("a", "new", "key"); err != nil || again != q {
			t.Errorf("with the same key it is at %v, %v, and was at %v", again, err, q)
		}
		if k, err := one.load("a", 0); err != nil || k.Epoch != q.Epoch || len(k.Messages) != 1 {
			t.Errorf("kept are %v of epoch %s, %v, want one of %s", payloads(k.Messages), k.Epoch, err, q.Epoch)
		}
	}
}

// The connection to NATS breaks and is back, and NATS takes long for the first answer. Nothing else tells the node that
// it has missed something.
func TestASlowReturnOfNATSIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := natsAt(t, -1, t.TempDir())
	way := newLink(t)
	way.run(s.Addr().String())
	o := Options{Timeout: 500 * time.Millisecond, NATS: NATS{URL: "nats://" + way.listener.Addr().String()}}
	n := join(t, o, topic.Rule{Match: ">", History: 10})
	n.follow("a")
	if _, err := n.store("a", "1", ""); err != nil {
		t.Fatal(err)
	}
	before := n.Stats().Disconnects
	way.delay(700 * time.Millisecond)
	way.set(true)
	way.set(false)
	eventually(t, "the connection is back", func() bool { return n.Stats().Disconnects > before && n.nc.IsConnected() })
	time.Sleep(2 * time.Second) // by when the first answer was not there in time
	way.delay(0)
	eventually(t, "the node looks again", func() bool { return n.resynced() > 0 })
}

func TestASlowNodeDropsAndSaysSo(t *testing.T) {
	t.Parallel()
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	alice, bob := join(t, o), join(t, o)
	bob.follow("a")
	bob.fake.block = make(chan struct{})
	big := strings.Repeat("x", 900_000)
	const count = 2 * maxPendingBytes / 900_000
	for i := range count {
		if err := alice.publish("a", big, uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "bob drops messages", func() bool { return bob.Stats().Slow > 0 })
	eventually(t, "bob has looked at all", func() bool { return bob.Stats().Slow > 20 })
	if bob.resynced() > 0 {
		t.Error("bob was told to look again before he could")
	}
	eventually(t, "alice knows that bob is behind", func() bool {
		list := alice.Nodes()
		return len(list) == 2 && list[1].Lag > 0
	})
	close(bob.fake.block)
	eventually(t, "bob is told to look again", func() bool { return bob.resynced() > 0 })
	eventually(t, "everything was taken or counted", func() bool { return uint64(len(bob.all()))+bob.Stats().Slow == count })
	eventually(t, "the log says so", func() bool { return bob.log.has("slow consumer") })
	eventually(t, "alice knows that he is not any more", func() bool {
		list := alice.Nodes()
		return len(list) == 2 && list[1].Lag == 0
	})
	if err := alice.publish("a", "on", count+1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it goes on", func() bool { return bob.all()[len(bob.all())-1].payload == "on" })
}

func TestTooMuchAtOnceIsRefused(t *testing.T) {
	b, err := New(Options{NATS: NATS{URL: "nats://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	b.ready.Store(true) // without the goroutine that writes
	refused := make(chan error, 100)
	publish := func(size int) (taken bool) {
		before := b.out.waiting
		b.PublishTransient(topic.Publication{Topic: "a", Payload: make([]byte, size)}, 1, 1, func(err error) { refused <- err })
		if taken = b.out.waiting > before; !taken {
			if err := <-refused; err != topic.ErrOverloaded {
				t.Fatalf("got %v", err)
			}
		}
		return taken
	}
	for _, size := range []int{1 << 20, 64 << 10, 1 << 10} { // each leaves three times its size
		n := 0
		for publish(size) {
			n++
		}
		if left := maxWaitingBytes - b.out.bytes; n == 0 || left < 3*size || left > 5*(size+costOfWaiting) {
			t.Errorf("after %d messages of %d bytes %d are left", n, size, left)
		}
	}
	if !publish(16) {
		t.Error("there is no room for a small message")
	}
}

func TestAMessageThatIsTooLargeForNATSIsRefused(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, topic.Rule{Match: "kept", History: 1})
	big := strings.Repeat("x", 1<<20)
	if err := n.publish("a", big, 1); !errors.Is(err, topic.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if _, err := n.store("kept", big, ""); !errors.Is(err, topic.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestAStartWithoutNATSEndsWithAReason(t *testing.T) {
	_, err := tryJoin(t, Options{NATS: NATS{URL: "nats://" + testenv.Address(t)}, StartTimeout: 500 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "start_timeout") || !strings.Contains(err.Error(), "connect to NATS") {
		t.Errorf("the error is %v", err)
	}
}

func TestAWrongPasswordEndsTheStart(t *testing.T) {
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, Username: "me", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(patience) {
		t.Fatal("no server")
	}
	if _, err := tryJoin(t, Options{NATS: NATS{URL: urlOf(s), User: "me", Password: "wrong"}}); err == nil || !strings.Contains(err.Error(), "Authorization") {
		t.Errorf("the error is %v", err)
	}
	join(t, Options{NATS: NATS{URL: urlOf(s), User: "me", Password: "secret"}})
}

// link is a way from one NATS server to another that can be cut.
type link struct {
	t        *testing.T
	to       string
	listener net.Listener

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
	lag   time.Duration // of what comes back

	held sync.RWMutex // while it is locked, nothing comes back
}

// back is the way back from a server.
type back struct {
	k *link
	c net.Conn
}

func (w back) Write(p []byte) (int, error) {
	w.k.mu.Lock()
	lag := w.k.lag
	w.k.mu.Unlock()
	time.Sleep(lag)
	w.k.held.RLock()
	defer w.k.held.RUnlock()
	return w.c.Write(p)
}

func newLink(t *testing.T) *link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{t: t, listener: l}
	t.Cleanup(func() {
		l.Close()
		k.set(true)
	})
	return k
}

func (k *link) run(to string) {
	k.to = to
	go func() {
		for {
			c, err := k.listener.Accept()
			if err != nil {
				return
			}
			go k.carry(c)
		}
	}()
}

func (k *link) carry(c net.Conn) {
	d, err := net.Dial("tcp", k.to)
	if err != nil {
		c.Close()
		return
	}
	k.mu.Lock()
	k.conns = append(k.conns, c, d)
	cut := k.cut
	k.mu.Unlock()
	if cut {
		c.Close()
		d.Close()
	}
	go func() {
		_, _ = io.Copy(back{k, c}, d)
		c.Close()
	}()
	_, _ = io.Copy(d, c)
	d.Close()
}

func (k *link) delay(lag time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lag = lag
}

func (k *link) set(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = cut
	if cut {
		for _, c := range k.conns {
			c.Close()
		}
		k.conns = nil
	}
}

// trio is three nodes with embedded servers.
type trio struct {
	t     *testing.T
	rules []topic.Rule
	o     [3]Options
	links [3][3]*link // from, to
	nodes [3]*testNode
}

func newTrio(t *testing.T, rules ...topic.Rule) *trio {
	x := prepareTrio(t, rules...)
	x.start(0, 1, 2)
	for _, n := range x.nodes {
		n.knows(3)
	}
	return x
}

func prepareTrio(t *testing.T, rules ...topic.Rule) *trio {
	x := &trio{t: t, rules: rules}
	for i := range 3 {
		for j := range 3 {
			if i != j {
				x.links[i][j] = newLink(t)
			}
		}
	}
	routes := freeAddresses(t, 3)
	for i := range 3 {
		o := Options{Node: fmt.Sprint("node", i), Timeout: 3 * time.Second, NATS: NATS{Embedded: true, StoreDir: t.TempDir()}}
		o.NATS.RoutesListen = routes[i]
		for j := range 3 {
			if i != j {
				x.links[i][j].run(routes[j])
				o.NATS.Routes = append(o.NATS.Routes, x.links[i][j].listener.Addr().String())
			}
		}
		x.o[i] = o
	}
	return x
}

// onlyLinks keeps servers from telling each other of other ways than the links.
func onlyLinks(o *natsserver.Options) { o.Cluster.Advertise = "127.0.0.1:1" }

// start starts nodes at the same time.
func (x *trio) start(which ...int) {
	x.t.Helper()
	var wait sync.WaitGroup
	for _, i := range which {
		wait.Go(func() {
			var err error
			x.nodes[i], err = tryJoinTuned(x.t, x.o[i], onlyLinks, x.rules...)
			if err != nil {
				x.t.Error(err)
			}
		})
	}
	wait.Wait()
	if x.t.Failed() {
		x.t.FailNow()
	}
}

// isolate cuts a node off from the others, or ends that.
func (x *trio) isolate(i int, cut bool) {
	for j := range 3 {
		if i != j {
			x.links[i][j].set(cut)
			x.links[j][i].set(cut)
		}
	}
}

// kill ends a node as a crash does: no other node is told.
func (x *trio) kill(i int) {
	n := x.nodes[i]
	x.isolate(i, true)
	n.ready.Store(false) // so that Stop tells no other node
	n.leave()
	x.isolate(i, false)
}

func TestThreeEmbeddedServersAreACluster(t *testing.T) {
	t.Parallel()
	x := newTrio(t, topic.Rule{Match: "kept.>", History: 1000})
	alice, bob, cathy := x.nodes[0], x.nodes[1], x.nodes[2]
	if alice.o.Replicas != 3 {
		t.Errorf("%d replicas, want 3", alice.o.Replicas)
	}
	// What is published after joined reaches the node, although interest has to travel between the servers.
	for i := range 50 {
		topic := fmt.Sprint("plain.", i)
		bob.follow(topic)
		if err := alice.publish(topic, "x", 1); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it comes", func() bool { return len(bob.all()) == i+1 })
	}
	bob.follow("kept.a")
	cathy.follow("kept.>")
	for i := range 20 {
		eventually(t, "it is stored", func() bool { // with a key, so that one that comes late is there once
			_, err := x.nodes[i%3].store("kept.a", fmt.Sprint(i), fmt.Sprint(i))
			return err == nil
		})
	}
	for _, n := range []*testNode{bob, cathy} {
		eventually(t, "all come", func() bool { return len(n.allKept()) == 20 })
	}

	// One of three may fail: the others go on, and what was acknowledged is there.
	x.kill(2)
	eventually(t, "the others notice", func() bool { return len(alice.Nodes()) == 2 })
	var p topic.Position
	eventually(t, "the others go on", func() bool {
		var err error
		p, err = alice.store("kept.a", "20", "20")
		return err == nil
	})
	eventually(t, "it comes", func() bool {
		list := bob.allKept()
		return list[len(list)-1].payload == "20"
	})
	x.start(2)
	cathy = x.nodes[2]
	cathy.knows(3)
	k, err := cathy.load("kept.a", 0)
	if err != nil || len(k.Messages) != 21 || k.Epoch != p.Epoch {
		t.Errorf("kept are %v, %v", payloads(k.Messages), err)
	}
}

func TestANodeThatIsCutOffSaysSoAndLooksAgain(t *testing.T) {
	t.Parallel()
	x := newTrio(t, topic.Rule{Match: "kept.>", History: 1000})
	alice, bob, cathy := x.nodes[0], x.nodes[1], x.nodes[2]
	cathy.follow("kept.a", "plain")
	before := cathy.resynced()
	x.isolate(2, true)
	eventually(t, "the others miss her", func() bool { return len(alice.Nodes()) == 2 && len(bob.Nodes()) == 2 && len(cathy.Nodes()) == 1 })
	if _, err := cathy.store("kept.a", "lost", ""); err == nil {
		t.Error("a node without a majority has stored a message")
	}
	eventually(t, "she says so", func() bool { return cathy.PersistentErr(0) != nil })
	eventually(t, "she has no place for new clients", func() bool { return cathy.Ready() != nil })
	if err := cathy.publish("plain", "x", 1); err != nil {
		t.Errorf("a message of a transient topic: %v", err)
	}
	var missed topic.Position
	eventually(t, "the others go on", func() bool {
		var err error
		missed, err = alice.store("kept.a", "missed", "missed")
		return err == nil
	})
	x.isolate(2, false)
	cathy.knows(3)
	eventually(t, "she is well again", func() bool { return cathy.PersistentErr(0) == nil })
	eventually(t, "she looks again", func() bool { return cathy.resynced() > before })
	defer func() {
		if t.Failed() {
			for name, node := range map[string]*testNode{"alice": alice, "bob": bob, "cathy": cathy} {
				k, err := node.load("kept.a", 0)
				t.Logf("%s loads %v of epoch %s, since %d, last %d, %v", name, payloads(k.Messages), k.Epoch, k.Since, k.Last, err)
			}
		}
	}()
	eventually(t, "she finds what she has missed", func() bool {
		k, err := cathy.load("kept.a", 0)
		return err == nil && k.Epoch == missed.Epoch && len(k.Messages) == 1 && k.Messages[0].Offset == missed.Offset
	})
	if err := alice.publish("plain", "x", 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "passing messages come again", func() bool { return len(cathy.all()) == 1 })
}

// JetStream's answers take longer than the end waits for them. It has the message all the same.
func TestTheEndOfANodeDoesNotSayThatNobodyGetsWhatIsStored(t *testing.T) {
	t.Parallel() // it waits
	s := natsAt(t, -1, t.TempDir())
	way := newLink(t)
	way.run(s.Addr().String())
	rule := topic.Rule{Match: "kept", History: 10}
	alice := join(t, Options{NATS: NATS{URL: "nats://" + way.listener.Addr().String()}}, rule)
	bob := join(t, Options{NATS: NATS{URL: urlOf(s)}}, rule)
	told := make(chan error, 1)
	way.held.Lock()
	alice.PublishPersistent(topic.Publication{Topic: "kept", Payload: []byte("x")}, 0, func(_ topic.Position, err error) { told <- err })
	eventually(t, "it is stored", func() bool {
		k, err := bob.load("kept", 0)
		return err == nil && slices.Equal(payloads(k.Messages), []string{"x"})
	})
	alice.leave()
	way.held.Unlock()
	if err := <-told; !errors.Is(err, errUnknown) || errors.Is(err, topic.ErrNoCluster) {
		t.Errorf("the publisher is told %v", err)
	}
}

// A message is written, but what the writer took with it is not, when the node ends and NATS is not asked any more
// whether it has the message. Its publisher is told that the outcome is unknown all the same.
func TestTheEndOfANodeTellsThePublisherOfWhatWasJustWritten(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}})
	writing, goOn := make(chan struct{}), make(chan struct{})
	hold := func(error) { // is called by the writer
		writing <- struct{}{}
		<-goOn
	}
	tooLarge := topic.Publication{Topic: "a", Payload: make([]byte, 1<<20)}
	n.PublishTransient(tooLarge, 1, 1, hold)
	<-writing
	told := make(chan error, 1)
	n.PublishTransient(topic.Publication{Topic: "a"}, 1, 2, func(err error) { told <- err })
	n.PublishTransient(tooLarge, 1, 3, hold)
	goOn <- struct{}{}
	<-writing

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	go n.Stop(ctx)
	<-n.quit
	time.Sleep(100 * time.Millisecond) // by when the others have ended
	goOn <- struct{}{}
	select {
	case err := <-told:
		if !errors.Is(err, errUnknown) {
			t.Errorf("the publisher is told %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the publisher is told nothing")
	}
}

// A caller that puts something into the queue while the node ends is either refused or told what has become of it.
func TestTheEndOfANodeLeavesNothingInItsQueue(t *testing.T) {
	s := natsAt(t, -1, "")
	for range 10 {
		n := join(t, Options{NATS: NATS{URL: urlOf(s)}})
		var put, told atomic.Int64
		var putters sync.WaitGroup
		for range 4 {
			putters.Go(func() {
				for {
					err := n.out.put(&outgoing{subject: "a", data: (&envelope{}).seal(nil), done: func(topic.Position, error) { told.Add(1) }})
					switch {
					case err == nil:
						put.Add(1)
					case !errors.Is(err, topic.ErrOverloaded):
						return
					}
				}
			})
		}
		eventually(t, "it goes on", func() bool { return told.Load() > 0 })
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		n.Stop(ctx)
		putters.Wait()
		eventually(t, fmt.Sprintf("%d are told", put.Load()), func() bool { return told.Load() == put.Load() })
	}
}

// The NATS client waits for a server that does not read, with everything locked. The end takes no longer than it may.
func TestTheEndOfANodeDoesNotWaitForANATSServerThatDoesNotRead(t *testing.T) {
	t.Parallel() // it waits
	deaf := make(chan struct{})
	n := join(t, Options{NATS: NATS{URL: pretender(t, "2.15.2", deaf)}, Timeout: 8 * time.Second})
	close(deaf)
	written, failed := overwhelm(n)
	eventually(t, "it waits", func() bool {
		last := written.Load()
		return last != 0 && time.Now().UnixNano()-last > int64(time.Second)
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	begun := time.Now()
	n.Stop(ctx)
	if took := time.Since(begun); took > 4*time.Second {
		t.Errorf("the end takes %v", took)
	}
	<-failed
}
