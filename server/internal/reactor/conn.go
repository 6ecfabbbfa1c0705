package reactor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"carillon/codec"
	"carillon/server/internal/outbox"
)

var (
	// ErrClosed is returned for a connection that is closed or closing.
	ErrClosed = errors.New("connection is closed")

	// ErrOpcode is returned for a message that is neither [Text] nor [Binary].
	ErrOpcode = errors.New("a message must be text or binary")

	// ErrCloseCode is returned for a close code that must not be sent (RFC 6455, section 7.4).
	ErrCloseCode = errors.New("close code must not be sent: use 1000 to 1003, 1007 to 1014 or 3000 to 4999")
)

// Conn is one connection. Package server makes it public as a type with the same underlying type, whose methods are
// those that applications may call. So it has no exported fields: see conn_fields.go.
type Conn struct {
	// Immutable after open, but for gc and fd, which the loop changes once: see outlive.
	sh     *Shard
	gc     gnet.Conn    // nil when the peer has shut down its side, and something still waits for it
	remote *net.TCPAddr // the client's, once it is known: a proxy's until then, or nil with a unix socket
	id     uint64
	fd     int32

	// Written by the loop, read by anyone.
	state atomic.Uint32

	// Written by anyone, once.
	asked atomic.Bool // the application has asked for the close

	// The order of what follows leaves no padding. Immutable after open.
	opened uint32 // seconds after the server was made

	// Owned by the loop.
	slot int32 // where it stands in table

	// Immutable after the handshake.
	subprotocol uint8 // index into the endpoint's list, or NoSubprotocol
	framing     Framing
	window      uint8 // in bits, that may be used to compress what is sent; 0 without permessage-deflate

	// Owned by the loop.
	marks marks

	// Immutable after the handshake.
	ep *LoopEndpoint

	// Owned by the loop.
	table *Table         // the one table that it is a member of; nil once closed
	ext   *Extension     // what few connections have; see there for who may use it
	in    *inbound       // what has come but is not complete; nil between messages
	out   *outbox.Outbox // what the socket does not take; nil while it takes everything

	// Written by anyone.
	attachment atomic.Pointer[Attachment] // what the application attached; nil while that is nothing
}

// marks are what is true of a connection or not, in one byte.
type marks uint8

const (
	MarkPeerDone marks = 1 << iota // nothing more is read: the peer's close frame came, or the connection has failed
	MarkCounted                    // it counts for its address
	MarkTLS                        // what comes and goes is encrypted: see session

	// In the handshake:
	MarkFull    // accepted beyond the limit, to be told so
	MarkCrowd   // the same for its address
	MarkPreface // a PROXY header may or must come before the request
)

// Is reports whether a mark is set. It may be called on the loop only.
func (c *Conn) Is(m marks) bool { return c.marks&m != 0 }

// Mark sets or clears a mark, on the loop.
func (c *Conn) Mark(m marks, on bool) {
	c.marks &^= m
	if on {
		c.marks |= m
	}
}

// The life of a connection. It only ever moves forward.
const (
	StateHandshake uint32 = iota // the request head is not complete
	StateOpen                    // messages flow
	StateClosing                 // our close frame is queued or sent
	stateLingering               // we have shut down our side and wait for the peer's FIN
	StateClosed                  // the descriptor may be reused
)

// NoSubprotocol is the index of no subprotocol.
const NoSubprotocol = 255

// ID is that of the public connection.
func (c *Conn) ID() uint64 { return c.id }

// RemoteAddr is that of the public connection.
func (c *Conn) RemoteAddr() netip.AddrPort {
	a := c.remote.AddrPort() // the zero one of nil
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Path is that of the public connection.
func (c *Conn) Path() string { return c.ep.Path }

// Subprotocol is that of the public connection.
func (c *Conn) Subprotocol() string {
	if c.subprotocol == NoSubprotocol {
		return ""
	}
	return c.ep.Subprotocols[c.subprotocol]
}

// Send is that of the public connection.
func (c *Conn) Send(op codec.Opcode, payload []byte) error {
	if op != codec.OpText && op != codec.OpBinary {
		return ErrOpcode
	}
	if !c.IsOpen() {
		return ErrClosed
	}
	return c.sh.postMessage(c, op, payload)
}

// SendFrame is that of the public connection.
func (c *Conn) SendFrame(f *codec.Frame) error {
	if !c.IsOpen() {
		return ErrClosed
	}
	return c.sh.postFrame(c, f)
}

// IsOpen reports whether messages flow, as far as the application is concerned.
func (c *Conn) IsOpen() bool { return c.state.Load() == StateOpen && !c.asked.Load() }

// Close is that of the public connection.
func (c *Conn) Close(code codec.CloseCode, reason string) error {
	if !code.Valid() {
		return fmt.Errorf("%w: %d", ErrCloseCode, code)
	}
	if c.state.Load() == StateOpen && !c.asked.Swap(true) {
		c.sh.PostClose(c, CloseOwn, code, reason)
	}
	return nil
}

// Opened is that of the public connection.
func (c *Conn) Opened() time.Time {
	return c.sh.Engine.Begin.Add(time.Duration(c.opened) * time.Second)
}

// UptimeSeconds is the present one, counted from when the server was made.
func (e *Engine) UptimeSeconds() uint32 { return uint32(time.Since(e.Begin) / time.Second) }
