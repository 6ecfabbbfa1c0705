package reactor

import (
	"carillon/internal/shrink"
	"carillon/server/internal/sys"
)

// What the server asks of a client, the answer to a ping or to a close frame, stands in the kernel behind all that was
// sent before, which can be megabytes. A client that reads slowly, but reads, gets to it long after it has left the
// server. Its time to answer begins when it has taken what stood before.

// lag is what a client has to take before it can answer. There is one only for a client whose socket held something
// when it was asked.
type lag struct {
	taken uint64 // how far the client had come when it was looked at last: see sys.TakenOf
	until uint64 // how far it has to come
}

type lags = shrink.Map[*Conn, lag]

// noteLag notes what the connection's socket holds besides the last own bytes, when the client is asked for something.
func (c *Conn) noteLag(own int) {
	held := sys.HeldBytes(c.fd)
	if held <= own {
		c.sh.Lags.Delete(c)
		return
	}
	taken := sys.TakenOf(c.fd, held)
	c.sh.Lags.Set(c, lag{taken: taken, until: taken + uint64(held)})
}

// catchesUp reports, when a time-out for an answer has run, whether the client has been busy with what was sent before,
// so that the time-out begins anew: it has taken a part since the last look, or the rest. That ends, for what there is
// to take is only what the socket held when the client was asked.
func (c *Conn) catchesUp() bool {
	l, found := c.sh.Lags.Lookup(c)
	if !found {
		return false
	}
	taken := sys.TakenOf(c.fd, sys.HeldBytes(c.fd))
	switch {
	case taken >= l.until:
		c.sh.Lags.Delete(c)
		return true
	case taken <= l.taken:
		return false
	}
	l.taken = taken
	c.sh.Lags.Set(c, l)
	return true
}
