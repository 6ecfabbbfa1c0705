package reactor

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"carillon/codec"
)

// A peer that has shut down its side of the connection (RFC 9293, section 3.6) still reads. gnet takes the end of the
// input for the end of the connection and closes its descriptor. While something waits for the peer, the connection
// therefore goes on without gnet, on a duplicate of the descriptor: the watcher reports when the socket takes bytes,
// and the sweep bounds how long that may take.

// outlive keeps a connection that gnet is about to close because its input has ended, if something waits for the peer.
// It reports whether the connection lives on. Without a free descriptor it does not.
func (c *Conn) outlive(err error) bool {
	sh := c.sh
	sh.Check()
	if sh.lost != nil || !errors.Is(err, io.EOF) {
		return false
	}
	c.FinishInput(err)
	if !c.isOwed() {
		return false
	}
	fd, failed := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if failed != nil {
		return false
	}
	sh.Engine.watcher.Forget(c.fd)
	c.gc, c.fd = nil, int32(fd)
	c.setPlainFD(c.plainFD())
	if c.out != nil {
		sh.Engine.watcher.Watch(c.fd, c)
	}
	if c.state.Load() == StateHandshake { // goes on with what came before: see shaken
		c.Session().shake.endInput()
		return true
	}
	c.DropInbound()
	c.endInOrder(err)
	return true
}

// isOwed reports whether the peer would miss something if the connection ended now: what its socket has not taken, what
// it has asked for, or what has been sent or published and is still on its way to the connection.
func (c *Conn) isOwed() bool {
	switch c.state.Load() {
	case StateHandshake: // a client may send all it has to say with the end of its TLS handshake
		s := c.Session()
		return s != nil && s.shake != nil && s.shake.mayEnd()
	case StateOpen:
		return c.out != nil || c.Waiting() || c.isBehind() || c.sh.hasCommands()
	case StateClosing:
		return c.out != nil
	}
	return false
}

// isBehind reports whether the streams of the connection's audiences have messages for it.
func (c *Conn) isBehind() bool {
	if c.sh.Pending.Len() == 0 {
		return false
	}
	if c.table.missed(c.slot) > 0 {
		return true
	}
	if c.ext != nil {
		for i := range c.ext.Subs {
			if s := &c.ext.Subs[i]; s.Audience.missed(s.Slot) > 0 {
				return true
			}
		}
	}
	return false
}

// hasCommands reports whether there are commands that have not run.
func (sh *Shard) hasCommands() bool {
	sh.Mail.mu.Lock()
	defer sh.Mail.mu.Unlock()
	return !sh.Reading.Done() || len(sh.Mail.commands) > 0
}

// inputEnded ends a connection on which nothing more comes behind the input that waits.
func (c *Conn) inputEnded(err error) {
	switch {
	case c.IsSuspended():
		c.Workload().ended = true
	case c.state.Load() != StateClosed && !c.Is(MarkPeerDone):
		c.endInOrder(err)
	}
}

// endInOrder ends a connection on which nothing more comes, behind what was sent to the client before and what it has
// asked for.
func (c *Conn) endInOrder(err error) {
	c.Mark(MarkPeerDone, true)
	c.inOrder(func() { c.end(err) })
}

// end ends our side of the connection, too, when the socket has taken what waits. A peer that has not sent a close
// frame gets none: it could not answer it, and the code is 1006 on both sides (RFC 6455, section 7.1.5).
func (c *Conn) end(err error) {
	if c.state.Load() == StateHandshake {
		if c.sayEnd() {
			c.Abort(err)
		}
		return
	}
	if c.Ready() {
		c.Refresh()
	}
	if c.state.Load() == StateOpen {
		c.leave(&codec.CloseError{Code: codec.CloseAbnormal, Reason: err.Error(), Remote: true, Err: err})
		c.sh.closing.Add(c, Times{Read: c.sh.Clock})
	}
	c.flushed()
}

// endHalfClosed ends the connections that go on without gnet, because their loop ends.
func (sh *Shard) endHalfClosed() {
	for _, g := range sh.tables {
		for i := len(g.Members) - 1; i >= 0; i-- {
			if i < len(g.Members) && g.Members[i].Conn.gc == nil {
				g.Members[i].Conn.Abort(ErrStopped)
			}
		}
	}
}
