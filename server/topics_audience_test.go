package server

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/hub"
	"carillon/server/internal/outbox"
	"carillon/server/internal/reactor"
	"carillon/server/stats"
	"carillon/server/topic"
)

// audienceModel is one shard without sockets: connections that were stalled already, so that all they get
// lies in their outboxes, and what each of them must have.
type audienceModel struct {
	t       *testing.T
	r       *rand.Rand
	s       *Server
	sh      *reactor.Shard
	g       *reactor.Table
	members []*modelMember
	offsets map[string]uint64 // of what was published
	left    uint64            // messages of the topic with latest that were left out
}

type modelMember struct {
	c    *Conn
	next map[string]uint64 // by topic: the message that must come next; absent if none may come

	// Of the topic with latest, of which messages may be left out.
	first uint64 // that concerned it since it subscribed
	came  uint64
}

var modelTopics = []string{"a", "b", "c", "p.a", "p.b", latestTopic}

const latestTopic = "l"

func newAudienceModel(t *testing.T, seed uint64) *audienceModel {
	s, err := New(Options{Endpoints: []Endpoint{{Path: "/", Mode: ModeTopics, SlowConsumer: SlowConsumer{MaxQueue: -1}, Topics: TopicAccess{MaxSubscriptions: 4, MaxPatterns: 4}}}, Topics: []TopicRule{{Match: "b", History: 5}, {Match: "p.a", History: 5}, {Match: latestTopic, Latest: true}}})
	if err != nil {
		t.Fatal(err)
	}
	sh := &reactor.Shard{Engine: &s.engine, Set: s.engine.Settings(), Histograms: stats.Histograms{Flushed: make([]stats.Histogram, 2)}}
	sh.Mail.InTurn = true // it has no waker
	sh.OwnerData = &loopState{hub: s.hub}
	g := reactor.NewTable(sh, &s.endpoints[0].LoopEndpoint)
	return &audienceModel{t: t, r: rand.New(rand.NewPCG(seed, 7)), s: s, sh: sh, g: g, offsets: map[string]uint64{}}
}

func (m *audienceModel) publish() {
	topic := modelTopics[m.r.IntN(len(modelTopics))]
	m.offsets[topic]++
	r, err := m.s.Publish(Publication{Topic: topic, Payload: fmt.Appendf(nil, "%s:%d;%*s", topic, m.offsets[topic], outbox.ItemCost, "")}) // smaller ones share memory
	if err != nil || r.Offset != m.offsets[topic] {
		m.t.Fatal(r, err)
	}
}

func (m *audienceModel) join() {
	c := (*Conn)(reactor.Assemble(reactor.Parts{Shard: m.sh, Endpoint: m.g.Endpoint, FD: -1, Outbox: &outbox.Outbox{}}))
	c.core().State().Store(reactor.StateOpen)
	c.core().Negotiated([]reactor.Framing{reactor.FramingRaw, reactor.FramingEvent}[m.r.IntN(2)], 0, reactor.NoSubprotocol)
	m.g.Add(c.core(), reactor.Times{})
	m.members = append(m.members, &modelMember{c: c, next: map[string]uint64{}})
}

// subscribe has a member ask for something that it may have already.
func (m *audienceModel) subscribe(who *modelMember) {
	name := append(slices.Clone(modelTopics), "p.*", "p.>")[m.r.IntN(len(modelTopics)+2)]
	var from Start
	if !IsPattern(name) {
		from.Last = m.r.IntN(4)
	}
	had := who.c.Subscriptions()
	taken := len(had) == 4
	for _, other := range had {
		taken = taken || topic.Overlaps(other, name)
	}
	m.look(who) // what comes now comes after it
	s, err := m.s.hub.Subscribe(who.c.core(), &hub.Wanted{Name: name, From: from, Kind: who.c.core().Framing(), Reply: func(Subscribed) {}})
	if (err != nil) != taken {
		m.t.Fatalf("subscribe to %s after %v: %v", name, had, err)
	}
	if err != nil {
		return
	}
	for _, one := range modelTopics {
		if IsPattern(name) && topic.Matches(name, one) {
			who.next[one] = m.offsets[one] + 1
		}
	}
	if !IsPattern(name) {
		if s.Offset != m.offsets[name] {
			m.t.Fatalf("%s is at %d, want %d", name, s.Offset, m.offsets[name])
		}
		past, _ := m.s.History(name, from, 100)
		who.next[name] = s.Offset + 1 - uint64(len(past.Messages))
		if name == latestTopic {
			who.first, who.came = who.next[name], 0
		}
	}
}

func (m *audienceModel) unsubscribe(who *modelMember) {
	names := who.c.Subscriptions()
	if len(names) == 0 {
		return
	}
	name := names[m.r.IntN(len(names))]
	if name == latestTopic {
		m.account(who)
	}
	if err := hub.Unsubscribe(who.c.core(), name); err != nil {
		m.t.Fatal(err)
	}
	m.look(who)
	for one := range who.next {
		if topic.Matches(name, one) {
			delete(who.next, one)
		}
	}
}

func (m *audienceModel) leave(i int) {
	who := m.members[i]
	m.account(who)
	who.c.core().LeaveTopics()
	m.g.Remove(who.c.core())
	m.members[i] = m.members[len(m.members)-1]
	m.members = m.members[:len(m.members)-1]
}

// account adds up what a member has missed of the topic with latest until now.
func (m *audienceModel) account(who *modelMember) {
	m.t.Helper()
	who.c.core().Ready()
	m.look(who)
	for _, s := range subscriptionsOf(who.c.core().Extension()) {
		if hub.NameOf(&s) == latestTopic {
			left := uint64(s.Audience.Members[s.Slot].Seq) - who.first - who.came
			if s.Stale {
				left--
			}
			m.left += left
		}
	}
}

// refresh gives a member what it has not got of the topic with latest, whose newest message must come.
func (m *audienceModel) refresh(who *modelMember) {
	m.t.Helper()
	m.look(who)
	for _, s := range subscriptionsOf(who.c.core().Extension()) {
		if hub.NameOf(&s) == latestTopic && s.Stale {
			who.c.core().Refresh()
			m.look(who)
			if next := who.next[latestTopic]; next != uint64(s.Audience.End()) {
				m.t.Fatalf("the newest message is %d, but %d came", s.Audience.End()-1, next-1)
			}
		}
	}
}

// look checks what has come to a member since the last time.
func (m *audienceModel) look(who *modelMember) {
	m.t.Helper()
	taken := 0
	for it := range who.c.core().Outbox().All {
		b := it.B
		taken += len(b)
		text := string(b[:bytes.LastIndexByte(b, ';')])
		if who.c.core().Framing() == reactor.FramingRaw {
			text = text[2:]
		} else {
			text = text[strings.Index(text, "data: ")+len("data: "):]
		}
		topic, number, _ := strings.Cut(text, ":")
		n, _ := strconv.ParseUint(number, 10, 64)
		if want, may := who.next[topic]; !may || n != want && (topic != latestTopic || n < want) {
			m.t.Fatalf("message %d of %s came, want %d (%v)", n, topic, want, may)
		}
		if who.next[topic] = n + 1; topic == latestTopic {
			who.came++
		}
	}
	who.c.core().Outbox().Wrote(taken)
}

// walk goes on with any of the streams for some steps, and stops anywhere.
func (m *audienceModel) readAll() {
	for m.sh.RunCommands(); !m.sh.Reading.Done(); m.sh.RunCommands() {
	}
}

func (m *audienceModel) walk() {
	waiting := m.sh.Pending.List[m.sh.Pending.Head:]
	if len(waiting) == 0 {
		return
	}
	a := waiting[m.r.IntN(len(waiting))]
	for range m.r.IntN(30) {
		switch {
		case len(a.Stream) == 0:
			return
		case a.Pass == nil:
			a.Begin()
		case a.Pass.Cursor < len(a.Members):
			a.Serve(a.Pass.Cursor)
		default:
			a.Finish()
		}
	}
}

// check compares what the parts of the model record of each other.
func (m *audienceModel) check() {
	m.t.Helper()
	members := 0
	for _, who := range m.members {
		stale := 0
		for i, s := range subscriptionsOf(who.c.core().Extension()) {
			if e := s.Audience.Members[s.Slot]; e.Conn != who.c.core() || int(e.Sub) != i {
				m.t.Fatalf("subscription %d at slot %d is another's: %+v", i, s.Slot, e)
			}
			members++
			if s.Stale {
				stale++
			}
		}
		if who.c.core().Extension() != nil && int(who.c.core().Extension().Stale) != stale {
			m.t.Fatalf("%d subscriptions are stale, not %d", stale, who.c.core().Extension().Stale)
		}
	}
	sources := map[string]*hub.Source{}
	for i := range m.s.hub.Parts {
		for name, t := range m.s.hub.Parts[i].Topics.All() {
			sources[name] = &t.Source
		}
	}
	for name, p := range m.s.hub.Patterns.Names.All() {
		sources[name] = p
		if p.Subscribers == 0 {
			m.t.Fatalf("the pattern %s has no subscribers", name)
		}
	}
	for name, src := range sources {
		n := 0
		for _, l := range src.Locals {
			if l.Audiences == [reactor.NumFramings]*reactor.Audience{} {
				m.t.Fatalf("%s has a local without audiences", name)
			}
			for _, a := range l.Audiences {
				if a == nil {
					continue
				}
				if len(a.Members) == 0 {
					m.t.Fatalf("%s has an audience without members", name)
				}
				for slot, e := range a.Members {
					if s := e.Conn.Extension().Subs[e.Sub]; s.Audience != a || int(s.Slot) != slot {
						m.t.Fatalf("member %d of %s is at slot %d of %s", slot, name, s.Slot, hub.NameOf(&s))
					}
				}
				n += len(a.Members)
			}
		}
		if int32(n) != src.Subscribers {
			m.t.Fatalf("%s counts %d subscribers and has %d", name, src.Subscribers, n)
		}
		members -= n
	}
	if members != 0 {
		m.t.Fatalf("%d subscriptions belong to no topic", members)
	}
}

func subscriptionsOf(m *reactor.Extension) []reactor.Subscription {
	if m == nil {
		return nil
	}
	return m.Subs
}

// Connections with several subscriptions each subscribe, unsubscribe, catch up and leave between the slices of walks
// and with messages on their way. No connection misses a message, gets one twice or one that it did not ask for, and
// all the places that point to each other agree.
func TestAudienceWalk(t *testing.T) {
	seeds := uint64(60)
	if testenv.Race {
		seeds = 15
	}
	for seed := range seeds {
		m := newAudienceModel(t, seed)
		for range 8 {
			m.join()
		}
		for range 600 {
			who := m.members[m.r.IntN(len(m.members))]
			switch m.r.IntN(10) {
			case 0, 1:
				m.publish()
			case 2:
				m.readAll()
			case 3, 4:
				m.walk()
			case 5, 6:
				m.subscribe(who)
			case 7:
				m.unsubscribe(who)
			case 8:
				if who.c.core().Ready(); m.r.IntN(4) == 0 {
					m.leave(m.r.IntN(len(m.members)))
					m.join()
				}
			case 9:
				m.refresh(who)
			}
			m.check()
		}
		m.readAll()
		for m.sh.Pending.Len() > 0 {
			m.sh.Walk()
		}
		for len(m.members) > 0 {
			who := m.members[0]
			m.refresh(who)
			for topic, next := range who.next {
				if next != m.offsets[topic]+1 {
					t.Fatalf("the next message of %s is %d of %d", topic, next, m.offsets[topic])
				}
			}
			m.leave(0)
			m.check()
		}
		if n := m.sh.Stats.Drops[DropConflated].Load(); n != m.left {
			t.Fatalf("%d messages were left out, but %d are counted", m.left, n)
		}
		if n := m.sh.Backlog.Load(); n != 0 || m.s.hub.Patterns.Names.Len() > 0 {
			t.Fatalf("%d bytes of backlog and %d patterns are left", n, m.s.hub.Patterns.Names.Len())
		}
	}
}

// What a connection is sent after it has caught up with its topics looks at none of them again until something else is
// published: each command to it asks.
func TestCatchingUpLooksOnce(t *testing.T) {
	m := newAudienceModel(t, 1)
	m.join()
	who := m.members[0]
	for _, name := range []string{"a", "b", "c"} {
		if _, err := m.s.hub.Subscribe(who.c.core(), &hub.Wanted{Name: name, Reply: func(Subscribed) {}}); err != nil {
			t.Fatal(err)
		}
	}
	publish := func() {
		if _, err := m.s.Publish(Publication{Topic: "b", Payload: make([]byte, outbox.ItemCost)}); err != nil {
			t.Fatal(err)
		}
		m.readAll()
	}
	publish()
	who.c.core().Ready()
	if n := who.c.core().Outbox().Items(); n != 1 || m.sh.Pending.Len() != 1 {
		t.Fatalf("%d messages came, and %d audiences are pending", n, m.sh.Pending.Len())
	}
	subs := who.c.core().Extension().Subs
	who.c.core().Extension().Subs = make([]reactor.Subscription, len(subs)) // a look at them panics
	who.c.core().Ready()
	who.c.core().Extension().Subs = subs
	publish()
	who.c.core().Ready()
	if n := who.c.core().Outbox().Items(); n != 2 {
		t.Errorf("%d messages came, want 2", n)
	}
}

// A busy loop leaves it to its next turns to tell the topics of closed connections, a few at a time. A client that
// subscribes meanwhile gets what is published.
func TestTopicsOfClosedConnectionsAreLeftInSlices(t *testing.T) {
	opts := topics()
	opts.Loops = 1
	s := start(t, opts)
	const each = 100
	query := "/ws?"
	for i := range each {
		query += fmt.Sprintf("&topic=t.%d", i)
	}
	alice, bob := dial(t, s, query, speakJSON), dial(t, s, query, speakJSON)
	for range each {
		alice.said()
		bob.said()
	}
	cathy := dial(t, s, "/ws", speakJSON)
	eventually(t, "all are there", func() bool { return s.Count() == 3 && int(s.hub.Count.Load()) == each })
	left := make(chan int)
	var conns []*Conn
	for c := range s.Conns() {
		conns = append(conns, c)
	}
	if err := conns[0].Do(func() {
		sh := conns[0].core().Shard()
		sh.Round = reactor.MaxRound + 1
		for _, c := range conns {
			if c.core().SubscriptionCount() > 0 {
				c.core().Abort(reactor.ErrStopped)
			}
		}
		n := 0
		for i := range sh.Departed.Len() {
			n += len(sh.Departed.List[sh.Departed.Head+i].Extension().Subs)
		}
		left <- n
	}); err != nil {
		t.Fatal(err)
	}
	if n := <-left; n != 2*each {
		t.Errorf("%d subscriptions are left to later turns, want %d", n, 2*each)
	}
	if m := cathy.ask(`{"id":1,"subscribe":{"topic":"t.7"}}`); m.Subscribed == nil {
		t.Fatal(m.text)
	}
	mustPublish(t, s, "t.7", "hello")
	if m := cathy.said(); m.Topic != "t.7" {
		t.Fatal(m.text)
	}
	eventually(t, "the others are forgotten", func() bool { return int(s.hub.Count.Load()) == 1 })
	if n := len(s.Subscribers("t.7")); n != 1 {
		t.Errorf("%d subscribers are left, want one", n)
	}
}

// A walk passes over connections that have closed and are in the audience yet, whose descriptors may be others' by now.
// What was published before they closed is counted, and nothing else.
func TestWalksPassOverClosedConnections(t *testing.T) {
	opts := topics()
	opts.Loops = 1
	s := start(t, opts)
	alice, bob := dial(t, s, "/ws?topic=a&topic=b", speakJSON), dial(t, s, "/ws?topic=a", speakJSON)
	alice.said()
	alice.said()
	bob.said()
	conn := s.Subscribers("b")[0]
	dropped, delivered := s.Stats().Drops[DropClosed], s.Stats().Deliveries
	done := make(chan struct{})
	if err := conn.Do(func() {
		defer close(done)
		sh := conn.shard()
		mustPublish(t, s, "a", "early")
		sh.RunCommands()
		sh.Round = reactor.MaxRound + 1 // so that nothing is settled at once
		conn.core().Abort(reactor.ErrStopped)
		time.Sleep(time.Millisecond)
		mustPublish(t, s, "a", "late")
		sh.RunCommands()
		sh.Walk()
		a := s.hub.Find("a")
		defer a.Mu.Unlock()
		if n := len(a.Locals[0].Audiences[reactor.FramingEnvelope].Members); n != 2 || sh.Departed.Len() != 1 {
			t.Errorf("%d members before it is settled, want 2", n)
		}
	}); err != nil {
		t.Fatal(err)
	}
	<-done
	if n := len(s.Subscribers("a")) + len(s.Subscribers("b")); n != 1 {
		t.Errorf("%d subscribers, want one", n)
	}
	for _, want := range []string{"early", "late"} {
		if m := bob.said(); !strings.Contains(m.text, want) {
			t.Errorf("bob got %s, want %s", m.text, want)
		}
	}
	eventually(t, "the topics know", func() bool { return int(s.hub.Count.Load()) == 1 && s.Stats().Deliveries == delivered+2 })
	if n := s.Stats().Drops[DropClosed] - dropped; n != 1 {
		t.Errorf("%d messages are counted as lost, want the one that was published before", n)
	}
}

// Sockets are read in small pieces while others have waited for long enough, and in whole ones after that.
func TestReadsAreSmallInACrowd(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast()})
	c := dial(t, s, "/echo")
	conn := onlyConn(t, s, "/echo")
	sizes := make(chan [2]int, 1)
	if err := conn.Do(func() {
		sh := conn.shard()
		all := len(*sh.Interest.Buffer)
		sh.AddToRound(2 * reactor.MaxRound)
		sizes <- [2]int{all, len(*sh.Interest.Buffer)}
	}); err != nil {
		t.Fatal(err)
	}
	if got := <-sizes; got != [2]int{64 << 10, reactor.CrowdedRead} {
		t.Errorf("%d bytes are read at a time", got)
	}
	c.send("hello")
	c.want("hello")
	if err := conn.Do(func() { sizes <- [2]int{len(*conn.shard().Interest.Buffer)} }); err != nil {
		t.Fatal(err)
	}
	if got := <-sizes; got[0] != 64<<10 {
		t.Errorf("%d bytes are read at a time after the round", got[0])
	}
}
