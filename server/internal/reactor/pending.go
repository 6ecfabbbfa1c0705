package reactor

import (
	"iter"
	"syscall"

	"carillon/codec"
	"carillon/server/internal/outbox"
	"carillon/server/internal/sys"
)

// What was encrypted and not taken by the socket is pending. There is little of it, but messages are in it,
// which are lost if the connection ends before it is out.

// pushBytes writes what is encrypted behind what is pending.
func (c *Conn) pushBytes(s *Session, b []byte) syscall.Errno {
	if len(s.pending) == 0 {
		n, errno := sys.Write(c.fd, b)
		c.sh.Counters.writes++
		c.sh.Counters.bytesOut += uint64(n)
		if errno != 0 && errno != syscall.EAGAIN {
			return errno
		}
		if b = b[n:]; len(b) == 0 {
			return 0
		}
	}
	s.pending = append(s.pending, b...)
	c.sh.Stats.QueuedBytes.Add(int64(len(b)))
	if c.out == nil {
		c.stall()
	}
	return 0
}

// pushPending goes on with what the socket did not take, and reports whether all of it is out. It watches the
// socket if not.
func (c *Conn) pushPending() bool {
	if !c.Is(MarkTLS) {
		return true
	}
	s := c.Session()
	if s == nil || len(s.pending) == 0 {
		return true
	}
	n, errno := sys.Write(c.fd, s.pending)
	c.sh.Counters.writes++
	c.sh.Counters.bytesOut += uint64(n)
	if errno != 0 && errno != syscall.EAGAIN {
		c.Abort(errno)
		return false
	}
	c.sh.Stats.QueuedBytes.Add(-int64(n))
	if n > 0 {
		c.out.Since = c.sh.Clock
	}
	if n < len(s.pending) {
		s.pending = s.pending[n:]
		c.sh.Engine.watcher.Watch(c.fd, c)
		return false
	}
	s.pending, s.lost = nil, 0
	return true
}

// isPending reports whether the socket has not taken all that was encrypted.
func (c *Conn) isPending() bool {
	s := c.Session()
	return s != nil && len(s.pending) > 0
}

// dropPending forgets it: the connection is gone.
func (c *Conn) dropPending() {
	if s := c.Session(); s != nil {
		c.sh.Stats.QueuedBytes.Add(-int64(len(s.pending)))
		s.pending, s.lost = nil, 0
	}
}

// lostPending is how many messages are lost with what is pending.
func (c *Conn) lostPending() uint64 {
	if s := c.Session(); s != nil {
		return s.lost
	}
	return 0
}

// countPending looks which of the frames that were just written, n bytes in all, the client cannot read before
// what is pending has come. Each frame is its size, and whether it counts as a message.
func (c *Conn) countPending(n int, frames iter.Seq2[int, bool]) {
	if !c.isPending() {
		return
	}
	s, end := c.ext.session, 0
	for size, counts := range frames {
		if end += size; end > n {
			break
		}
		if counts && end > n-s.chunk {
			s.lost++
		}
	}
}

// sizesOf are the sizes of frames, and whether each is a message.
func sizesOf(b []byte, kind outbox.Kind) iter.Seq2[int, bool] {
	return func(yield func(int, bool) bool) {
		for len(b) > 0 {
			n := codec.FrameLen(b)
			if !yield(n, max(kind, outbox.KindOf(b)) == outbox.Message) {
				return
			}
			b = b[n:]
		}
	}
}

// putFrames is put for messages that are together.
func (c *Conn) putFrames(b []byte, frames []*codec.Frame) (int, syscall.Errno) {
	n, errno := c.put(b)
	if c.Is(MarkTLS) {
		c.countPending(n, func(yield func(int, bool) bool) {
			for _, f := range frames {
				if !yield(len(c.encoded(f)), true) {
					return
				}
			}
		})
	}
	return n, errno
}
