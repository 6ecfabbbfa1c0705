package reactor

import (
	"bytes"
	"fmt"

	"carillon/codec"
	"carillon/internal/shrink"
	"carillon/server/internal/option"
	"carillon/server/stats"
)

// Outbox is what waits for a connection whose socket is full, in the order in which it leaves: references to frames
// that other receivers share, and copies of what is for this connection alone. A connection has one only while it
// needs it. Owned by the loop.
//
// Nothing that is done for one message looks at all that waits: messages, which a policy may drop, are apart from
// what is kept, the latest pong is remembered, and small copies stand together in runs.
type Outbox struct {
	partial  item       // what is left of a frame that the socket has taken in part; it leaves first
	messages frameQueue // items of the kind itemMessage
	kept     frameQueue // items of all other kinds
	seq      uint32     // of the next item in either queue
	pong     *item      // the one that waits in kept, or nil

	waiting int    // messages
	Bytes   int    // memory of all items, see item.cost
	History int    // memory of history, which the limit does not count
	replies int    // memory of replies that it counts
	answers int    // memory of large replies, of which one waits at most: see Workload.canAnswer
	Batches int    // subscriptions whose history waits, ended ones included
	since   uint32 // when the socket last took a byte, in milliseconds of the shard's clock
	slot    int    // where the connection stands in shard.stalled
}

// itemKind says what an item of an outbox is, which decides whether a policy may drop it.
type itemKind uint8

const (
	itemMessage itemKind = iota
	itemHistory          // a message from a topic's history: it is kept anyway, so that no policy drops it
	ItemReply            // to a request of the client: counts as a message does, but no policy drops it; see roomForReply
	ItemAnswer           // a large reply: it does not count either, and no policy drops it
	itemControl          // ping, close, or the answer to a handshake: never dropped
	itemPong             // never dropped, but replaced by a later one
)

// kindOf reads the opcode of an encoded frame.
func kindOf(frame []byte) itemKind {
	switch op := codec.Opcode(frame[0] & 15); {
	case op == codec.OpPong:
		return itemPong
	case op >= codec.OpClose:
		return itemControl
	}
	return itemMessage
}

// flushChunk is how much of an outbox is put together for one write.
const flushChunk = 128 << 10

// enqueue puts a frame, of which some bytes have been written, behind what waits, within the limit and by the
// policy of the endpoint. The memory of b is immutable.
func (c *Conn) enqueue(b []byte, written int, kind itemKind) { c.addWaiting(b, written, kind, false) }

// enqueueCopy is enqueue for a frame whose memory is used again.
func (c *Conn) enqueueCopy(b []byte, written int, kind itemKind) {
	c.addWaiting(b, written, kind, true)
}

func (c *Conn) addWaiting(b []byte, written int, kind itemKind, copied bool) {
	o := c.out
	if o == nil {
		o = c.stall()
	}
	copied = copied || len(b) <= ItemCost && messagesOf(kind) > 0 && !c.IsEvents() // less memory than a reference to it
	if (kind == itemMessage || kind == ItemReply) && written == 0 && !c.makeRoom(ItemCost+len(b), kind) {
		return
	}
	before := o.Bytes
	if written > 0 {
		o.putPartial(b[written:], kind, copied)
	} else {
		o.put(b, kind, copied)
	}
	c.sh.Stats.QueuedBytes.Add(int64(o.Bytes - before))
}

// count notes that n bytes of memory more wait, or less.
func (o *Outbox) count(kind itemKind, n int) {
	o.Bytes += n
	switch kind {
	case itemHistory:
		o.History += n
	case ItemReply:
		o.replies += n
	case ItemAnswer:
		o.answers += n
	}
}

// put adds a frame behind what waits. If copied is set, the caller uses the memory of b again.
func (o *Outbox) put(b []byte, kind itemKind, copied bool) {
	if kind == itemPong {
		o.putPong(b)
		return
	}
	q := &o.kept
	if kind == itemMessage {
		q = &o.messages
	}
	it := item{B: b, seq: o.seq, kind: kind}
	switch {
	case !copied:
	case kind == itemControl || len(b) > smallFrame:
		it.B = bytes.Clone(b)
	case q.join(b, kind, o.seq):
		o.count(kind, len(b))
		o.waiting += messagesOf(kind)
		return
	default:
		it.B, it.frames = q.copySmall(b), 1
	}
	q.push(it)
	o.seq++
	o.count(kind, it.cost())
	o.waiting += messagesOf(kind)
}

// maxPong is the size of the longest pong: the header and 125 bytes.
const maxPong = 127

// putPong answers only the latest ping of a client that does not read (RFC 6455, section 5.5.3). The answer keeps
// the place of the one that it replaces.
func (o *Outbox) putPong(b []byte) {
	if o.pong == nil {
		o.pong = o.kept.push(item{B: make([]byte, 0, maxPong), seq: o.seq, kind: itemPong})
		o.seq++
		o.count(itemPong, o.pong.cost())
	}
	o.pong.B = append(o.pong.B[:0], b...)
}

// putPartial adds a frame of which the socket has taken a part, so that the rest must follow. Nothing else waits.
func (o *Outbox) putPartial(b []byte, kind itemKind, copied bool) {
	if copied {
		b = bytes.Clone(b)
	}
	o.partial = item{B: b, kind: kind}
	o.count(kind, o.partial.cost())
	o.waiting += messagesOf(kind)
}

// pop removes the front item of one of the two queues.
func (o *Outbox) pop(q *frameQueue) {
	it := q.front()
	if it.kind == itemPong {
		o.pong = nil
	}
	o.count(it.kind, -it.cost())
	o.waiting -= int(it.messages())
	q.pop()
}

// cut removes the first frame of a run, of n bytes.
func (o *Outbox) cut(q *frameQueue, n int) {
	it := q.front()
	if it.frames <= 1 {
		o.pop(q)
		return
	}
	it.B = it.B[n:]
	it.frames--
	o.count(it.kind, -n)
	o.waiting -= messagesOf(it.kind)
}

// dropOldest removes the message that has waited longest, or a whole run that costs no more than the excess. It
// returns the number of messages, 0 if none waits that may be dropped.
func (o *Outbox) dropOldest(excess int) uint64 {
	it := o.messages.front()
	if it == nil {
		return 0
	}
	if it.frames > 1 && it.cost() > excess {
		o.cut(&o.messages, codec.FrameLen(it.B))
		return 1
	}
	n := it.messages()
	o.pop(&o.messages)
	return n
}

// dropNewest is dropOldest from the other end. Of a run it removes as little as it must.
func (o *Outbox) dropNewest(excess int) uint64 {
	it := o.messages.back()
	if it == nil {
		return 0
	}
	if it.frames > 1 {
		stay, frames := 0, 0
		for end := codec.FrameLen(it.B); end <= len(it.B)-excess; end += codec.FrameLen(it.B[end:]) {
			stay, frames = end, frames+1
		}
		if frames > 0 {
			n := uint64(int(it.frames) - frames)
			o.count(itemMessage, stay-len(it.B))
			o.waiting -= int(n)
			o.messages.trim(stay, frames)
			return n
		}
	}
	n := it.messages()
	o.count(itemMessage, -it.cost())
	o.waiting -= int(n)
	o.messages.popBack()
	return n
}

// discard removes everything but what has been written in part and control frames, for a connection that is closed
// next. It returns the number of messages.
func (o *Outbox) discard() (messages uint64) {
	kept, waiting := o.kept, o.waiting
	o.messages, o.kept, o.pong = frameQueue{}, frameQueue{}, nil
	o.Bytes, o.History, o.replies, o.answers, o.Batches, o.waiting = 0, 0, 0, 0, 0, 0
	if len(o.partial.B) > 0 {
		o.count(o.partial.kind, o.partial.cost())
		o.waiting = messagesOf(o.partial.kind)
	}
	for it := range kept.all {
		if it.kind == itemControl {
			o.kept.push(*it)
			o.count(itemControl, it.cost())
		}
	}
	return uint64(waiting - o.waiting)
}

// Wrote removes n bytes from the front. What the socket has taken in part cannot be dropped any more.
func (o *Outbox) Wrote(n int) {
	if p := &o.partial; len(p.B) > 0 {
		taken := min(n, len(p.B))
		o.count(p.kind, -taken)
		if p.B, n = p.B[taken:], n-taken; len(p.B) == 0 {
			o.count(p.kind, -p.cost())
			o.waiting -= messagesOf(p.kind)
			*p = item{}
		}
	}
	for n > 0 {
		q := o.next()
		it := q.front()
		size := len(it.B)
		if it.frames > 1 && n < size {
			size = codec.FrameLen(it.B)
		}
		if n < size {
			o.begin(q, n, size)
			break
		}
		n -= size
		if size == len(it.B) {
			o.pop(q)
		} else {
			o.cut(q, size)
		}
	}
	if o.History == 0 {
		o.Batches = 0
	}
}

// begin takes the first frame of a queue, of size bytes, out of it: the socket has taken n of them.
func (o *Outbox) begin(q *frameQueue, n, size int) {
	it := q.front()
	p := item{B: it.B[n:], kind: it.kind}
	if size < len(it.B) {
		p.B = it.B[n:size:size]
	}
	o.cut(q, size)
	o.partial = p
	o.count(p.kind, p.cost())
	o.waiting += messagesOf(p.kind)
}

// next returns the queue whose front item leaves first, if any waits.
func (o *Outbox) next() *frameQueue {
	m, k := o.messages.front(), o.kept.front()
	if k == nil || m != nil && int32(m.seq-k.seq) < 0 {
		return &o.messages
	}
	return &o.kept
}

// All yields everything that waits in the order in which it leaves.
func (o *Outbox) All(yield func(*item) bool) {
	if len(o.partial.B) > 0 && !yield(&o.partial) {
		return
	}
	m, k := o.messages.cursor(), o.kept.cursor()
	for m.left+k.left > 0 {
		from := &k
		if k.left == 0 || m.left > 0 && int32(m.item().seq-k.item().seq) < 0 {
			from = &m
		}
		if !yield(from.item()) {
			return
		}
		from.advance()
	}
}

// Items returns the number of items that wait.
func (o *Outbox) Items() int {
	n := o.messages.len + o.kept.len
	if len(o.partial.B) > 0 {
		n++
	}
	return n
}

// SlowConsumer says what becomes of messages for a connection that does not read as fast as it is sent to.
type SlowConsumer struct {
	Policy    slowPolicy
	MaxQueue  int // bytes; negative is off
	CloseCode codec.CloseCode
}

type slowPolicy uint8

const (
	closeSlow slowPolicy = iota
	DropOldest
	DropNewest
	KeepLatest
)

// makeRoom applies the slow-consumer policy to a message or reply that takes n bytes of memory, and reports whether
// it may wait.
func (c *Conn) makeRoom(n int, kind itemKind) bool {
	o, slow := c.out, &c.Settings().Slow
	if slow.Policy == KeepLatest && kind == itemMessage {
		c.dropWaiting(stats.DropConflated, 0)
		return true
	}
	if slow.MaxQueue < 0 || o.counted() == 0 || o.counted()+n <= slow.MaxQueue {
		return true
	}
	switch slow.Policy {
	case DropOldest:
		c.dropWaiting(stats.DropOldest, slow.MaxQueue-n)
	case DropNewest:
		if kind == itemMessage {
			c.sh.Stats.Drop(stats.DropNewest, 1)
			return false
		}
		c.dropWaiting(stats.DropNewest, slow.MaxQueue-n)
	}
	switch {
	case slow.Policy == closeSlow:
	case kind == itemMessage:
		return true
	case o.roomForReply(n, slow.MaxQueue):
		return true
	}
	if kind == itemMessage {
		c.sh.Stats.Drop(stats.DropSlowConsumer, 1)
	}
	c.discardWaiting(stats.DropSlowConsumer)
	c.sh.Stats.Cut(stats.CutSlowConsumer)
	c.beginClose(CloseOwn, slow.CloseCode, fmt.Sprintf("slow consumer: more than %v queued", option.Size(slow.MaxQueue)))
	return false
}

// roomForReply reports whether a reply may wait although the queue is full. Where a policy drops messages, replies
// have only each other to be too many for: messages that nothing can be dropped of, such as one that is half
// written or the newest, are no fault of a client that asks. One that reads no replies either is closed.
func (o *Outbox) roomForReply(n, limit int) bool { return o.replies == 0 || o.replies+n <= limit }

// counted returns the bytes of memory that the limit counts.
func (o *Outbox) counted() int { return o.Bytes - o.History - o.answers }

// dropWaiting drops messages until the limit counts at most keep bytes: those that have waited longest, or, for
// DropNewest, shortest. What has been written in part stays, and so does everything that is no message.
func (c *Conn) dropWaiting(reason stats.DropReason, keep int) {
	o := c.out
	before, dropped, drop := o.Bytes, uint64(0), o.dropOldest
	if reason == stats.DropNewest {
		drop = o.dropNewest
	}
	for o.counted() > keep {
		n := drop(o.counted() - keep)
		if n == 0 {
			break
		}
		dropped += n
	}
	c.sh.Stats.Drop(reason, dropped)
	c.sh.Stats.QueuedBytes.Add(int64(o.Bytes - before))
}

// discardWaiting drops all that waits before the connection is closed for it. What has been written in part stays,
// and so do control frames, such as the answer to the handshake.
func (c *Conn) discardWaiting(reason stats.DropReason) {
	before := c.out.Bytes
	c.sh.Stats.Drop(reason, c.out.discard())
	c.sh.Stats.QueuedBytes.Add(int64(c.out.Bytes - before))
}

// stall gives the connection an outbox and asks to be told when the socket takes bytes again.
func (c *Conn) stall() *Outbox {
	sh := c.sh
	o := sh.newOutbox()
	o.since, o.slot = sh.Clock, len(sh.Stalled)
	sh.Stalled = append(sh.Stalled, c)
	c.out = o
	c.setPlainFD(-1)
	sh.Engine.watcher.watch(c)
	return o
}

// unlist takes an outbox's connection out of the list of those that stall.
func (sh *Shard) unlist(o *Outbox) {
	last := len(sh.Stalled) - 1
	sh.Stalled[o.slot] = sh.Stalled[last]
	sh.Stalled[o.slot].out.slot = o.slot
	sh.Stalled[last] = nil
	sh.Stalled = shrink.Slice(sh.Stalled[:last])
}

// unstall takes the outbox away. What is still in it was counted by the caller.
func (c *Conn) unstall() {
	sh, o := c.sh, c.out
	sh.unlist(o)
	sh.Stats.QueuedBytes.Add(-int64(o.Bytes))
	c.out = nil
	c.dropPending()
	sh.freeOutbox(o)
	sh.Engine.watcher.forget(c)
	if c.table != nil {
		c.setPlainFD(c.plainFD())
	}
}

// maxFlush is about how many bytes are written to a socket before others have their turn.
const maxFlush = 512 << 10

// flushSome writes what waits, as much as the socket takes, and then the newest messages of topics that have left
// others out meanwhile. It reports whether the connection needs another turn.
func (c *Conn) flushSome() (more bool) {
	o := c.out
	if o == nil {
		return false // the news that the socket is writable came late
	}
	if !c.pushPending() {
		return false
	}
	for left := maxFlush; o.Items() > 0 || c.queueNewest(&left); {
		if left <= 0 {
			return true
		}
		b := o.gather(&c.sh.chunk)
		n, errno := c.write(b)
		if errno != 0 {
			return false
		}
		left -= n
		if n > 0 {
			o.since = c.sh.Clock
			if c.Is(MarkTLS) {
				c.countPending(n, o.sizes())
			}
			before := o.Bytes
			o.Wrote(n)
			c.sh.Stats.QueuedBytes.Add(int64(o.Bytes - before))
		}
		if n < len(b) || c.isPending() {
			c.sh.Engine.watcher.watch(c)
			c.sh.Run.Schedule(c.Workload())
			return false
		}
	}
	c.unstall()
	c.flushed()
	c.sh.Run.Schedule(c.Workload())
	return false
}

// gather returns what to write: the first item where it lies if it is large, else several together.
func (o *Outbox) gather(chunk *[]byte) []byte {
	b, alone := (*chunk)[:0], o.Items() == 1
	for it := range o.All {
		if len(b) == 0 && (alone || len(it.B) >= flushChunk/2) {
			return it.B
		}
		if len(b)+len(it.B) > flushChunk {
			break
		}
		b = append(b, it.B...)
	}
	*chunk = b
	return b
}

// waitingMessages returns the number of messages that are lost if the connection ends now.
func (o *Outbox) waitingMessages() uint64 { return uint64(o.waiting) }

func (sh *Shard) newOutbox() *Outbox {
	if last := len(sh.freeOutboxes) - 1; last >= 0 {
		o := sh.freeOutboxes[last]
		sh.freeOutboxes = sh.freeOutboxes[:last]
		return o
	}
	return &Outbox{}
}

// freeOutbox keeps up to 64 outboxes for later, each with at most 2 KiB of room for messages.
func (sh *Shard) freeOutbox(o *Outbox) {
	if len(sh.freeOutboxes) < 64 {
		*o = Outbox{messages: o.messages.reuse()}
		sh.freeOutboxes = append(sh.freeOutboxes, o)
	}
}
