package reactor

import "carillon/server/internal/outbox"

// Parts are what a test gives to a connection that has no socket.
type Parts struct {
	Shard     *Shard
	Endpoint  *LoopEndpoint
	ID        uint64
	FD        int32
	inbound   *inbound
	Outbox    *outbox.Outbox
	Extension *Extension
}

// Assemble makes a connection that no engine knows, for tests of single functions.
func Assemble(p Parts) *Conn {
	return &Conn{sh: p.Shard, ep: p.Endpoint, id: p.ID, fd: p.FD, in: p.inbound, out: p.Outbox, ext: p.Extension}
}

// Reassemble changes the same parts of such a connection, except for those that are zero.
func (c *Conn) Reassemble(p Parts) {
	if p.FD != 0 {
		c.fd = p.FD
	}
	if p.Extension != nil {
		c.ext = p.Extension
	}
}

// ResetAttachment takes away what is attached.
func (c *Conn) ResetAttachment() { c.attachment.Store(nil) }
