package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"carillon/server/topic"
)

// fakeNet joins the servers of a test to a cluster. It can lose messages, have them come twice, late and out of
// order, and cut servers off.
type fakeNet struct {
	mu      sync.Mutex
	r       *rand.Rand
	epoch   string
	offset  uint64 // of the last message for whatever topic: they are numbered together
	topics  map[string]*fakeTopic
	keys    map[[3]string]Position
	members []*fakeBroker

	// Parts of what is sent to one server, 0 to 1.
	lost, twice, late float64
	unsure            float64 // of the messages for persistent topics: they are there, but it is not said
	failing           float64 // of the loads
	leaderless        bool    // messages of persistent topics cannot be stored or loaded
	largest           int     // payload that it takes; 0 is no limit
	loads             int
	behind            int           // so many loads
	shown             uint64        // show nothing that comes after this offset
	holdLoads         chan struct{} // they wait until it is closed
	holdAnswers       chan struct{} // the same of answers to questions, which have been given
}

type fakeTopic struct {
	messages    []Message
	since, last uint64
	all         []Message // that ever were
}

// fakeBroker is the place of one server.
type fakeBroker struct {
	net   *fakeNet
	id    string
	node  Node
	mail  *fakeMail // to the server
	names map[string]bool
	away  bool
	mute  bool // does not answer questions
	asked int
	still *[]func(error) // what waits while transient messages and broadcasts are not acknowledged; nil if they are
}

// fakeMail does one thing after the other on its own goroutine.
type fakeMail struct {
	mu   sync.Mutex
	list []func()
	busy bool
}

func (m *fakeMail) put(do func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list = append(m.list, do); !m.busy {
		m.busy = true
		go m.work()
	}
}

func (m *fakeMail) work() {
	for {
		m.mu.Lock()
		list := m.list
		m.list, m.busy = nil, len(list) > 0
		m.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for _, do := range list {
			do()
		}
	}
}

func newFakeNet(seed uint64) *fakeNet {
	return &fakeNet{r: rand.New(rand.NewPCG(seed, 11)), epoch: "first", offset: 100, topics: map[string]*fakeTopic{}, keys: map[[3]string]Position{}}
}

func (n *fakeNet) newBroker() *fakeBroker {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := &fakeBroker{net: n, id: fmt.Sprintf("node%d", len(n.members)+1), mail: &fakeMail{}, names: map[string]bool{}}
	n.members = append(n.members, b)
	return b
}

// clustered makes servers that are joined, with the same options.
func clustered(t testing.TB, n *fakeNet, number int, opts Options, change func(*Server)) (list []*Server) {
	t.Helper()
	for range number {
		one := opts
		one.Broker = n.newBroker()
		s, _ := startChanged(t, one, change)
		list = append(list, s)
	}
	return list
}

func fakeOf(s *Server) *fakeBroker { return s.opts().Broker.(*fakeBroker) }

func (n *fakeNet) chance(part float64) bool { return part > 0 && n.r.Float64() < part }

func (n *fakeNet) topic(name string) *fakeTopic {
	if n.topics[name] == nil {
		n.topics[name] = &fakeTopic{since: n.offset}
	}
	return n.topics[name]
}

func (b *fakeBroker) Start(_ context.Context, node Node) error { b.node = node; return nil }
func (b *fakeBroker) Stop(context.Context)                     {}

func (b *fakeBroker) Err() error {
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	if b.away {
		return errors.New("the cable is out")
	}
	return nil
}

func (b *fakeBroker) PersistentErr(int) error {
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	if b.net.leaderless {
		return errors.New("no leader")
	}
	if b.away {
		return errors.New("the cable is out")
	}
	return nil
}

func (b *fakeBroker) Ready() error { return b.Err() }

// send has something come to a server, unless it is cut off; the net is locked.
func (b *fakeBroker) send(do func(), mayBeLate bool) {
	if b.away || b.node == nil || b.net.chance(b.net.lost) {
		return
	}
	times := 1
	if b.net.chance(b.net.twice) {
		times = 2
	}
	for range times {
		if mayBeLate && b.net.chance(b.net.late) {
			time.AfterFunc(time.Duration(b.net.r.IntN(5000))*time.Microsecond, do)
		} else {
			b.mail.put(do)
		}
	}
}

func (b *fakeBroker) follows(name string) bool {
	for pattern := range b.names {
		if topic.Matches(pattern, name) {
			return true
		}
	}
	return false
}

func (b *fakeBroker) PublishPersistent(p Publication, rule int, done func(Position, error)) {
	n := b.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if b.away {
		b.mail.put(func() { done(Position{}, ErrNoCluster) })
		return
	}
	if n.largest > 0 && len(p.Payload) > n.largest {
		b.mail.put(func() { done(Position{}, fmt.Errorf("%w, or than the net takes", ErrTooLarge)) })
		return
	}
	id := [3]string{p.Publisher, p.Topic, p.Key}
	at, again := n.keys[id]
	if p.Key == "" || !again {
		at = n.store(p, b.node.Rules()[rule].History)
		n.keys[id] = at
	}
	unsure := n.chance(n.unsure)
	b.mail.put(func() {
		if unsure {
			done(Position{}, errors.New("no word of it"))
			return
		}
		done(at, nil)
	})
}

// store keeps a message and sends it to all who follow its topic.
func (n *fakeNet) store(p Publication, history int) Position {
	t := n.topic(p.Topic)
	n.offset += 1 + uint64(n.r.IntN(2))
	m, prev, epoch := Message{Topic: p.Topic, Offset: n.offset, Time: time.Now(), Format: p.Format, Payload: p.Payload}, t.last, n.epoch
	t.last = m.Offset
	t.messages = append(t.messages, m)
	t.all = append(t.all, m)
	for len(t.messages) > history {
		t.since = t.messages[0].Offset
		t.messages = t.messages[1:]
	}
	for _, b := range n.members {
		if b.follows(p.Topic) {
			b.send(func() { b.node.Persistent(m, epoch, prev) }, true)
		}
	}
	return Position{Offset: m.Offset, Epoch: n.epoch}
}

// expire has all messages of a topic be too old.
func (n *fakeNet) expire(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.topic(name)
	t.messages, t.since, t.last = nil, n.offset, 0 // NATS finds none before the next one
}

func (b *fakeBroker) PublishTransient(p Publication, incarnation, seq uint64, done func(error)) {
	n := b.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if b.away {
		done(ErrNoCluster)
		return
	}
	at := time.Now()
	for _, other := range n.members {
		if other != b && other.follows(p.Topic) {
			other.send(func() { other.node.Transient(b.id, incarnation, seq, p, at) }, false)
		}
	}
	if b.still != nil {
		*b.still = append(*b.still, done)
		return
	}
	done(nil)
}

func (b *fakeBroker) Broadcast(path string, op Opcode, payload []byte, seq uint64, done func(error)) {
	n := b.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if b.away {
		done(ErrNoCluster)
		return
	}
	for _, other := range n.members {
		if other != b {
			other.send(func() { other.node.Broadcast(b.id, path, op, payload, seq) }, false)
		}
	}
	if b.still != nil {
		*b.still = append(*b.still, done)
		return
	}
	b.mail.put(func() { done(nil) })
}

func (b *fakeBroker) Follow(name string, joined func(error)) {
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	if b.away {
		b.mail.put(func() { joined(ErrNoCluster) })
		return
	}
	b.names[name] = true
	b.mail.put(func() { joined(nil) })
}

func (b *fakeBroker) Unfollow(name string) {
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	delete(b.names, name)
}

func (b *fakeBroker) Load(topic string, _ int, after uint64, done func(Kept, error)) {
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	b.net.loads++
	hold := b.net.holdLoads
	time.AfterFunc(time.Duration(b.net.r.IntN(1000))*time.Microsecond, func() {
		if hold != nil {
			<-hold
		}
		done(b.load(topic, after))
	})
}

func (b *fakeBroker) load(topic string, after uint64) (Kept, error) {
	n := b.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if b.away || n.chance(n.failing) {
		return Kept{}, errors.New("it is not to be had")
	}
	t := n.topic(topic)
	first, found := slices.BinarySearchFunc(t.messages, after, func(m Message, offset uint64) int { return cmp.Compare(m.Offset, offset) })
	if found {
		first++
	}
	kept := Kept{Epoch: n.epoch, Messages: slices.Clone(t.messages[first:]), Since: max(t.since, after), Last: n.offset, Now: time.Now()}
	if n.behind > 0 {
		n.behind--
		kept.Last = max(n.shown, after)
		kept.Messages = slices.DeleteFunc(kept.Messages, func(m Message) bool { return m.Offset > n.shown })
	}
	return kept, nil
}

func (b *fakeBroker) Nodes() (list []NodeInfo) {
	b.net.mu.Lock()
	members := slices.Clone(b.net.members)
	b.net.mu.Unlock()
	i := slices.Index(members, b)
	members[0], members[i] = members[i], members[0]
	for _, one := range members {
		if one.node != nil {
			info := one.node.Info()
			info.ID, info.Name = one.id, one.id
			list = append(list, info)
		}
	}
	return list
}

func (b *fakeBroker) Ask(node, subject string, question []byte, done func([]Answer, bool)) {
	b.net.mu.Lock()
	members := slices.Clone(b.net.members)
	b.net.mu.Unlock()
	go func() {
		var answers []Answer
		all := true
		for _, one := range members {
			if one == b || node != "" && one.id != node {
				continue
			}
			b.net.mu.Lock()
			silent := one.away || one.mute || b.away
			one.asked++
			b.net.mu.Unlock()
			if silent {
				all = false
				continue
			}
			answers = append(answers, Answer{Node: one.id, Body: one.node.Answer(subject, question)})
		}
		b.net.mu.Lock()
		hold := b.net.holdAnswers
		b.net.mu.Unlock()
		if hold != nil {
			<-hold
		}
		done(answers, all)
	}()
}

// set changes what the net does.
// hold has loads wait from now on. begun is how many there have been since; release lets all go on.
func (n *fakeNet) hold() (begun func() int, release func()) {
	hold, before := make(chan struct{}), 0
	n.set(func() { n.holdLoads, before = hold, n.loads })
	begun = func() (number int) {
		n.set(func() { number = n.loads - before })
		return number
	}
	return begun, func() { close(hold) }
}

func (n *fakeNet) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

// cut takes a server off the net, or puts it back.
func (b *fakeBroker) cut(away bool) {
	b.net.set(func() { b.away = away })
	if !away {
		b.mail.put(func() { b.node.Resync("the cable is in again") })
	}
}

// stall has the broker acknowledge no transient messages and broadcasts from now on. waiting is how many there have
// been since; end says what becomes of all.
func (b *fakeBroker) stall() (waiting func() int, end func(error)) {
	list := new([]func(error))
	b.net.set(func() { b.still = list })
	waiting = func() (n int) {
		b.net.set(func() { n = len(*list) })
		return n
	}
	return waiting, func(err error) {
		b.net.set(func() { b.still = nil })
		for _, done := range *list {
			done(err)
		}
	}
}

// log is all that was ever published to a topic.
func (n *fakeNet) log(topic string) []Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.topic(topic).all)
}
