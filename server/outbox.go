package server

import (
	"fmt"

	"carillon/codec"
)

// outbox is what waits for a connection whose socket is full: references to frames, not copies, in
// the order in which they leave. A connection has one only while it needs it. Owned by the loop.
type outbox struct {
	items   []item
	head    int
	bytes   int    // of all items
	history int    // of those that are history, which the limit does not count
	replies int    // of those that are replies
	batches int    // subscriptions whose history waits, ended ones included
	partial bool   // the first item has been written in part, so it must be completed
	since   uint32 // when the socket last took a byte, in milliseconds of the shard's clock
	slot    int    // where the connection stands in shard.stalled
}

type item struct {
	b    []byte // what is left of the frame
	kind itemKind
}

type itemKind uint8

const (
	itemMessage itemKind = iota
	itemHistory          // a message from a topic's history: it is kept anyway, so that no policy drops it
	itemReply            // to a request of the client: counts as a message does, but no policy drops it; see roomForReply
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

// enqueue puts a frame, of which some bytes have been written, behind what waits, within the limit
// and by the policy of the endpoint.
func (c *Conn) enqueue(b []byte, written int, kind itemKind) {
	o := c.out
	if o == nil {
		o = c.stall()
	}
	if (kind == itemMessage || kind == itemReply) && written == 0 && !c.makeRoom(len(b), kind) {
		return
	}
	if kind == itemPong && o.replacePong(b) {
		return
	}
	o.partial = o.partial || written > 0
	o.push(item{b[written:], kind})
	c.sh.stats.QueuedBytes.Add(int64(len(b) - written))
}

func (o *outbox) push(it item) {
	if len(o.items) == cap(o.items) && o.head > len(o.items)/2 {
		o.truncate(copy(o.items, o.items[o.head:]))
		o.head = 0
	}
	o.items = append(o.items, it)
	o.count(it.kind, len(it.b))
}

// count notes that n bytes more wait, or less.
func (o *outbox) count(kind itemKind, n int) {
	o.bytes += n
	switch kind {
	case itemHistory:
		o.history += n
	case itemReply:
		o.replies += n
	}
}

// replacePong answers only the latest ping of a client that does not read (RFC 6455, section 5.5.3).
func (o *outbox) replacePong(b []byte) bool {
	for i := o.head; i < len(o.items); i++ {
		if it := &o.items[i]; it.kind == itemPong && !(o.partial && i == o.head) && len(it.b) == len(b) {
			it.b = b
			return true
		}
	}
	return false
}

// makeRoom applies the slow-consumer policy to a message or reply of n bytes and says whether it may wait.
func (c *Conn) makeRoom(n int, kind itemKind) bool {
	o, slow := c.out, &c.ep.now().SlowConsumer
	if slow.Policy == PolicyLatest && kind == itemMessage {
		c.dropWaiting(DropConflated, 0)
		return true
	}
	if slow.MaxQueue < 0 || o.counted() == 0 || o.counted()+n <= int(slow.MaxQueue) {
		return true
	}
	if slow.Policy == PolicyDropOldest {
		c.dropWaiting(DropOldest, int(slow.MaxQueue)-n)
	}
	switch {
	case slow.Policy == PolicyClose:
	case kind == itemReply:
		if o.roomForReply(n, int(slow.MaxQueue)) {
			return true
		}
	case slow.Policy == PolicyDropOldest:
		return true
	case slow.Policy == PolicyDropNewest:
		c.sh.stats.drop(DropNewest, 1)
		return false
	}
	if kind == itemMessage {
		c.sh.stats.drop(DropSlowConsumer, 1)
	}
	c.dropWaiting(DropSlowConsumer, 0)
	c.sh.stats.cut(CutSlowConsumer)
	c.beginClose(closeOwn, codec.CloseCode(slow.CloseCode), fmt.Sprintf("slow consumer: more than %v waited", slow.MaxQueue))
	return false
}

// roomForReply says whether a reply may wait although the queue is full. Where a policy drops messages, replies
// have only each other to be too many for: messages that nothing can be dropped of, such as one that is half
// written or the newest, are no fault of a client that asks. One that reads no replies either is closed.
func (o *outbox) roomForReply(n, limit int) bool { return o.replies == 0 || o.replies+n <= limit }

// counted is the number of bytes that the limit counts.
func (o *outbox) counted() int { return o.bytes - o.history }

// dropWaiting drops messages from the front until at most keep bytes wait. What has been written in
// part stays, and so do control frames and history.
func (c *Conn) dropWaiting(reason DropReason, keep int) {
	o := c.out
	kept := o.head
	for i := o.head; i < len(o.items); i++ {
		it := o.items[i]
		if o.counted() > keep && it.kind == itemMessage && !(o.partial && i == o.head) {
			o.bytes -= len(it.b)
			c.sh.stats.QueuedBytes.Add(-int64(len(it.b)))
			c.sh.stats.drop(reason, 1)
			continue
		}
		if kept == i { // nothing has been dropped so far, and nothing behind moves
			kept++
			continue
		}
		if o.counted() <= keep {
			o.closeGap(kept, i)
			return
		}
		o.items[kept] = it
		kept++
	}
	o.truncate(kept)
}

// closeGap moves what is kept in front of the gap [kept, next) up to it, so that dropping the oldest
// message does not move all the others.
func (o *outbox) closeGap(kept, next int) {
	n := copy(o.items[next-(kept-o.head):next], o.items[o.head:kept])
	clear(o.items[o.head : next-n])
	o.head = next - n
}

func (o *outbox) truncate(n int) {
	clear(o.items[n:])
	o.items = o.items[:n]
}

// stall gives the connection an outbox and asks to be told when the socket takes bytes again.
func (c *Conn) stall() *outbox {
	sh := c.sh
	o := sh.newOutbox()
	o.since, o.slot = sh.clock, len(sh.stalled)
	sh.stalled = append(sh.stalled, c)
	c.out = o
	c.setPlainFD(-1)
	sh.srv.watcher.watch(c)
	return o
}

// unstall takes the outbox away. What is still in it was counted by the caller.
func (c *Conn) unstall() {
	sh, o := c.sh, c.out
	last := len(sh.stalled) - 1
	sh.stalled[o.slot] = sh.stalled[last]
	sh.stalled[o.slot].out.slot = o.slot
	sh.stalled[last] = nil
	sh.stalled = sh.stalled[:last]
	sh.stats.QueuedBytes.Add(-int64(o.bytes))
	c.out = nil
	c.dropPending()
	sh.freeOutbox(o)
	sh.srv.watcher.forget(c)
	if c.group != nil {
		c.setPlainFD(c.plainFD())
	}
}

// flush writes what waits, as much as the socket takes.
func (c *Conn) flush() {
	o := c.out
	if o == nil {
		return // the news that the socket is writable came late
	}
	if !c.pushPending() {
		return
	}
	for o.head < len(o.items) {
		b := o.next(&c.sh.chunk)
		n, errno := c.write(b)
		if errno != 0 {
			return
		}
		if n > 0 {
			o.since = c.sh.clock
			if c.is(markTLS) {
				c.countPending(n, o.sizes())
			}
			o.wrote(n)
			c.sh.stats.QueuedBytes.Add(-int64(n))
		}
		if n < len(b) || c.isPending() {
			c.sh.srv.watcher.watch(c)
			return
		}
	}
	c.unstall()
	c.flushed()
	c.refresh(false)
}

// next returns what to write: the first item where it lies if it is large, else several together.
func (o *outbox) next(chunk *[]byte) []byte {
	first := o.items[o.head].b
	if len(first) >= flushChunk/2 || o.head == len(o.items)-1 {
		return first
	}
	b := (*chunk)[:0]
	for _, it := range o.items[o.head:] {
		if len(b)+len(it.b) > flushChunk {
			break
		}
		b = append(b, it.b...)
	}
	*chunk = b
	return b
}

// wrote removes n bytes from the front.
func (o *outbox) wrote(n int) {
	for n > 0 {
		it := &o.items[o.head]
		if o.count(it.kind, -min(n, len(it.b))); o.history == 0 {
			o.batches = 0
		}
		if n < len(it.b) {
			it.b, o.partial = it.b[n:], true
			return
		}
		n -= len(it.b)
		it.b, o.partial = nil, false
		o.head++
	}
}

// waitingMessages counts the messages that are lost if the connection ends now.
func (o *outbox) waitingMessages() (n uint64) {
	for _, it := range o.items[o.head:] {
		if it.kind == itemMessage || it.kind == itemHistory {
			n++
		}
	}
	return n
}

func (sh *shard) newOutbox() *outbox {
	if last := len(sh.freeOutboxes) - 1; last >= 0 {
		o := sh.freeOutboxes[last]
		sh.freeOutboxes = sh.freeOutboxes[:last]
		return o
	}
	return &outbox{}
}

func (sh *shard) freeOutbox(o *outbox) {
	if len(sh.freeOutboxes) < 64 && cap(o.items) <= 256 {
		clear(o.items)
		*o = outbox{items: o.items[:0]}
		sh.freeOutboxes = append(sh.freeOutboxes, o)
	}
}
