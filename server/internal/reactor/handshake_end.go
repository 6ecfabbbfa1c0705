package reactor

import (
	"carillon/codec"
	"carillon/server/stats"
)

// KeepHead keeps the start of a head, or of what comes before, which may lie in c.in already.
func (c *Conn) KeepHead(b []byte) {
	if c.state.Load() != StateHandshake || len(b) == 0 && c.in == nil {
		return
	}
	if c.in == nil {
		c.in = c.sh.newInbound()
	}
	c.in.Rest = append(c.in.Rest[:0], b...)
}

// RefuseAs answers a request with an error and ends the connection.
func (c *Conn) RefuseAs(why stats.RefuseReason, r *codec.Rejection) {
	c.sh.Control = r.AppendResponse(c.sh.Control[:0])
	c.RefuseWith(why, c.sh.Control)
}

// RefuseWith counts a refusal, answers it, and ends the connection.
func (c *Conn) RefuseWith(why stats.RefuseReason, response []byte) {
	sh := c.sh
	sh.Stats.Refusals[why].Add(1)
	if sh.Engine.LogsEvents() {
		sh.Engine.LogEvent("connection refused", "id", c.id, "remote", ShownAddr(c.RemoteAddr()), "reason", why.String())
	}
	c.LastAnswer(response)
}

// LastAnswer answers a request and ends the connection.
func (c *Conn) LastAnswer(response []byte) {
	sh := c.sh
	c.Owner().StopDeciding(c)
	c.dropHandshake()
	c.dropInput()
	sh.Handshaking.Remove(c)
	c.Mark(MarkPeerDone, true)
	c.state.Store(StateClosing)
	sh.closing.Add(c, Times{Read: sh.Clock})
	if len(response) > 0 && c.CanAnswer() {
		c.SendControl(response)
	}
	if c.state.Load() == StateClosing {
		c.flushed()
	}
}

// CutOff ends a connection that cannot be given an answer, since who speaks on it is not known.
func (c *Conn) CutOff(why stats.RefuseReason, err error) {
	if c.sh.Engine.LogsEvents() {
		c.sh.Engine.LogEvent("connection cut off", "id", c.id, "remote", ShownAddr(c.RemoteAddr()), "reason", why.String(), "error", err)
	}
	c.RefuseWith(why, nil)
}
