package reactor

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"carillon/codec"
	"carillon/server/stats"
)

// queued makes a connection that was stalled already, so that all it is sent waits in its outbox.
func queued(sh *Shard, ep *LoopEndpoint) *Conn {
	c := Assemble(Parts{Shard: sh, Endpoint: ep, FD: -1, Outbox: &Outbox{}})
	c.State().Store(StateOpen)
	return c
}

func unitEndpoint(slow SlowConsumer) *LoopEndpoint {
	e := &Engine{}
	e.Current.Store(&LoopSettings{Endpoints: []LoopEndpointSettings{{Slow: slow}}})
	return &LoopEndpoint{Engine: e}
}

// modelItem is a frame as a simple queue would keep it.
type modelItem struct {
	b       []byte
	memory  int // that b keeps
	kind    itemKind
	partial bool
}

// modelLimit is the limit of the queues below.
const modelLimit = 3000

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

// modelDropNewest is the same from the other end.
func modelDropNewest(items []modelItem, keep int) (kept []modelItem, dropped int) {
	kept = slices.Clone(items)
	for i := len(kept) - 1; i >= 0 && modelCounted(kept) > keep; i-- {
		if kept[i].kind == itemMessage && !kept[i].partial {
			kept = slices.Delete(kept, i, i+1)
			dropped++
		}
	}
	return kept, dropped
}

// modelCounted leaves history out, which does not count.
func modelCounted(items []modelItem) (n int) {
	for _, it := range items {
		if it.kind != itemHistory {
			n += ItemCost + it.memory
		}
	}
	return n
}

func modelReplies(items []modelItem) (n int) {
	for _, it := range items {
		if it.kind == ItemReply {
			n += ItemCost + it.memory
		}
	}
	return n
}

// modelEnqueue applies a policy. Replies are in nobody's way but their own, and only the latest ping is answered.
func modelEnqueue(items []modelItem, policy slowPolicy, it modelItem) (_ []modelItem, dropped int) {
	need := ItemCost + len(it.b)
	switch full := modelCounted(items)+need > modelLimit && modelCounted(items) > 0; {
	case it.kind == ItemReply && full && policy == DropOldest:
		items, dropped = modelDrop(items, modelLimit-need)
	case it.kind == ItemReply && full && policy == DropNewest:
		items, dropped = modelDropNewest(items, modelLimit-need)
	case it.kind != itemMessage:
	case policy == KeepLatest:
		items, dropped = modelDrop(items, 0)
	case full && policy == DropOldest:
		items, dropped = modelDrop(items, modelLimit-need)
	case full && policy == DropNewest:
		return items, 1
	}
	if it.kind == itemPong {
		it.memory = maxPong
		for i := range items {
			if items[i].kind == itemPong && !items[i].partial {
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
			items[0].memory -= n
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
	for _, policy := range []slowPolicy{DropOldest, DropNewest, KeepLatest} {
		t.Run(string(policy), func(t *testing.T) {
			for seed := range uint64(200) {
				r := rand.New(rand.NewPCG(seed, 1))
				sh := &Shard{}
				c := queued(sh, unitEndpoint(SlowConsumer{Policy: policy, MaxQueue: modelLimit}))
				var model []modelItem
				drops := 0
				for step := range 300 {
					if r.IntN(3) > 0 {
						op := ops[r.IntN(len(ops))]
						size := ItemCost + r.IntN(80) // what is smaller is copied: see TestOutboxOfCopies
						if op == codec.OpBinary && r.IntN(20) == 0 {
							size = 4000 // larger than the queue
						}
						b := codec.AppendFrame(nil, op, bytes.Repeat([]byte{byte(step)}, size))
						var n int
						kind := kindOf(b)
						if kind == itemMessage {
							kind = []itemKind{itemMessage, itemMessage, itemMessage, itemMessage, itemHistory, ItemReply}[r.IntN(6)]
						}
						if n := modelReplies(model); kind == ItemReply && n > 0 && n+ItemCost+len(b) > modelLimit {
							continue // it would be closed
						}
						model, n = modelEnqueue(model, policy, modelItem{b: b, memory: cap(b), kind: kind})
						drops += n
						c.enqueue(b, 0, kind)
					} else if len(model) > 0 {
						taken := r.IntN(len(c.out.gather(&sh.chunk)) + 1)
						model = modelWrote(model, taken)
						c.take(taken)
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
	for it := range c.out.All {
		got = append(got, it.B...)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes wait, want %d", len(got), len(want))
	}
	checkCounts(t, c)
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
	for i := range c.sh.Stats.Drops {
		total += int(c.sh.Stats.Drops[i].Load())
	}
	if total != drops {
		t.Fatalf("%d drops counted, want %d", total, drops)
	}
}

// take has the socket take n bytes.
func (c *Conn) take(n int) {
	before := c.out.Bytes
	c.out.Wrote(n)
	c.sh.Stats.QueuedBytes.Add(int64(c.out.Bytes - before))
}

// checkCounts compares what an outbox counts with what is in it.
func checkCounts(t *testing.T, c *Conn) {
	t.Helper()
	o, all, history, replies, waiting := c.out, 0, 0, 0, uint64(0)
	for it := range o.All {
		waiting += it.messages()
		switch all += it.cost(); it.kind {
		case itemHistory:
			history += it.cost()
		case ItemReply:
			replies += it.cost()
		}
	}
	if o.Bytes != all || o.History != history || o.replies != replies || c.sh.Stats.QueuedBytes.Load() != int64(all) {
		t.Fatalf("%d bytes are counted, %d of history, %d of replies, %d in all queues; want %d, %d, %d", o.Bytes, o.History, o.replies, c.sh.Stats.QueuedBytes.Load(), all, history, replies)
	}
	if o.waitingMessages() != waiting {
		t.Fatalf("%d messages are counted, %d wait", o.waitingMessages(), waiting)
	}
	for _, q := range []*frameQueue{&o.messages, &o.kept} {
		for i := range q.head {
			if q.first.items[i].B != nil {
				t.Fatal("the outbox holds on to what is gone")
			}
		}
	}
}

// Dropping the oldest of many costs no more than dropping the oldest of few: the rest stays where it
// is.
func TestOutboxDropOldestMovesNothing(t *testing.T) {
	c := queued(&Shard{}, unitEndpoint(SlowConsumer{Policy: DropOldest, MaxQueue: 1 << 20}))
	b := codec.AppendFrame(nil, codec.OpBinary, make([]byte, 2*ItemCost))
	for c.sh.Stats.Drops[stats.DropOldest].Load() == 0 {
		c.enqueue(b, 0, itemMessage)
	}
	newest := c.out.messages.back()
	allocs := testing.AllocsPerRun(1000, func() { c.enqueue(b, 0, itemMessage) })
	if allocs > 0 {
		t.Errorf("%v allocations for a message that takes the place of another", allocs)
	}
	if n := c.sh.Stats.Drops[stats.DropOldest].Load(); n != 1002 {
		t.Errorf("%d drops, want 1002", n)
	}
	if newest.B == nil || newest.seq != c.out.seq-1002 {
		t.Error("an item that was not dropped has moved")
	}
}

// groupModel is a table with members that come and go, and what each must have.
type groupModel struct {
	t       *testing.T
	r       *rand.Rand
	g       *Table
	members map[*Conn]uint32 // the first message that concerns it
	next    uint32
}

func (m *groupModel) join() {
	c := queued(m.g.Shard, m.g.Endpoint)
	m.g.Add(c, Times{})
	m.members[c] = m.next
}

func (m *groupModel) leave() {
	if len(m.g.Members) > 0 {
		m.check(m.g.Members[m.r.IntN(len(m.g.Members))].Conn, false)
	}
}

// check looks at what a member has, which must be without a gap, and removes it unless it stays.
func (m *groupModel) check(c *Conn, stays bool) {
	m.t.Helper()
	want := m.members[c]
	for it := range c.out.All {
		if got := binary.BigEndian.Uint32(it.B[2:]); got != want {
			m.t.Fatalf("got message %d, want %d", got, want)
		}
		want++
	}
	if seq := m.g.Members[c.Slot()].Seq; m.g.Members[c.Slot()].Conn != c || want != seq-m.g.Base+m.next-uint32(len(m.g.Stream)) {
		m.t.Fatalf("it has messages up to %d, but the group thinks up to %d of %d", want, seq-m.g.Base, m.next)
	}
	if stays {
		if want != m.next {
			m.t.Fatalf("it has messages up to %d of %d", want, m.next)
		}
		return
	}
	delete(m.members, c)
	m.g.Remove(c)
}

// walk goes on for some steps, and stops anywhere.
func (m *groupModel) walk() {
	for range m.r.IntN(100) {
		switch g := m.g; {
		case len(g.Stream) == 0:
			return
		case g.Pass == nil:
			g.Begin()
		case g.Pass.Cursor < len(g.Members):
			g.Serve(g.Pass.Cursor)
		default:
			g.Finish()
		}
	}
}

// Members join and leave between the slices of a walk, and single ones catch up: nobody who stays
// misses a message or gets one twice.
func TestGroupWalk(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		sh := &Shard{Engine: &Engine{}, Set: &LoopSettings{}, Histograms: stats.Histograms{Flushed: make([]stats.Histogram, 2)}}
		g := NewTable(sh, unitEndpoint(SlowConsumer{MaxQueue: -1}))
		g.Base = 1<<32 - 20 // it wraps
		m := &groupModel{t: t, r: r, g: g, members: map[*Conn]uint32{}}
		for range 400 {
			switch r.IntN(6) {
			case 0, 1:
				payload := binary.BigEndian.AppendUint32(nil, m.next)
				g.Publish(codec.NewFrame(codec.OpBinary, append(payload, make([]byte, ItemCost)...)), 0) // smaller ones share memory
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
				if len(g.Members) > 0 {
					c := (*Conn)(g.Members[r.IntN(len(g.Members))].Conn)
					g.catchUp(c.Slot())
					m.check(c, true)
				}
			}
		}
		for len(g.Stream) > 0 {
			g.walk(&slice{time: sliceTime})
		}
		if len(g.Stream) > 0 || int(g.count.Load()) != len(m.members) || len(g.Members) != len(m.members) {
			t.Fatalf("%d messages are left; %d members, want %d", len(g.Stream), len(g.Members), len(m.members))
		}
		for c := range m.members {
			m.check(c, true)
		}
	}
}

// The memory of a crowd that has left is given back.
func TestGroupShrinks(t *testing.T) {
	g := NewTable(&Shard{Engine: &Engine{}, Set: &LoopSettings{}}, unitEndpoint(SlowConsumer{}))
	for range 50_000 {
		g.Add(queued(g.Shard, g.Endpoint), Times{})
	}
	for len(g.Members) > 10 {
		g.Remove(g.Members[0].Conn)
	}
	if n := cap(g.Members); n > 4096 || cap(g.Times) > 4096 {
		t.Errorf("10 members have room for %d", n)
	}
}

// tableFeed gives all members of a table what is published.
type tableFeed struct{ *Table }

func (f tableFeed) Publish(p *Command) (bytes int) { return f.Audience.Publish(p.Frame, p.At) }
func (tableFeed) Join()                            {}
func (tableFeed) Leave()                           {}
func (tableFeed) Left(*Audience)                   {}

// Messages leave the mailbox for the streams. Whoever looks at the backlog meanwhile finds each of them once: it
// only grows here, by one message at a time.
func TestBacklogKeepsWhatIsHandedOver(t *testing.T) {
	sh := &Shard{Engine: &Engine{}, Set: &LoopSettings{}, Histograms: stats.Histograms{Flushed: make([]stats.Histogram, 2)}}
	ep := unitEndpoint(SlowConsumer{MaxQueue: -1})
	g := NewTable(sh, ep)
	g.Feed = tableFeed{g}
	g.Add(queued(sh, ep), Times{})
	f := codec.NewFrame(codec.OpBinary, make([]byte, 100))
	size := int64(len(f.Plain()))
	cost := size + streamCost
	var posted atomic.Int64
	looked := make(chan bool)
	go func() {
		defer close(looked)
		for last := int64(0); posted.Load() < 20_000*cost; {
			before := posted.Load()
			n := sh.Backlog.Load()
			if n < last || n < before || n > posted.Load()+cost {
				t.Errorf("%d bytes in the backlog after %d, of %d that were posted", n, last, before)
				return
			}
			last = n
		}
	}()
	for range 20_000 {
		sh.Backlog.Add(size)
		sh.execute(&Command{Kind: CommandPublish, Feed: g.Feed, Frame: f, Cost: int(size)}, nil)
		posted.Add(cost)
	}
	<-looked
}

// flow is what one connection is sent, and what came of it.
type flow struct {
	t     *testing.T
	r     *rand.Rand
	c     *Conn
	sent  [][]byte // frames that have not arrived, by their kinds
	kinds []itemKind
}

// send sends some frames of one kind at once, each with a number of its own.
func (f *flow) send(n int, kind itemKind) {
	var together []byte
	for range n {
		op := codec.OpBinary
		if kind == itemPong {
			op = codec.OpPong
		}
		size := 4 + f.r.IntN(20)
		switch f.r.IntN(20) {
		case 0:
			size = 300 + f.r.IntN(300)
		case 1:
			size = 100
		}
		size = min(size, maxPong-2)
		if kind != itemPong && f.r.IntN(20) == 0 {
			size = smallFrame + f.r.IntN(300)
		}
		payload := binary.BigEndian.AppendUint32(nil, uint32(len(f.sent)))
		b := codec.AppendFrame(nil, op, append(payload, make([]byte, size-4)...))
		f.sent, f.kinds = append(f.sent, b), append(f.kinds, kind)
		together = append(together, b...)
	}
	f.c.SendBytes(together, kind)
	for i := range together {
		together[i] = 0xff // the memory is used again
	}
}

// Copies share memory. Whatever is dropped, written or replaced around them, what arrives is whole and in order, and
// all that is missing are messages which were counted, and pongs that a later one replaced.
func TestOutboxOfCopies(t *testing.T) {
	for _, policy := range []slowPolicy{DropOldest, DropNewest, KeepLatest} {
		t.Run(string(policy), func(t *testing.T) {
			for seed := range uint64(30) {
				f := &flow{t: t, r: rand.New(rand.NewPCG(seed, 3)), c: queued(&Shard{}, unitEndpoint(SlowConsumer{Policy: policy, MaxQueue: 20_000}))}
				f.run()
			}
		})
	}
}

func (f *flow) run() {
	f.t.Helper()
	var arrived []byte
	o := f.c.out
	for range 400 {
		switch f.r.IntN(8) {
		case 0, 1, 2:
			f.send(1+f.r.IntN(60), itemMessage)
		case 3:
			if o.replies < 10_000 {
				f.send(1+f.r.IntN(8), ItemReply)
			}
		case 4:
			f.send(1+f.r.IntN(3), itemPong)
		default:
			b := o.gather(&f.c.sh.chunk)
			n := f.r.IntN(min(len(b), 400) + 1)
			arrived = append(arrived, b[:n]...)
			f.c.take(n)
		}
		checkCounts(f.t, f.c)
		if policy := f.c.Settings().Slow.Policy; policy != KeepLatest && o.Bytes > 20_000+ItemCost+maxPong+2*smallFrame {
			f.t.Fatalf("%d bytes wait", o.Bytes)
		}
	}
	for o.Items() > 0 {
		b := o.gather(&f.c.sh.chunk)
		arrived = append(arrived, b...)
		f.c.take(len(b))
	}
	f.check(arrived)
}

func (f *flow) check(arrived []byte) {
	f.t.Helper()
	came := map[uint32]bool{}
	next := [itemPong + 1]uint32{} // within a kind the order is that of sending
	for len(arrived) > 0 {
		b := arrived[:codec.FrameLen(arrived)]
		arrived = arrived[len(b):]
		payload := b[2:]
		if b[1] == 126 {
			payload = b[4:]
		}
		i := binary.BigEndian.Uint32(payload)
		if int(i) >= len(f.sent) || !bytes.Equal(b, f.sent[i]) {
			f.t.Fatalf("a frame of %d bytes is none that was sent", len(b))
		}
		kind := f.kinds[i]
		if i < next[kind] {
			f.t.Fatalf("frame %d came before frame %d", next[kind]-1, i)
		}
		next[kind], came[i] = i+1, true
	}
	lost, replaced := 0, 0
	for i, kind := range f.kinds {
		switch {
		case came[uint32(i)]:
		case kind == itemMessage:
			lost++
		case kind == itemPong:
			replaced++
		default:
			f.t.Fatalf("reply %d is lost", i)
		}
	}
	dropped := 0
	for i := range f.c.sh.Stats.Drops {
		dropped += int(f.c.sh.Stats.Drops[i].Load())
	}
	if lost != dropped || lost == 0 || replaced == 0 {
		f.t.Fatalf("%d messages are lost and %d were counted, %d pongs replaced", lost, dropped, replaced)
	}
}
