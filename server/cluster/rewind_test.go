package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"carillon/server/topic"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// kill ends a node as SIGKILL does: it does not come to its end.
func (n *testNode) kill() {
	n.ready.Store(false)
	n.leave()
}

// putBack replaces a directory, or a file, by an older copy.
func putBack(t *testing.T, to, from string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	keep(t, to, from)
}

// keep copies a directory, or a file.
func keep(t *testing.T, to, from string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		err = os.CopyFS(to, os.DirFS(from))
	} else if data, e := os.ReadFile(from); e == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fill publishes numbers to topic a, and returns the position of the last one.
func (n *testNode) fill(from, to int) (p topic.Position) {
	n.t.Helper()
	for i := from; i <= to; i++ {
		eventually(n.t, "a message is taken", func() bool {
			var err error
			p, err = n.store("a", fmt.Sprint(i), "")
			return err == nil
		})
	}
	return p
}

// knowsTheTime waits until the node knows the time of the last message, with which it is told from another in its
// place.
func (n *testNode) knowsTheTime(p topic.Position) {
	n.t.Helper()
	eventually(n.t, "the node has looked at the stream", func() bool {
		st := n.streams[0]
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.seen.epoch == p.Epoch && st.seen.seq == p.Offset && !st.seen.loose && st.seen.at != 0
	})
}

// resumes reports whether a client with a position is told that it misses nothing, and what it gets.
func (n *testNode) resumes(p topic.Position) (recovered bool, got []string) {
	n.t.Helper()
	var k topic.Snapshot
	eventually(n.t, "the topic can be loaded", func() bool {
		var err error
		k, err = n.load("a", 0)
		return err == nil
	})
	for _, m := range k.Messages {
		if m.Offset > p.Offset {
			got = append(got, string(m.Payload))
		}
	}
	return p.Epoch == k.Epoch && p.Offset >= k.Since && p.Offset <= k.Last, got
}

// A position of what was lost must not be good again when new messages have its offset.
func (n *testNode) mustTellGap(p topic.Position, begin, end int) {
	n.t.Helper()
	n.fill(begin, end)
	if recovered, got := n.resumes(p); recovered {
		n.t.Errorf("the position %+v is still good, and there come %v", p, got)
	}
}

func (n *testNode) mustGoOn(p topic.Position, begin, end int) {
	n.t.Helper()
	n.fill(begin, end)
	recovered, got := n.resumes(p)
	var want []string
	for i := begin; i <= end; i++ {
		want = append(want, fmt.Sprint(i))
	}
	if !recovered || !slices.Equal(got, want) {
		n.t.Errorf("after %+v: recovered %v, %v, want %v", p, recovered, got, want)
	}
}

var allTopics = topic.Rule{Match: ">", History: 100}

func TestAnEmbeddedStoreThatIsPutBackBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testNode){"after an end in order": (*testNode).leave, "after SIGKILL": (*testNode).kill} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			store, copied := filepath.Join(dir, "store"), filepath.Join(dir, "copy")
			o := Options{NATS: NATS{Embedded: true, StoreDir: store}}
			n := join(t, o, allTopics)
			first := n.fill(1, 5)
			n.leave()
			keep(t, copied, store)

			n = join(t, o, allTopics)
			n.mustGoOn(first, 6, 6)
			p := n.fill(7, 10)
			end(n)
			putBack(t, store, copied)
			n = join(t, o, allTopics)
			n.mustTellGap(p, 6, 12)
			if n.Stats().Rewinds != 1 {
				t.Errorf("%d epochs were begun", n.Stats().Rewinds)
			}
		})
	}
}

func TestANodeThatIsKilledOrRestartedKeepsItsEpoch(t *testing.T) {
	t.Parallel()
	o := Options{NATS: NATS{Embedded: true, StoreDir: filepath.Join(t.TempDir(), "store")}}
	n := join(t, o, allTopics)
	p := n.fill(1, 5)
	for i, end := range []func(*testNode){(*testNode).kill, (*testNode).leave, (*testNode).kill, (*testNode).kill} {
		end(n)
		n = join(t, o, allTopics)
		n.mustGoOn(p, 6+i, 6+i)
		k, err := n.load("a", 0)
		if err != nil {
			t.Fatal(err)
		}
		p = topic.Position{Epoch: k.Epoch, Offset: k.Last}
	}
}

// The machine loses power. Of the file there is what was on the disk last, and of the store less than was given out.
func TestAPowerLossThatTookMessagesBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store, file := filepath.Join(dir, "store"), filepath.Join(dir, "store.positions")
	o := Options{NATS: NATS{Embedded: true, StoreDir: store}}
	n := join(t, o, allTopics)
	n.fill(1, 5)
	n.kill()
	keep(t, store+".old", store)
	keep(t, file+".old", file)
	n = join(t, o, allTopics)
	p := n.fill(6, 10)
	n.kill()
	putBack(t, store, store+".old")
	putBack(t, file, file+".old")
	n, err := tryJoinPrepared(t, o, func(b *Broker) { b.boot = "another start of the machine" }, allTopics)
	if err != nil {
		t.Fatal(err)
	}
	n.mustTellGap(p, 6, 12)

	t.Run("and the next start does not begin another", func(t *testing.T) {
		k, err := n.load("a", 0)
		if err != nil {
			t.Fatal(err)
		}
		n.leave()
		if n, err = tryJoinPrepared(t, o, func(b *Broker) { b.boot = "a third one" }, allTopics); err != nil {
			t.Fatal(err)
		}
		n.mustGoOn(topic.Position{Epoch: k.Epoch, Offset: k.Last}, 13, 14)
	})
}

func TestAFileOfPositionsThatCannotBeReadBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store, file := filepath.Join(dir, "store"), filepath.Join(dir, "store.positions")
	o := Options{NATS: NATS{Embedded: true, StoreDir: store}}
	n := join(t, o, allTopics)
	p := n.fill(1, 5)
	n.leave()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	torn := slices.Clone(data)
	torn[80] ^= 1 // one slot only
	check := func(data []byte, check func(*testNode)) {
		t.Helper()
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		n = join(t, o, allTopics)
		check(n)
		n.leave()
	}
	check(torn, func(n *testNode) { n.mustGoOn(p, 6, 6) })
	for i := range data {
		data[i] ^= 1
	}
	check(data, func(n *testNode) { n.mustTellGap(p, 7, 7) })
}

// restart ends a NATS server and starts it with an older copy of its store.
func restartFrom(t *testing.T, s *natsserver.Server, store, copied string) *natsserver.Server {
	t.Helper()
	port := portOf(s.Addr())
	s.Shutdown()
	s.WaitForShutdown()
	if copied != "" {
		putBack(t, store, copied)
	}
	return natsAt(t, port, store)
}

func TestAStoreOfNATSThatIsPutBackBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	begin := func(t *testing.T) (s *natsserver.Server, store, copied string, o Options) {
		dir := t.TempDir()
		store, copied = filepath.Join(dir, "store"), filepath.Join(dir, "copy")
		s = natsAt(t, -1, store)
		o = Options{NATS: NATS{URL: urlOf(s)}, Positions: filepath.Join(dir, "positions")}
		n := join(t, o, allTopics)
		n.fill(1, 5)
		n.leave()
		port := portOf(s.Addr())
		s.Shutdown()
		s.WaitForShutdown()
		keep(t, copied, store)
		return natsAt(t, port, store), store, copied, o
	}
	t.Run("while a node runs", func(t *testing.T) {
		t.Parallel()
		s, store, copied, o := begin(t)
		n := join(t, o, allTopics)
		p := n.fill(6, 10)
		restartFrom(t, s, store, copied)
		eventually(t, "the node is back", func() bool { return n.PersistentErr(0) == nil && n.Stats().Disconnects > 0 })
		n.mustTellGap(p, 6, 12)
	})
	t.Run("while no node runs", func(t *testing.T) {
		t.Parallel()
		s, store, copied, o := begin(t)
		n := join(t, o, allTopics)
		p := n.fill(6, 10)
		n.kill()
		restartFrom(t, s, store, copied)
		join(t, o, allTopics).mustTellGap(p, 6, 12)
	})
	t.Run("and others know", func(t *testing.T) {
		t.Parallel()
		s, store, copied, o := begin(t)
		o.Positions = off
		n, other := join(t, o, allTopics), join(t, o, allTopics)
		p := n.fill(6, 10)
		other.knowsTheTime(p)
		n.kill()
		restartFrom(t, s, store, copied)
		join(t, o, allTopics).mustTellGap(p, 6, 12)
	})
	t.Run("and a node that knows nothing has filled it up", func(t *testing.T) {
		t.Parallel()
		s, store, copied, o := begin(t)
		n := join(t, o, allTopics)
		p := n.fill(6, 10)
		n.knowsTheTime(p)
		n.kill()
		restartFrom(t, s, store, copied)
		none := o
		none.Positions = off
		none.NATS.URL = o.NATS.URL
		other := join(t, none, allTopics)
		other.fill(6, 15)
		join(t, o, allTopics).mustTellGap(p, 16, 17)
		eventually(t, "the other one has the new epoch", func() bool { return other.streams[0].epochNow() != p.Epoch })
	})
	t.Run("but not one that is as it was", func(t *testing.T) {
		t.Parallel()
		s, store, _, o := begin(t)
		n := join(t, o, allTopics)
		p := n.fill(6, 10)
		s = restartFrom(t, s, store, "")
		n.mustGoOn(p, 11, 12)
		k, _ := n.load("a", 0)
		n.kill()
		restartFrom(t, s, store, "")
		join(t, o, allTopics).mustGoOn(topic.Position{Epoch: k.Epoch, Offset: k.Last}, 13, 13)
	})
}

// A stream is deleted, and made again with the same subjects, as a backup does that is restored.
func TestAStreamThatIsRestoredBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, allTopics)
	p := n.fill(1, 10)
	js, err := jetstream.New(n.nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st := n.streams[0]
	if err := js.DeleteStream(ctx, st.name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is made again", func() bool {
		_, err := js.CreateStream(ctx, n.configIn(st, p.Epoch))
		return err == nil || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse)
	})
	n.mustTellGap(p, 1, 12)
}

// Two of three nodes get older copies of their stores, and have the majority.
func TestReplicasThatArePutBackBeginANewEpoch(t *testing.T) {
	t.Parallel()
	x := prepareTrio(t, allTopics)
	for i := range x.o {
		x.o[i].NATS.StoreDir = filepath.Join(t.TempDir(), "store")
	}
	x.start(0, 1, 2)
	for _, n := range x.nodes {
		n.knows(3)
	}
	first := x.nodes[0].fill(1, 5)
	stop := func() {
		for i := range 3 {
			x.kill(i)
		}
	}
	stop()
	for i := range 2 {
		keep(t, x.o[i].NATS.StoreDir+".copy", x.o[i].NATS.StoreDir)
	}
	x.start(0, 1, 2)
	x.nodes[1].mustGoOn(first, 6, 6)
	p := x.nodes[1].fill(7, 10)
	stop()
	for i := range 2 {
		putBack(t, x.o[i].NATS.StoreDir, x.o[i].NATS.StoreDir+".copy")
	}
	x.start(0, 1)
	x.nodes[0].mustTellGap(p, 6, 12)
	for _, n := range x.nodes[:2] {
		eventually(t, "both have the new epoch", func() bool { return n.streams[0].epochNow() != p.Epoch })
	}
}

// A message goes from the middle of a stream for no reason. No node knows which: clients that may miss it are told.
func TestAMessageThatDisappearsIsAGap(t *testing.T) {
	t.Parallel()
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	n, other := join(t, o, allTopics), join(t, o, allTopics)
	p := n.fill(1, 10)
	time.Sleep(2 * probeInterval) // both count
	js, err := jetstream.New(n.nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := js.Stream(ctx, n.streams[0].name)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteMsg(ctx, 7); err != nil {
		t.Fatal(err)
	}
	for _, one := range []*testNode{n, other, join(t, o, allTopics)} {
		eventually(t, "a client that was before it is told of a gap", func() bool {
			recovered, _ := one.resumes(topic.Position{Epoch: p.Epoch, Offset: 6})
			return !recovered
		})
		if recovered, _ := one.resumes(p); !recovered {
			t.Error("a client that has had all is told of a gap")
		}
	}
	n.mustGoOn(p, 11, 12)
	before := n.streams[0].lost
	join(t, o, topic.Rule{Match: ">", History: 50}) // which changes the stream
	time.Sleep(3 * probeInterval)
	if state, err := n.awaitInfo(n.streams[0]); err != nil || state.lost != before || state.epoch != p.Epoch {
		t.Errorf("the stream says that messages are lost up to %d, %v, want %d", state.lost, err, before)
	}
}

// flip changes the text of messages on the disk.
func flip(t *testing.T, store string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		found := 0
		err := filepath.WalkDir(store, func(path string, e os.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".blk" {
				return err
			}
			data, err := os.ReadFile(path)
			at := bytes.Index(data, []byte(text))
			if err != nil || at < 0 {
				return err
			}
			found++
			data[at] ^= 1
			return os.WriteFile(path, data, 0o600)
		})
		if err != nil || found != 1 {
			t.Fatalf("%s is there %d times, %v", text, found, err)
		}
	}
}

// The disk has changed messages, and JetStream leaves them out of what it sends.
func TestAMessageThatCannotBeReadIsAGap(t *testing.T) {
	t.Parallel()
	text := func(i int) string { return fmt.Sprintf("message %03d", i) }
	for _, test := range []struct {
		name     string
		flipped  []int // of 1 to 20
		gap      []int // positions that are not good any more
		good     []int
		readable int // from here on
		growing  bool
	}{
		{name: "in the middle", flipped: []int{8}, gap: []int{3, 7}, good: []int{8, 12, 20}, readable: 9},
		{name: "two", flipped: []int{5, 11}, gap: []int{1, 5, 10}, good: []int{11, 20}, readable: 12},
		{name: "the newest", flipped: []int{20}, gap: []int{3, 19}, good: []int{20}, readable: 21},
		{name: "in the middle of a topic that grows", flipped: []int{8}, gap: []int{3, 7}, readable: 9, growing: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			store := t.TempDir()
			s := natsAt(t, -1, store)
			o := Options{NATS: NATS{URL: urlOf(s)}, Timeout: 10 * time.Second}
			n := join(t, o, topic.Rule{Match: ">", History: 10_000})
			var p topic.Position
			for i := range 20 {
				var err error
				if p, err = n.store("a", text(i+1), ""); err != nil {
					t.Fatal(err)
				}
			}
			n.leave()
			port := portOf(s.Addr())
			s.Shutdown()
			s.WaitForShutdown()
			for _, i := range test.flipped {
				flip(t, store, text(i))
			}
			natsAt(t, port, store)
			n = join(t, o, topic.Rule{Match: ">", History: 10_000})
			if test.growing {
				stop := make(chan struct{})
				var ended sync.WaitGroup
				ended.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							_, _ = n.store("a", "more", "")
							time.Sleep(10 * time.Millisecond)
						}
					}
				})
				defer ended.Wait()
				defer close(stop)
			}
			for range 5 {
				for _, offset := range test.gap {
					if recovered, got := n.resumes(topic.Position{Epoch: p.Epoch, Offset: uint64(offset)}); recovered {
						t.Fatalf("after %d all is reported to be there: %.1000s", offset, fmt.Sprint(got))
					}
					k, err := n.load("a", uint64(offset)) // as a node that knows a part
					if err != nil || k.Since <= uint64(offset) && k.Epoch == p.Epoch {
						t.Fatalf("after %d all is reported to be there: since %d, %.1000s, %v", offset, k.Since, fmt.Sprint(payloads(k.Messages)), err)
					}
				}
				for _, offset := range test.good {
					if recovered, _ := n.resumes(topic.Position{Epoch: p.Epoch, Offset: uint64(offset)}); !recovered {
						t.Fatalf("after %d a gap is reported", offset)
					}
				}
			}
			k, err := n.load("a", 0)
			if err != nil || !test.growing && len(k.Messages) != 21-test.readable {
				t.Errorf("%d can be read, %v", len(k.Messages), err)
			}
			if n.Stats().Holes == 0 {
				t.Error("nothing was counted")
			}
		})
	}
}
