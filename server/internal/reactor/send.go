package reactor

import (
	"os"
	"syscall"

	"carillon/codec"
	"carillon/server/internal/outbox"
	"carillon/server/internal/sys"
	"carillon/server/stats"
)

// Deflates reports whether permessage-deflate was negotiated.
func (c *Conn) Deflates() bool { return c.window > 0 }

// encoded is the form of a frame that this connection negotiated. A loop that is filling has no time to compress large
// messages (RFC 7692, section 6, leaves the choice for each).
func (c *Conn) encoded(f *codec.Frame) []byte {
	if c.Deflates() {
		if len(f.Plain()) >= sliceBytes && c.sh.isFilling() {
			f.LeavePlain(c.window)
		}
		return f.DeflatedWithin(c.Settings().Deflater, c.window)
	}
	return f.Plain()
}

// plainFD is what a table may write plain frames to without looking at the connection.
func (c *Conn) plainFD() int32 {
	if c.out != nil || c.Deflates() || c.Is(MarkTLS) {
		return -1
	}
	return c.fd
}

// Ready makes what was published before leave first, and reports whether anything may be sent.
func (c *Conn) Ready() bool {
	if c.state.Load() != StateOpen {
		return false
	}
	if c.sh.Pending.Len() > 0 {
		c.sh.caughtUp = 0
		c.table.catchUp(c.slot)
		c.catchUpTopics()
	}
	return c.state.Load() == StateOpen
}

// SendBytes sends whole frames whose memory is used again as soon as it returns. Those that are messages
// are of the kind, a message or a reply.
func (c *Conn) SendBytes(b []byte, kind outbox.Kind) {
	c.sh.Check()
	if !c.Ready() {
		c.lose(b, kind)
		return
	}
	written := 0
	if c.out == nil {
		var errno syscall.Errno
		written, errno = c.write(b)
		if c.Is(MarkTLS) {
			c.countPending(written, sizesOf(b, kind))
		}
		if written == len(b) {
			return
		} else if errno != 0 {
			c.lose(b, kind)
			return
		}
	}
	// The slow path cuts it into frames again, so that the policy can drop each of them.
	start := 0
	for start+codec.FrameLen(b[start:]) <= written {
		start += codec.FrameLen(b[start:])
	}
	b, written = b[start:], written-start
	for len(b) > 0 && c.state.Load() == StateOpen {
		n := codec.FrameLen(b)
		c.enqueueCopy(b[:n], written, max(kind, outbox.KindOf(b))) // control frames stay what they are
		b, written = b[n:], 0
	}
	c.lose(b, kind)
}

// lose counts the messages among frames that find the connection closed.
func (c *Conn) lose(b []byte, kind outbox.Kind) {
	for len(b) > 0 {
		if max(kind, outbox.KindOf(b)) == outbox.Message {
			c.sh.Stats.Drop(stats.DropClosed, 1)
		}
		b = b[codec.FrameLen(b):]
	}
}

// sendFrame sends one prepared frame.
func (c *Conn) sendFrame(f *codec.Frame) {
	c.sh.Check()
	if !c.Ready() {
		c.sh.Stats.Drop(stats.DropClosed, 1)
		return
	}
	c.SendEncoded(c.encoded(f), outbox.Message)
}

// SendEncoded sends a frame whose memory is immutable.
func (c *Conn) SendEncoded(b []byte, kind outbox.Kind) {
	written := 0
	if c.out == nil {
		var errno syscall.Errno
		written, errno = c.write(b)
		if c.Is(MarkTLS) {
			c.countPending(written, func(yield func(int, bool) bool) { yield(len(b), outbox.MessagesOf(kind) > 0) })
		}
		if written == len(b) {
			return
		} else if errno != 0 {
			c.sh.Stats.Drop(stats.DropClosed, uint64(outbox.MessagesOf(kind)))
			return
		}
	}
	c.enqueue(b, written, kind)
}

// SendControl sends what no policy may drop: a close frame, a ping, the answer to a handshake. The
// memory of b is used again as soon as it returns.
func (c *Conn) SendControl(b []byte) {
	written := 0
	if c.out == nil {
		var errno syscall.Errno
		if written, errno = c.write(b); written == len(b) || errno != 0 {
			return
		}
	}
	c.enqueueCopy(b, written, outbox.Control)
}

// SendFrames sends the messages of an audience to one of its members, or history if there is none.
func (c *Conn) SendFrames(a *Audience, sub int32, frames []*codec.Frame) {
	for len(frames) > 0 && c.state.Load() == StateOpen {
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
	c.sh.Stats.Drop(stats.DropClosed, uint64(len(frames)))
}

// together puts frames into one piece of memory, and says how many.
func (c *Conn) together(frames []*codec.Frame) (b []byte, n int) {
	if len(frames) == 1 {
		return c.encoded(frames[0]), 1
	}
	b = c.sh.chunk[:0]
	for n < len(frames) && (n == 0 || len(b)+len(c.encoded(frames[n])) <= outbox.ChunkSize) {
		b = append(b, c.encoded(frames[n])...)
		n++
	}
	c.sh.chunk = b
	return b, n
}

// wroteFrames goes on after a write of messages, as many of them as there are, ended early.
func (c *Conn) wroteFrames(a *Audience, sub int32, frames []*codec.Frame, written int, errno syscall.Errno) {
	if errno != 0 {
		c.sh.Stats.Drop(stats.DropClosed, uint64(len(frames)))
		c.Abort(os.NewSyscallError("write", errno))
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
func (c *Conn) queueFrames(a *Audience, sub int32, frames []*codec.Frame) {
	if a != nil && len(frames) > 0 && (a.Latest || a.newest != nil && c.ext.Subs[sub].Stale) && c.state.Load() == StateOpen {
		c.conflate(sub, len(frames))
		return
	}
	for i, f := range frames {
		if c.state.Load() != StateOpen {
			c.sh.Stats.Drop(stats.DropClosed, uint64(len(frames)-i))
			return
		}
		c.enqueue(c.encoded(f), 0, kindFrom(a))
	}
}

func kindFrom(a *Audience) outbox.Kind {
	if a == nil {
		return outbox.History
	}
	return outbox.Message
}

// write is one write(2). It returns 0, 0 when the socket is full; on any other error the connection
// is gone when it returns.
func (c *Conn) write(b []byte) (int, syscall.Errno) {
	n, errno := c.put(b)
	if errno != 0 {
		c.Abort(os.NewSyscallError("write", errno))
		return 0, errno
	}
	return n, 0
}

// put is write without an end for the connection.
func (c *Conn) put(b []byte) (int, syscall.Errno) {
	if c.Is(MarkTLS) {
		return c.seal(b)
	}
	n, errno := sys.Write(c.fd, b)
	c.sh.Counters.writes++
	c.sh.Counters.bytesOut += uint64(n)
	if errno == syscall.EAGAIN {
		errno = 0
	}
	return n, errno
}
