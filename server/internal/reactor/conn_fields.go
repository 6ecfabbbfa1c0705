package reactor

import (
	"net"
	"sync/atomic"

	"carillon/server/internal/outbox"
)

// Fields of a connection for the packages above. They are no exported fields, because the public connection of package
// server has the same underlying type. Who may use what they return, and when it changes, is said at the fields.

// Shard is the connection's loop.
func (c *Conn) Shard() *Shard { return c.sh }

// Endpoint is nil until the request's path is known.
func (c *Conn) Endpoint() *LoopEndpoint { return c.ep }

// SetEndpoint is called in the handshake.
func (c *Conn) SetEndpoint(ep *LoopEndpoint) { c.ep = ep }

// Extension is what few connections have; nil for most.
func (c *Conn) Extension() *Extension { return c.ext }

// DropExtension forgets it in the handshake, if nothing is in it. The caller holds the shard's mutex.
func (c *Conn) DropExtension() {
	if c.ext != nil && c.ext.session == nil && c.ext.Work == nil && c.ext.OwnerData == nil {
		c.ext = nil
	}
}

// Inbound is what has come but is not complete; nil between messages.
func (c *Conn) Inbound() *inbound { return c.in }

// NeedInbound is the same, which is made if need be.
func (c *Conn) NeedInbound() *inbound {
	if c.in == nil {
		c.in = c.sh.newInbound()
	}
	return c.in
}

// TakeInbound returns what has come; it is the caller's.
func (c *Conn) TakeInbound() *inbound {
	in := c.in
	c.in = nil
	return in
}

// Outbox is what the socket does not take; nil while it takes everything.
func (c *Conn) Outbox() *outbox.Outbox { return c.out }

// Table is the one that the connection is a member of; nil once it is closed.
func (c *Conn) Table() *Table { return c.table }

// Slot is its place there.
func (c *Conn) Slot() int32 { return c.slot }

// State is one of the states of a connection's life, such as [StateOpen].
func (c *Conn) State() *atomic.Uint32 { return &c.state }

// CloseAsked is set when the application has asked for the close.
func (c *Conn) CloseAsked() *atomic.Bool { return &c.asked }

// OpenedAt is in seconds after the engine was made.
func (c *Conn) OpenedAt() uint32 { return c.opened }

// Remote is the client's address; nil where it is not known.
func (c *Conn) Remote() *net.TCPAddr { return c.remote }

// SetRemote is called in the handshake, when a proxy has told the address.
func (c *Conn) SetRemote(a *net.TCPAddr) { c.remote = a }

// Framing is how messages are written to the connection.
func (c *Conn) Framing() Framing { return c.framing }

// Window is in bits; 0 without permessage-deflate.
func (c *Conn) Window() uint8 { return c.window }

// Negotiated is what a handshake has settled, called before the connection opens.
func (c *Conn) Negotiated(f Framing, window, subprotocol uint8) {
	c.framing, c.window, c.subprotocol = f, window, subprotocol
}

// FD is the descriptor of the socket.
func (c *Conn) FD() int32 { return c.fd }

// Attached is what the application has attached; nil while that is nothing.
func (c *Conn) Attached() *Attachment { return c.attachment.Load() }
