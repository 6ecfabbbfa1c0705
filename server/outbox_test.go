package server

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"carillon/codec"
)

// queued makes a connection that was stalled already, so that all it is sent waits in its outbox.
func queued(sh *shard, ep *endpoint) *Conn {
	c := &Conn{sh: sh, ep: ep, fd: -1, out: &outbox{}}
	c.state.Store(stateOpen)
	return c
}

func unitEndpoint(slow SlowConsumer) *endpoint {
	s := &Server{}
	s.current.Store(&settings{endpoints: []*endpointSettings{{Endpoint: &Endpoint{SlowConsumer: slow}}}})
	return &endpoint{srv: s}
}

// modelItem is an item as a simple queue would keep it.
type modelItem struct {
	b       []byte
	kind    itemKind
	partial bool
}

// modelDrop is dropWaiting in the plainest words.
func modelDrop(items []modelItem, keep int) (kept []modelItem, dropped int) {
	for i, it := range items {
		if it.kind == itemMessage && !it.partial && modelCounted(kept)+modelCounted(items[i:]) > keep {
			dropped++
			continue
		}
		kept = append(kept, it)
	}
	return kept, dropped
}

// modelCounted leaves history out, which does not count.
func modelCounted(items []modelItem) (n int) {
	for _, it := range items {
		if it.kind != itemHistory {
			n += len(it.b)
		}
	}
	return n
}

func modelReplies(items []modelItem) (n int) {
	for _, it := range items {
		if it.kind == itemReply {
			n += len(it.b)
		}
	}
	return n
}

// modelEnqueue applies a policy of 1,000 bytes. Replies are in nobody's way but their own.
func modelEnqueue(items []modelItem, policy Policy, it modelItem) (_ []modelItem, dropped int) {
	switch full := modelCounted(items)+len(it.b) > 1000 && modelCounted(items) > 0; {
	case it.kind == itemReply && full && policy == PolicyDropOldest:
		items, dropped = modelDrop(items, 1000-len(it.b))
	case it.kind != itemMessage:
	case policy == PolicyLatest:
		items, dropped = modelDrop(items, 0)
	case full && policy == PolicyDropOldest:
		items, dropped = modelDrop(items, 1000-len(it.b))
	case full && policy == PolicyDropNewest:
		return items, 1
	}
	if it.kind == itemPong {
		for i := range items {
			if items[i].kind == itemPong && !items[i].partial && len(items[i].b) == len(it.b) {
				items[i].b = it.b
				return items, dropped
			}
		}
	}
	return append(items, it), dropped
}

// modelWrote removes what a socket has taken.
func modelWrote(items []modelItem, n int) []modelItem {
	for n > 0 {
		if n < len(items[0].b) {
			items[0].b, items[0].partial = items[0].b[n:], true
			return items
		}
		n -= len(items[0].b)
		items = items[1:]
	}
	return items
}

// The outbox does what the plain queue above does, whatever comes: the same bytes in the same order,
// and the same drops.
func TestOutboxAgainstModel(t *testing.T) {
	ops := []codec.Opcode{codec.OpBinary, codec.OpBinary, codec.OpBinary, codec.OpBinary, codec.OpPong, codec.OpPing}
	for _, policy := range []Policy{PolicyDropOldest, PolicyDropNewest, PolicyLatest} {
		t.Run(string(policy), func(t *testing.T) {
			for seed := range uint64(200) {
				r := rand.New(rand.NewPCG(seed, 1))
				sh := &shard{}
				c := queued(sh, unitEndpoint(SlowConsumer{Policy: policy, MaxQueue: 1000}))
				var model []modelItem
				drops := 0
				for step := range 300 {
					if r.IntN(3) > 0 {
						op := ops[r.IntN(len(ops))]
						size := r.IntN(120)
						if op == codec.OpBinary && r.IntN(20) == 0 {
							size = 1500 // larger than the queue
						}
						b := codec.AppendFrame(nil, op, bytes.Repeat([]byte{byte(step)}, size))
						var n int
						kind := kindOf(b)
						if kind == itemMessage {
							kind = []itemKind{itemMessage, itemMessage, itemMessage, itemMessage, itemHistory, itemReply}[r.IntN(6)]
						}
						if n := modelReplies(model); kind == itemReply && n > 0 && n+len(b) > 1000 {
							continue // it would be closed
						}
						model, n = modelEnqueue(model, policy, modelItem{b: b, kind: kind})
						drops += n
						c.enqueue(b, 0, kind)
					} else if len(model) > 0 {
						taken := r.IntN(len(c.out.next(&sh.chunk)) + 1)
						model = modelWrote(model, taken)
						c.out.wrote(taken)
						sh.stats.QueuedBytes.Add(-int64(taken))
					}
					checkOutbox(t, c, model, drops)
				}
			}
		})
	}
}

func checkOutbox(t *testing.T, c *Conn, model []modelItem, drops int) {
	t.Helper()
	var want, got []byte
	messages := 0
	for _, it := range model {
		want = append(want, it.b...)
		if it.kind == itemMessage || it.kind == itemHistory {
			messages++
		}
	}
	for _, it := range c.out.items[c.out.head:] {
		got = append(got, it.b...)
	}
	if !bytes.Equal(got, want) || c.out.bytes != len(want) || c.sh.stats.QueuedBytes.Load() != int64(len(want)) {
		t.Fatalf("%d bytes wait (%d, %d), want %d", len(got), c.out.bytes, c.sh.stats.QueuedBytes.Load(), len(want))
	}
	if n := modelCounted(model); c.out.counted() != n {
		t.Fatalf("%d bytes count, want %d", c.out.counted(), n)
	}
	if n := modelReplies(model); c.out.replies != n {
		t.Fatalf("%d bytes of replies wait, want %d", c.out.replies, n)
	}
	if n := c.out.waitingMessages(); n != uint64(messages) {
		t.Fatalf("%d messages wait, want %d", n, messages)
	}
	total := 0
	for i := range c.sh.stats.drops {
		total += int(c.sh.stats.drops[i].Load())
	}
	if total != drops {
		t.Fatalf("%d drops counted, want %d", total, drops)
	}
	for _, it := range c.out.items[:c.out.head] {
		if it.b != nil {
			t.Fatal("the outbox holds on to what is gone")
		}
	}
}

// Dropping the oldest of many costs no more than dropping the oldest of few: the rest stays where it
// is.
func TestOutboxDropOldestMovesNothing(t *testing.T) {
	c := queued(&shard{}, unitEndpoint(SlowConsumer{Policy: PolicyDropOldest, MaxQueue: 1 << 20}))
	b := codec.AppendFrame(nil, codec.OpBinary, make([]byte, 8))
	for c.sh.stats.drops[DropOldest].Load() == 0 {
		c.enqueue(b, 0, itemMessage)
	}
	moves := 0
	for range 1000 {
		head := c.out.head
		c.enqueue(b, 0, itemMessage)
		if c.out.head != head+1 {
			moves++
		}
	}
	if moves > 1 {
		t.Errorf("all items were moved %d times", moves)
	}
	if n := c.sh.stats.drops[DropOldest].Load(); n != 1001 {
		t.Errorf("%d drops, want 1001", n)
	}
	if n := cap(c.out.items); n > 4*(1<<20/10) {
		t.Errorf("the outbox has room for %d items", n)
	}
}

// groupModel is a group with members that come and go, and what each must have.
type groupModel struct {
	t       *testing.T
	r       *rand.Rand
	g       *group
	members map[*Conn]uint32 // the first message that concerns it
	next    uint32
}

func (m *groupModel) join() {
	c := queued(m.g.sh, m.g.ep)
	m.g.add(c, times{})
	m.members[c] = m.next
}

func (m *groupModel) leave() {
	if len(m.g.members) > 0 {
		m.check(m.g.members[m.r.IntN(len(m.g.members))].conn, false)
	}
}

// check looks at what a member has, which must be without a gap, and removes it unless it stays.
func (m *groupModel) check(c *Conn, stays bool) {
	m.t.Helper()
	want := m.members[c]
	for _, it := range c.out.items {
		if got := binary.BigEndian.Uint32(it.b[2:]); got != want {
			m.t.Fatalf("got message %d, want %d", got, want)
		}
		want++
	}
	if seq := m.g.members[c.slot].seq; m.g.members[c.slot].conn != c || want != seq-m.g.base+m.next-uint32(len(m.g.stream)) {
		m.t.Fatalf("it has messages up to %d, but the group thinks up to %d of %d", want, seq-m.g.base, m.next)
	}
	if stays {
		if want != m.next {
			m.t.Fatalf("it has messages up to %d of %d", want, m.next)
		}
		return
	}
	delete(m.members, c)
	m.g.remove(c)
}

// walk goes on for some steps, and stops anywhere.
func (m *groupModel) walk() {
	for range m.r.IntN(100) {
		switch g := m.g; {
		case len(g.stream) == 0:
			return
		case g.pass == nil:
			g.begin()
		case g.pass.cursor < len(g.members):
			g.serve(g.pass.cursor)
		default:
			g.finish()
		}
	}
}

// Members join and leave between the slices of a walk, and single ones catch up: nobody who stays
// misses a message or gets one twice.
func TestGroupWalk(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		sh := &shard{srv: &Server{}, set: &settings{}, meters: meters{flushed: make([]histogram, 2)}}
		g := newGroup(sh, unitEndpoint(SlowConsumer{MaxQueue: -1}))
		g.base = 1<<32 - 20 // it wraps
		m := &groupModel{t: t, r: r, g: g, members: map[*Conn]uint32{}}
		for range 400 {
			switch r.IntN(6) {
			case 0, 1:
				g.publish(codec.NewFrame(Binary, binary.BigEndian.AppendUint32(nil, m.next)), 0)
				m.next++
			case 2, 3:
				m.walk()
			case 4:
				for range r.IntN(10) {
					m.leave()
				}
				for range r.IntN(12) {
					m.join()
				}
			case 5:
				if len(g.members) > 0 {
					c := g.members[r.IntN(len(g.members))].conn
					g.catchUp(c.slot)
					m.check(c, true)
				}
			}
		}
		for len(g.stream) > 0 {
			g.walk(&slice{whole: true}) // one batch
		}
		if len(g.stream) > 0 || int(g.count.Load()) != len(m.members) || len(g.members) != len(m.members) {
			t.Fatalf("%d messages are left; %d members, want %d", len(g.stream), len(g.members), len(m.members))
		}
		for c := range m.members {
			m.check(c, true)
		}
	}
}

// The memory of a crowd that has left is given back.
func TestGroupShrinks(t *testing.T) {
	g := newGroup(&shard{srv: &Server{}, set: &settings{}}, unitEndpoint(SlowConsumer{}))
	for range 50_000 {
		g.add(queued(g.sh, g.ep), times{})
	}
	for len(g.members) > 10 {
		g.remove(g.members[0].conn)
	}
	if n := cap(g.members); n > 4096 || cap(g.times) > 4096 {
		t.Errorf("10 members have room for %d", n)
	}
}

// Messages leave the mailbox for the streams. Whoever looks at the backlog meanwhile finds each of them once: it
// only grows here, by one message at a time.
func TestBacklogKeepsWhatIsHandedOver(t *testing.T) {
	sh := &shard{srv: &Server{}, set: &settings{}, meters: meters{flushed: make([]histogram, 2)}}
	ep := unitEndpoint(SlowConsumer{MaxQueue: -1})
	ep.framings = 1
	g := newGroup(sh, ep)
	sh.groups = []*group{g}
	g.add(queued(sh, ep), times{})
	f := codec.NewFrame(Binary, make([]byte, 100))
	size := int64(len(f.Plain()))
	var posted atomic.Int64
	looked := make(chan bool)
	go func() {
		defer close(looked)
		for last := int64(0); posted.Load() < 20_000*size; {
			before := posted.Load()
			n := sh.backlog.Load()
			if n < last || n < before || n > posted.Load()+size {
				t.Errorf("%d bytes in the backlog after %d, of %d that were posted", n, last, before)
				return
			}
			last = n
		}
	}()
	for range 20_000 {
		sh.backlog.Add(size)
		posted.Add(size)
		sh.open(&letter{kind: letterBroadcast, ep: ep, frame: f}, nil)
	}
	<-looked
}
