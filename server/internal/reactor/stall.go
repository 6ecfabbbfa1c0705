package reactor

import (
	"fmt"

	"carillon/codec"
	"carillon/internal/shrink"
	"carillon/server/internal/option"
	"carillon/server/internal/outbox"
	"carillon/server/stats"
)

// enqueue puts a frame, of which some bytes have been written, behind what waits, within the limit and by the
// policy of the endpoint. The memory of b is immutable.
func (c *Conn) enqueue(b []byte, written int, kind outbox.Kind) {
	c.addWaiting(b, written, kind, false)
}

// enqueueCopy is enqueue for a frame whose memory is used again.
func (c *Conn) enqueueCopy(b []byte, written int, kind outbox.Kind) {
	c.addWaiting(b, written, kind, true)
}

func (c *Conn) addWaiting(b []byte, written int, kind outbox.Kind, copied bool) {
	o := c.out
	if o == nil {
		o = c.stall()
	}
	copied = copied || outbox.IsBetterCopied(b, kind) && !c.IsEvents()
	slow, before := &c.Settings().Slow, o.Bytes
	dropped, room := o.Add(b, written, kind, copied, slow.Limit)
	c.sh.Stats.QueuedBytes.Add(int64(o.Bytes - before))
	if dropped > 0 {
		c.sh.Stats.Drop(dropReasons[slow.Policy], dropped)
	}
	if room == outbox.Full {
		c.cutSlow(slow, kind)
	}
}

// SlowConsumer says what becomes of messages for a connection that does not read as fast as it is sent to.
type SlowConsumer struct {
	outbox.Limit
	CloseCode codec.CloseCode
}

// dropReasons are what the policies drop messages for.
var dropReasons = [...]stats.DropReason{outbox.DropOldest: stats.DropOldest, outbox.DropNewest: stats.DropNewest, outbox.KeepLatest: stats.DropConflated}

// cutSlow closes a connection whose outbox has no room for what it is sent.
func (c *Conn) cutSlow(slow *SlowConsumer, kind outbox.Kind) {
	if kind == outbox.Message {
		c.sh.Stats.Drop(stats.DropSlowConsumer, 1)
	}
	c.discardWaiting(stats.DropSlowConsumer)
	c.sh.Stats.Cut(stats.CutSlowConsumer)
	c.beginClose(CloseOwn, slow.CloseCode, fmt.Sprintf("slow consumer: more than %v queued", option.Size(slow.Bytes)))
}

// discardWaiting drops all that waits before the connection is closed for it. What has been written in part stays,
// and so do control frames, such as the answer to the handshake.
func (c *Conn) discardWaiting(reason stats.DropReason) {
	before := c.out.Bytes
	c.sh.Stats.Drop(reason, c.out.Discard())
	c.sh.Stats.QueuedBytes.Add(int64(c.out.Bytes - before))
}

// stall gives the connection an outbox and asks to be told when the socket takes bytes again.
func (c *Conn) stall() *outbox.Outbox {
	sh := c.sh
	o := sh.newOutbox()
	o.Since, o.Slot = sh.Clock, len(sh.Stalled)
	sh.Stalled = append(sh.Stalled, c)
	c.out = o
	c.setPlainFD(-1)
	sh.Engine.watcher.Watch(c.fd, c)
	return o
}

// unlist takes an outbox's connection out of the list of those that stall.
func (sh *Shard) unlist(o *outbox.Outbox) {
	last := len(sh.Stalled) - 1
	sh.Stalled[o.Slot] = sh.Stalled[last]
	sh.Stalled[o.Slot].out.Slot = o.Slot
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
	sh.Engine.watcher.Forget(c.fd)
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
		b := o.Gather(&c.sh.chunk)
		n, errno := c.write(b)
		if errno != 0 {
			return false
		}
		left -= n
		if n > 0 {
			o.Since = c.sh.Clock
			if c.Is(MarkTLS) {
				c.countPending(n, o.Frames())
			}
			before := o.Bytes
			o.Wrote(n)
			c.sh.Stats.QueuedBytes.Add(int64(o.Bytes - before))
		}
		if n < len(b) || c.isPending() {
			c.sh.Engine.watcher.Watch(c.fd, c)
			c.sh.Run.Schedule(c.Workload())
			return false
		}
	}
	c.unstall()
	c.flushed()
	c.sh.Run.Schedule(c.Workload())
	return false
}

func (sh *Shard) newOutbox() *outbox.Outbox {
	if last := len(sh.freeOutboxes) - 1; last >= 0 {
		o := sh.freeOutboxes[last]
		sh.freeOutboxes = sh.freeOutboxes[:last]
		return o
	}
	return &outbox.Outbox{}
}

// freeOutbox keeps up to 64 outboxes for later, each with at most 2 KiB of room for messages.
func (sh *Shard) freeOutbox(o *outbox.Outbox) {
	if len(sh.freeOutboxes) < 64 {
		o.Reset()
		sh.freeOutboxes = append(sh.freeOutboxes, o)
	}
}
