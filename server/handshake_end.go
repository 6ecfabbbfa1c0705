package server

import (
	"carillon/codec"
	"carillon/server/stats"
)

// keepHead keeps the start of a head, or of what comes before, which may lie in c.in already.
func (c *Conn) keepHead(b []byte) {
	if c.state.Load() != stateHandshake || len(b) == 0 && c.in == nil {
		return
	}
	if c.in == nil {
		c.in = c.sh.newInbound()
	}
	c.in.rest = append(c.in.rest[:0], b...)
}

// refuseAs answers a request with an error and ends the connection.
func (c *Conn) refuseAs(why stats.RefuseReason, r *codec.Rejection) {
	c.sh.control = r.AppendResponse(c.sh.control[:0])
	c.refuseWith(why, c.sh.control)
}

// refuseWith counts a refusal, answers it, and ends the connection.
func (c *Conn) refuseWith(why stats.RefuseReason, response []byte) {
	sh := c.sh
	sh.stats.Refusals[why].Add(1)
	if sh.engine.logsEvents() {
		sh.engine.logEvent("connection refused", "id", c.id, "remote", shownAddr(c.RemoteAddr()), "reason", why.String())
	}
	c.lastAnswer(response)
}

// lastAnswer answers a request and ends the connection.
func (c *Conn) lastAnswer(response []byte) {
	sh := c.sh
	c.owner().stopDeciding(c)
	c.dropHandshake()
	c.dropInput()
	sh.handshaking.remove(c)
	c.mark(markPeerDone, true)
	c.state.Store(stateClosing)
	sh.closing.add(c, times{read: sh.clock})
	if len(response) > 0 && c.canAnswer() {
		c.sendControl(response)
	}
	if c.state.Load() == stateClosing {
		c.flushed()
	}
}

// cutOff ends a connection that cannot be given an answer, since who speaks on it is not known.
func (c *Conn) cutOff(why stats.RefuseReason, err error) {
	if c.sh.engine.logsEvents() {
		c.sh.engine.logEvent("connection cut off", "id", c.id, "remote", shownAddr(c.RemoteAddr()), "reason", why.String(), "error", err)
	}
	c.refuseWith(why, nil)
}
