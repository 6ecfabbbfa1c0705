package server

import (
	"bytes"
	"fmt"
	"os"
	"syscall"

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

// encoded is the form of a frame that this connection negotiated.
func (c *Conn) encoded(f *codec.Frame) []byte {
	if c.deflate {
		return f.Deflated(c.ep.now().deflater)
	}
	return f.Plain()
}

// plainFD is what a group may write plain frames to without looking at the connection.
func (c *Conn) plainFD() int32 {
	if c.out != nil || c.deflate || c.is(markTLS) {
		return -1
	}
	return c.fd
}

// ready makes what was published before leave first, and says whether anything may be sent.
func (c *Conn) ready() bool {
	if c.state.Load() != stateOpen {
		return false
	}
	if c.sh.pending.len() > 0 {
		c.group.catchUp(c.slot)
		c.catchUpTopics()
	}
	return c.state.Load() == stateOpen
}

// sendBytes sends whole frames whose memory is used again as soon as it returns. Those that are messages
// are of the kind, a message or a reply.
func (c *Conn) sendBytes(b []byte, kind itemKind) {
	c.sh.check()
	if !c.ready() {
		c.lose(b, kind)
		return
	}
	written := 0
	if c.out == nil {
		var errno syscall.Errno
		written, errno = c.write(b)
		if c.is(markTLS) {
			c.countPending(written, sizesOf(b, kind))
		}
		if written == len(b) {
			return
		} else if errno != 0 {
			c.lose(b, kind)
			return
		}
	}
	// The slow path cuts it into frames again. Each is copied by itself: one that waits long must not
	// keep the memory of those around it, which may be dropped or replaced.
	start := 0
	for start+codec.FrameLen(b[start:]) <= written {
		start += codec.FrameLen(b[start:])
	}
	b, written = b[start:], written-start
	for len(b) > 0 && c.state.Load() == stateOpen {
		n := codec.FrameLen(b)
		c.enqueue(bytes.Clone(b[:n]), written, max(kind, kindOf(b))) // control frames stay what they are
		b, written = b[n:], 0
	}
	c.lose(b, kind)
}

// lose counts the messages among frames that find the connection closed.
func (c *Conn) lose(b []byte, kind itemKind) {
	for len(b) > 0 {
		if max(kind, kindOf(b)) == itemMessage {
			c.sh.stats.drop(DropClosed, 1)
		}
		b = b[codec.FrameLen(b):]
	}
}

// sendFrame sends one prepared frame.
func (c *Conn) sendFrame(f *codec.Frame) {
	c.sh.check()
	if !c.ready() {
		c.sh.stats.drop(DropClosed, 1)
		return
	}
	c.sendEncoded(c.encoded(f), itemMessage)
}

// sendEncoded sends a frame whose memory nobody changes.
func (c *Conn) sendEncoded(b []byte, kind itemKind) {
	written := 0
	if c.out == nil {
		var errno syscall.Errno
		written, errno = c.write(b)
		if c.is(markTLS) {
			c.countPending(written, func(yield func(int, bool) bool) { yield(len(b), kind != itemReply) })
		}
		if written == len(b) {
			return
		} else if errno != 0 {
			if kind != itemReply {
				c.sh.stats.drop(DropClosed, 1)
			}
			return
		}
	}
	c.enqueue(b, written, kind)
}

// sendControl sends what no policy may drop: a close frame, a ping, the answer to a handshake. The
// memory of b is used again as soon as it returns.
func (c *Conn) sendControl(b []byte) {
	written := 0
	if c.out == nil {
		var errno syscall.Errno
		if written, errno = c.write(b); written == len(b) || errno != 0 {
			return
		}
	}
	c.enqueue(bytes.Clone(b), written, itemControl)
}

// sendFrames sends the messages of an audience to one of its members, or history if there is none.
func (c *Conn) sendFrames(a *audience, sub int32, frames []*codec.Frame) {
	for len(frames) > 0 && c.state.Load() == stateOpen {
		if c.out != nil {
			c.queueFrames(a, sub, frames)
			return
		}
		b, n := c.together(frames)
		written, errno := c.putFrames(b, frames[:n])
		if written < len(b) {
			c.wroteFrames(a, sub, frames, written, errno)
			return
		}
		frames = frames[n:]
	}
	c.sh.stats.drop(DropClosed, uint64(len(frames)))
}

// together puts frames into one piece of memory, and says how many.
func (c *Conn) together(frames []*codec.Frame) (b []byte, n int) {
	if len(frames) == 1 {
		return c.encoded(frames[0]), 1
	}
	b = c.sh.chunk[:0]
	for n < len(frames) && (n == 0 || len(b)+len(c.encoded(frames[n])) <= flushChunk) {
		b = append(b, c.encoded(frames[n])...)
		n++
	}
	c.sh.chunk = b
	return b, n
}

// wroteFrames goes on after a write of messages, as many of them as there are, ended early.
func (c *Conn) wroteFrames(a *audience, sub int32, frames []*codec.Frame, written int, errno syscall.Errno) {
	if errno != 0 {
		c.sh.stats.drop(DropClosed, uint64(len(frames)))
		c.abort(os.NewSyscallError("write", errno))
		return
	}
	for i, f := range frames {
		b := c.encoded(f)
		if written >= len(b) {
			written -= len(b)
			continue
		}
		c.enqueue(b, written, kindFrom(a))
		c.queueFrames(a, sub, frames[i+1:])
		return
	}
}

// queueFrames puts messages behind what waits.
func (c *Conn) queueFrames(a *audience, sub int32, frames []*codec.Frame) {
	if a != nil && len(frames) > 0 && (a.latest || a.newest != nil && c.more.subs[sub].stale) && c.state.Load() == stateOpen {
		c.conflate(sub, len(frames))
		return
	}
	for i, f := range frames {
		if c.state.Load() != stateOpen {
			c.sh.stats.drop(DropClosed, uint64(len(frames)-i))
			return
		}
		c.enqueue(c.encoded(f), 0, kindFrom(a))
	}
}

func kindFrom(a *audience) itemKind {
	if a == nil {
		return itemHistory
	}
	return itemMessage
}

// write is one write(2). It returns 0, 0 when the socket is full; on any other error the connection
// is gone when it returns.
func (c *Conn) write(b []byte) (int, syscall.Errno) {
	n, errno := c.put(b)
	if errno != 0 {
		c.abort(os.NewSyscallError("write", errno))
		return 0, errno
	}
	return n, 0
}

// put is write without an end for the connection.
func (c *Conn) put(b []byte) (int, syscall.Errno) {
	if c.is(markTLS) {
		return c.seal(b)
	}
	n, errno := write(c.fd, b)
	c.sh.tally.writes++
	c.sh.tally.bytesOut += uint64(n)
	if errno == syscall.EAGAIN {
		errno = 0
	}
	return n, errno
}

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
