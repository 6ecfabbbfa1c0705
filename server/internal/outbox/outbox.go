// Package outbox keeps what waits for a client that does not read as fast as it is sent to.
package outbox

import (
	"bytes"
	"iter"

	"carillon/codec"
)

// Outbox is what waits for a connection whose socket is full, in the order in which it leaves: references to frames
// that other receivers share, and copies of what is for this connection alone. A connection has one only while it
// needs it. Owned by the loop.
//
// Nothing that is done for one message looks at all that waits: messages, which a policy may drop, are apart from
// what is kept, the latest pong is remembered, and small copies stand together in runs.
type Outbox struct {
	partial  Item       // what is left of a frame that the socket has taken in part; it leaves first
	messages frameQueue // items of the kind Message
	kept     frameQueue // items of all other kinds
	seq      uint32     // of the next item in either queue
	pong     *Item      // the one that waits in kept, or nil

	waiting int    // messages
	Bytes   int    // memory of all items, see item.cost
	History int    // memory of history, which the limit does not count
	replies int    // memory of replies that it counts
	Answers int    // memory of large replies, of which one waits at most
	Batches int    // subscriptions whose history waits, ended ones included
	Since   uint32 // when the socket last took a byte, in milliseconds of the loop's clock; the connection's own
	Slot    int    // where the connection stands in a list of those that have an outbox; the connection's own
}

// Kind says what an item is, which decides whether a policy may drop it.
type Kind uint8

const (
	Message Kind = iota
	History      // a message from a topic's history: it is kept anyway, so that no policy drops it
	Reply        // to a request of the client: counts as a message does, but no policy drops it; see MakeRoom
	Answer       // a large reply: it does not count either, and no policy drops it
	Control      // ping, close, or the answer to a handshake: never dropped
	Pong         // never dropped, but replaced by a later one
)

// KindOf reads the opcode of an encoded frame.
func KindOf(frame []byte) Kind {
	switch op := codec.Opcode(frame[0] & 15); {
	case op == codec.OpPong:
		return Pong
	case op >= codec.OpClose:
		return Control
	}
	return Message
}

// ChunkSize is how many bytes of an outbox are put together for one write, at most.
const ChunkSize = 128 << 10

// Policy says what becomes of messages for a client whose outbox is full.
type Policy uint8

const (
	Close Policy = iota
	DropOldest
	DropNewest
	KeepLatest // all that waits goes for each new message
)

// Room is what [Outbox.Add] has done with a frame.
type Room uint8

const (
	Added   Room = iota
	Dropped      // the frame itself, by its policy
	Full         // nothing can make room: the connection is to be closed
)

// Limit is how much may wait, and what happens beyond.
type Limit struct {
	Policy Policy
	Bytes  int // of memory, of what counts: see [Kind]; negative for any number
}

// Add puts a frame, of which some bytes have been written, behind what waits, within a limit. dropped is how many
// messages the policy has dropped, which may be the frame itself. If copied is set, the caller uses the memory of b
// again; otherwise it is immutable.
func (o *Outbox) Add(b []byte, written int, kind Kind, copied bool, l Limit) (dropped uint64, room Room) {
	if (kind == Message || kind == Reply) && written == 0 {
		if dropped, room = o.makeRoom(ItemCost+len(b), kind, l); room != Added {
			return dropped, room
		}
	}
	if written > 0 {
		o.putPartial(b[written:], kind, copied)
	} else {
		o.put(b, kind, copied)
	}
	return dropped, Added
}

// IsBetterCopied reports whether a copy of a frame takes less memory than a reference to it. Copies of small frames are
// cut by their headers, so they must be WebSocket frames.
func IsBetterCopied(b []byte, kind Kind) bool { return len(b) <= ItemCost && MessagesOf(kind) > 0 }

// count notes that n bytes of memory more wait, or less.
func (o *Outbox) count(kind Kind, n int) {
	o.Bytes += n
	switch kind {
	case History:
		o.History += n
	case Reply:
		o.replies += n
	case Answer:
		o.Answers += n
	}
}

// put adds a frame behind what waits. If copied is set, the caller uses the memory of b again.
func (o *Outbox) put(b []byte, kind Kind, copied bool) {
	if kind == Pong {
		o.putPong(b)
		return
	}
	q := &o.kept
	if kind == Message {
		q = &o.messages
	}
	it := Item{B: b, seq: o.seq, Kind: kind}
	switch {
	case !copied:
	case kind == Control || len(b) > smallFrame:
		it.B = bytes.Clone(b)
	case q.join(b, kind, o.seq):
		o.count(kind, len(b))
		o.waiting += MessagesOf(kind)
		return
	default:
		it.B, it.frames = q.copySmall(b), 1
	}
	q.push(it)
	o.seq++
	o.count(kind, it.cost())
	o.waiting += MessagesOf(kind)
}

// maxPong is the size of the longest pong: the header and 125 bytes.
const maxPong = 127

// putPong answers only the latest ping of a client that does not read (RFC 6455, section 5.5.3). The answer keeps
// the place of the one that it replaces.
func (o *Outbox) putPong(b []byte) {
	if o.pong == nil {
		o.pong = o.kept.push(Item{B: make([]byte, 0, maxPong), seq: o.seq, Kind: Pong})
		o.seq++
		o.count(Pong, o.pong.cost())
	}
	o.pong.B = append(o.pong.B[:0], b...)
}

// putPartial adds a frame of which the socket has taken a part, so that the rest must follow. Nothing else waits.
func (o *Outbox) putPartial(b []byte, kind Kind, copied bool) {
	if copied {
		b = bytes.Clone(b)
	}
	o.partial = Item{B: b, Kind: kind}
	o.count(kind, o.partial.cost())
	o.waiting += MessagesOf(kind)
}

// pop removes the front item of one of the two queues.
func (o *Outbox) pop(q *frameQueue) {
	it := q.front()
	if it.Kind == Pong {
		o.pong = nil
	}
	o.count(it.Kind, -it.cost())
	o.waiting -= int(it.Messages())
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
	o.count(it.Kind, -n)
	o.waiting -= MessagesOf(it.Kind)
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
	n := it.Messages()
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
			o.count(Message, stay-len(it.B))
			o.waiting -= int(n)
			o.messages.trim(stay, frames)
			return n
		}
	}
	n := it.Messages()
	o.count(Message, -it.cost())
	o.waiting -= int(n)
	o.messages.popBack()
	return n
}

// Discard removes everything but what has been written in part and control frames, for a connection that is closed
// next. It returns the number of messages.
func (o *Outbox) Discard() (messages uint64) {
	kept, waiting := o.kept, o.waiting
	o.messages, o.kept, o.pong = frameQueue{}, frameQueue{}, nil
	o.Bytes, o.History, o.replies, o.Answers, o.Batches, o.waiting = 0, 0, 0, 0, 0, 0
	if len(o.partial.B) > 0 {
		o.count(o.partial.Kind, o.partial.cost())
		o.waiting = MessagesOf(o.partial.Kind)
	}
	for it := range kept.all {
		if it.Kind == Control {
			o.kept.push(*it)
			o.count(Control, it.cost())
		}
	}
	return uint64(waiting - o.waiting)
}

// Wrote removes n bytes from the front. What the socket has taken in part cannot be dropped any more.
func (o *Outbox) Wrote(n int) {
	if p := &o.partial; len(p.B) > 0 {
		taken := min(n, len(p.B))
		o.count(p.Kind, -taken)
		if p.B, n = p.B[taken:], n-taken; len(p.B) == 0 {
			o.count(p.Kind, -p.cost())
			o.waiting -= MessagesOf(p.Kind)
			*p = Item{}
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
	p := Item{B: it.B[n:], Kind: it.Kind}
	if size < len(it.B) {
		p.B = it.B[n:size:size]
	}
	o.cut(q, size)
	o.partial = p
	o.count(p.Kind, p.cost())
	o.waiting += MessagesOf(p.Kind)
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
func (o *Outbox) All(yield func(*Item) bool) {
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

// makeRoom applies a policy to a message or reply that takes n bytes of memory. dropped is how many messages went, and
// room whether it may wait.
func (o *Outbox) makeRoom(n int, kind Kind, l Limit) (dropped uint64, room Room) {
	if l.Policy == KeepLatest && kind == Message {
		return o.dropUntil(0, o.dropOldest), Added
	}
	if l.Bytes < 0 || o.counted() == 0 || o.counted()+n <= l.Bytes {
		return 0, Added
	}
	switch {
	case l.Policy == DropOldest:
		dropped = o.dropUntil(l.Bytes-n, o.dropOldest)
	case l.Policy == DropNewest && kind == Message:
		return 1, Dropped
	case l.Policy == DropNewest:
		dropped = o.dropUntil(l.Bytes-n, o.dropNewest)
	}
	if l.Policy == Close || kind != Message && !o.hasRoomForReply(n, l.Bytes) {
		return dropped, Full
	}
	return dropped, Added
}

// hasRoomForReply reports whether a reply may wait although the queue is full. Where a policy drops messages, replies
// have only each other to be too many for: messages that nothing can be dropped of, such as one that is half
// written or the newest, are no fault of a client that asks. One that reads no replies either is closed.
func (o *Outbox) hasRoomForReply(n, limit int) bool { return o.replies == 0 || o.replies+n <= limit }

// counted returns the bytes of memory that the limit counts.
func (o *Outbox) counted() int { return o.Bytes - o.History - o.Answers }

// dropUntil drops messages until the limit counts at most keep bytes. What has been written in part stays, and so does
// everything that is no message.
func (o *Outbox) dropUntil(keep int, drop func(excess int) uint64) (dropped uint64) {
	for o.counted() > keep {
		n := drop(o.counted() - keep)
		if n == 0 {
			break
		}
		dropped += n
	}
	return dropped
}

// Gather returns what to write: the first item where it lies if it is large, else several together in chunk, which is
// used again.
func (o *Outbox) Gather(chunk *[]byte) []byte {
	b, alone := (*chunk)[:0], o.Items() == 1
	for it := range o.All {
		if len(b) == 0 && (alone || len(it.B) >= ChunkSize/2) {
			return it.B
		}
		if len(b)+len(it.B) > ChunkSize {
			break
		}
		b = append(b, it.B...)
	}
	*chunk = b
	return b
}

// Messages returns the number of messages that are lost if the connection ends now.
func (o *Outbox) Messages() uint64 { return uint64(o.waiting) }

// Frames yields the size of each frame that waits, in bytes, and whether it counts as a message.
func (o *Outbox) Frames() iter.Seq2[int, bool] {
	return func(yield func(int, bool) bool) {
		for it := range o.All {
			counts := it.Messages() > 0
			if it.frames <= 1 {
				if !yield(len(it.B), counts) {
					return
				}
				continue
			}
			for b := it.B; len(b) > 0; b = b[codec.FrameLen(b):] {
				if !yield(codec.FrameLen(b), counts) {
					return
				}
			}
		}
	}
}

// Reset makes the outbox empty for another connection. It keeps at most 2 KiB of room for messages.
func (o *Outbox) Reset() { *o = Outbox{messages: o.messages.reuse()} }
