package outbox

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"carillon/codec"
)

// client has a socket that takes nothing, so that all it is sent waits in its outbox.
type client struct {
	Outbox
	limit   Limit
	dropped int  // messages
	full    bool // it would have been closed
	chunk   []byte
}

func newClient(p Policy, limit int) *client { return &client{limit: Limit{Policy: p, Bytes: limit}} }

func (c *client) add(b []byte, kind Kind, copied bool) {
	dropped, room := c.Add(b, 0, kind, copied || IsBetterCopied(b, kind), c.limit)
	c.dropped += int(dropped)
	c.full = c.full || room == Full
}

// enqueue adds a frame whose memory is immutable.
func (c *client) enqueue(b []byte, kind Kind) { c.add(b, kind, false) }

// send adds copies of whole frames. Control frames stay what they are.
func (c *client) send(b []byte, kind Kind) {
	for len(b) > 0 {
		n := codec.FrameLen(b)
		c.add(b[:n], max(kind, KindOf(b)), true)
		b = b[n:]
	}
}

// modelItem is a frame as a simple queue would keep it.
type modelItem struct {
	b       []byte
	memory  int // that b keeps
	kind    Kind
	partial bool
}

// modelLimit is the limit of the queues below.
const modelLimit = 3000

// modelDrop is dropWaiting in the plainest words.
func modelDrop(items []modelItem, keep int) (kept []modelItem, dropped int) {
	for i, it := range items {
		if it.kind == Message && !it.partial && modelCounted(kept)+modelCounted(items[i:]) > keep {
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
		if kept[i].kind == Message && !kept[i].partial {
			kept = slices.Delete(kept, i, i+1)
			dropped++
		}
	}
	return kept, dropped
}

// modelCounted leaves history out, which does not count.
func modelCounted(items []modelItem) (n int) {
	for _, it := range items {
		if it.kind != History {
			n += ItemCost + it.memory
		}
	}
	return n
}

func modelReplies(items []modelItem) (n int) {
	for _, it := range items {
		if it.kind == Reply {
			n += ItemCost + it.memory
		}
	}
	return n
}

// modelEnqueue applies a policy. Replies are in nobody's way but their own, and only the latest ping is answered.
func modelEnqueue(items []modelItem, policy Policy, it modelItem) (_ []modelItem, dropped int) {
	need := ItemCost + len(it.b)
	switch full := modelCounted(items)+need > modelLimit && modelCounted(items) > 0; {
	case it.kind == Reply && full && policy == DropOldest:
		items, dropped = modelDrop(items, modelLimit-need)
	case it.kind == Reply && full && policy == DropNewest:
		items, dropped = modelDropNewest(items, modelLimit-need)
	case it.kind != Message:
	case policy == KeepLatest:
		items, dropped = modelDrop(items, 0)
	case full && policy == DropOldest:
		items, dropped = modelDrop(items, modelLimit-need)
	case full && policy == DropNewest:
		return items, 1
	}
	if it.kind == Pong {
		it.memory = maxPong
		for i := range items {
			if items[i].kind == Pong && !items[i].partial {
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
	for _, policy := range []Policy{DropOldest, DropNewest, KeepLatest} {
		t.Run(string(policy), func(t *testing.T) {
			for seed := range uint64(200) {
				r := rand.New(rand.NewPCG(seed, 1))
				c := newClient(policy, modelLimit)
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
						kind := KindOf(b)
						if kind == Message {
							kind = []Kind{Message, Message, Message, Message, History, Reply}[r.IntN(6)]
						}
						if n := modelReplies(model); kind == Reply && n > 0 && n+ItemCost+len(b) > modelLimit {
							continue // it would be closed
						}
						model, n = modelEnqueue(model, policy, modelItem{b: b, memory: cap(b), kind: kind})
						drops += n
						c.enqueue(b, kind)
					} else if len(model) > 0 {
						taken := r.IntN(len(c.Gather(&c.chunk)) + 1)
						model = modelWrote(model, taken)
						c.Wrote(taken)
					}
					checkOutbox(t, c, model, drops)
				}
			}
		})
	}
}

func checkOutbox(t *testing.T, c *client, model []modelItem, drops int) {
	t.Helper()
	var want, got []byte
	messages := 0
	for _, it := range model {
		want = append(want, it.b...)
		if it.kind == Message || it.kind == History {
			messages++
		}
	}
	for it := range c.All {
		got = append(got, it.B...)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes wait, want %d", len(got), len(want))
	}
	checkCounts(t, c)
	if n := modelCounted(model); c.counted() != n {
		t.Fatalf("%d bytes count, want %d", c.counted(), n)
	}
	if n := modelReplies(model); c.replies != n {
		t.Fatalf("%d bytes of replies wait, want %d", c.replies, n)
	}
	if n := c.Messages(); n != uint64(messages) {
		t.Fatalf("%d messages wait, want %d", n, messages)
	}
	if c.dropped != drops {
		t.Fatalf("%d drops counted, want %d", c.dropped, drops)
	}
}

// checkCounts compares what an outbox counts with what is in it.
func checkCounts(t *testing.T, c *client) {
	t.Helper()
	o, all, history, replies, waiting := &c.Outbox, 0, 0, 0, uint64(0)
	for it := range o.All {
		waiting += it.Messages()
		switch all += it.cost(); it.Kind {
		case History:
			history += it.cost()
		case Reply:
			replies += it.cost()
		}
	}
	if o.Bytes != all || o.History != history || o.replies != replies {
		t.Fatalf("%d bytes are counted, %d of history, %d of replies; want %d, %d, %d", o.Bytes, o.History, o.replies, all, history, replies)
	}
	if o.Messages() != waiting {
		t.Fatalf("%d messages are counted, %d wait", o.Messages(), waiting)
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
	c := newClient(DropOldest, 1<<20)
	b := codec.AppendFrame(nil, codec.OpBinary, make([]byte, 2*ItemCost))
	for c.dropped == 0 {
		c.enqueue(b, Message)
	}
	newest := c.messages.back()
	allocs := testing.AllocsPerRun(1000, func() { c.enqueue(b, Message) })
	if allocs > 0 {
		t.Errorf("%v allocations for a message that takes the place of another", allocs)
	}
	if c.dropped != 1002 {
		t.Errorf("%d drops, want 1002", c.dropped)
	}
	if newest.B == nil || newest.seq != c.seq-1002 {
		t.Error("an item that was not dropped has moved")
	}
}

// flow is what one connection is sent, and what came of it.
type flow struct {
	t     *testing.T
	r     *rand.Rand
	c     *client
	sent  [][]byte // frames that have not arrived, by their kinds
	kinds []Kind
}

// send sends some frames of one kind at once, each with a number of its own.
func (f *flow) send(n int, kind Kind) {
	var together []byte
	for range n {
		op := codec.OpBinary
		if kind == Pong {
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
		if kind != Pong && f.r.IntN(20) == 0 {
			size = smallFrame + f.r.IntN(300)
		}
		payload := binary.BigEndian.AppendUint32(nil, uint32(len(f.sent)))
		b := codec.AppendFrame(nil, op, append(payload, make([]byte, size-4)...))
		f.sent, f.kinds = append(f.sent, b), append(f.kinds, kind)
		together = append(together, b...)
	}
	f.c.send(together, kind)
	for i := range together {
		together[i] = 0xff // the memory is used again
	}
}

// Copies share memory. Whatever is dropped, written or replaced around them, what arrives is whole and in order, and
// all that is missing are messages which were counted, and pongs that a later one replaced.
func TestOutboxOfCopies(t *testing.T) {
	for _, policy := range []Policy{DropOldest, DropNewest, KeepLatest} {
		t.Run(string(policy), func(t *testing.T) {
			for seed := range uint64(30) {
				f := &flow{t: t, r: rand.New(rand.NewPCG(seed, 3)), c: newClient(policy, 20_000)}
				f.run()
			}
		})
	}
}

func (f *flow) run() {
	f.t.Helper()
	var arrived []byte
	o := f.c
	for range 400 {
		switch f.r.IntN(8) {
		case 0, 1, 2:
			f.send(1+f.r.IntN(60), Message)
		case 3:
			if o.replies < 10_000 {
				f.send(1+f.r.IntN(8), Reply)
			}
		case 4:
			f.send(1+f.r.IntN(3), Pong)
		default:
			b := o.Gather(&f.c.chunk)
			n := f.r.IntN(min(len(b), 400) + 1)
			arrived = append(arrived, b[:n]...)
			f.c.Wrote(n)
		}
		checkCounts(f.t, f.c)
		if policy := f.c.limit.Policy; policy != KeepLatest && o.Bytes > 20_000+ItemCost+maxPong+2*smallFrame {
			f.t.Fatalf("%d bytes wait", o.Bytes)
		}
	}
	for o.Items() > 0 {
		b := o.Gather(&f.c.chunk)
		arrived = append(arrived, b...)
		f.c.Wrote(len(b))
	}
	f.check(arrived)
}

func (f *flow) check(arrived []byte) {
	f.t.Helper()
	came := map[uint32]bool{}
	next := [Pong + 1]uint32{} // within a kind the order is that of sending
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
		case kind == Message:
			lost++
		case kind == Pong:
			replaced++
		default:
			f.t.Fatalf("reply %d is lost", i)
		}
	}
	if dropped := f.c.dropped; lost != dropped || lost == 0 || replaced == 0 {
		f.t.Fatalf("%d messages are lost and %d were counted, %d pongs replaced", lost, dropped, replaced)
	}
}
