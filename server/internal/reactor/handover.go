package reactor

import (
	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// A connection can leave its loop for something else, such as net/http, and come to a loop again.

// Socket is a connection as gnet has it.
type Socket = gnet.Conn

// LeaveLoop ends a handshake without a word, on the loop. The connection lives on as a duplicate of its descriptor, and
// what was in its session is the caller's.
func (c *Conn) LeaveLoop() {
	c.table.Remove(c)
	c.DropInbound()
	c.setSession(nil)
	c.state.Store(StateClosed)
	if c.gc == nil {
		_ = unix.Close(int(c.fd))
		return
	}
	c.gc.SetContext(nil) // so that OnClose does nothing
	_ = c.sh.loop.Close(c.gc)
}

// Continue goes on with a connection that has come back, with what has been read from it already. The session is that
// which it left with, or nil without TLS.
func (c *Conn) Continue(s *Session, bytes []byte) {
	if s == nil {
		c.Received(bytes)
		return
	}
	s.Conn, s.Lower, s.out, s.charged = c, nil, &c.sh.sealed, s.Records.Count
	c.Mark(MarkTLS, true)
	c.setSession(s)
	c.plaintext(bytes)
	if c.Session() == s {
		c.decrypt(s, s.In)
	}
}
