package server

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"carillon/codec"
)

// Opcode says what a message is, [Text] or [Binary]. It is the codec's type, named here so that a handler
// can be written without importing codec.
type Opcode = codec.Opcode

// The kinds of message that [Conn.Send] and [Server.Broadcast] take, and that a handler gets.
const (
	Text   = codec.OpText   // the payload must be valid UTF-8: clients close the connection if it is not
	Binary = codec.OpBinary // any bytes
)

var (
	// ErrClosed is returned for a connection that is closed or closing.
	ErrClosed = errors.New("connection is closed")

	// ErrOpcode is returned for a message that is neither [Text] nor [Binary].
	ErrOpcode = errors.New("a message must be text or binary")

	// ErrCloseCode is returned for a close code that must not be sent (RFC 6455, section 7.4).
	ErrCloseCode = errors.New("close code must not be sent: use 1000 to 1003, 1007 to 1014 or 3000 to 4999")
)

// Conn is one WebSocket connection. Its methods may be called from any goroutine, also from handlers
// and after the connection has closed.
type Conn struct {
	// Immutable after open, but for gc and fd, which the loop changes once: see outlive.
	sh     *shard
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
	subprotocol uint8 // index into the endpoint's list, or noSubprotocol
	framing     framing
	window      uint8 // in bits, that may be used to compress what is sent; 0 without permessage-deflate

	// Owned by the loop.
	marks marks

	// Immutable after the handshake.
	ep *loopEndpoint

	// Owned by the loop.
	table *table     // the one table that it is a member of; nil once closed
	ext   *extension // what few connections have; see there for who may use it
	in    *inbound   // what has come but is not complete; nil between messages
	out   *outbox    // what the socket does not take; nil while it takes everything

	// Written by anyone.
	attachment atomic.Pointer[attachment] // what the application attached; nil while that is nothing
}

// marks are what is true of a connection or not, in one byte.
type marks uint8

const (
	markPeerDone marks = 1 << iota // nothing more is read: the peer's close frame came, or the connection has failed
	markCounted                    // it counts for its address
	markTLS                        // what comes and goes is encrypted: see session

	// In the handshake:
	markFull    // accepted beyond the limit, to be told so
	markCrowd   // the same for its address
	markPreface // a PROXY header may or must come before the request
)

func (c *Conn) is(m marks) bool { return c.marks&m != 0 }

func (c *Conn) mark(m marks, on bool) {
	c.marks &^= m
	if on {
		c.marks |= m
	}
}

// The life of a connection. It only ever moves forward.
const (
	stateHandshake uint32 = iota // the request head is not complete
	stateOpen                    // messages flow
	stateClosing                 // our close frame is queued or sent
	stateLingering               // we have shut down our side and wait for the peer's FIN
	stateClosed                  // the descriptor belongs to somebody else
)

const noSubprotocol = 255

// ID is unique among all connections of this server since its start, and with [Options.Broker] most likely among those
// of all servers. It is below 2^53, so that it is a whole number in JavaScript, too.
func (c *Conn) ID() uint64 { return c.id }

// RemoteAddr is the client's address: the one at the other end of the TCP connection, or what the
// balancers and proxies before it say, as far as they are trusted (see Options.ProxyProtocol and
// Options.TrustedProxies). It is the zero AddrPort for a client of a unix socket
// whose address no proxy has told.
func (c *Conn) RemoteAddr() netip.AddrPort {
	a := c.remote.AddrPort() // the zero one of nil
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Path is the path of the endpoint that the connection was opened on.
func (c *Conn) Path() string { return c.ep.Path }

// Subprotocol is the one that was negotiated, or "".
func (c *Conn) Subprotocol() string {
	if c.subprotocol == noSubprotocol {
		return ""
	}
	return c.ep.Subprotocols[c.subprotocol]
}

// Send sends one message. The payload is copied (and compressed, where that was negotiated) before
// Send returns; the bytes leave when the connection's loop comes round. What one goroutine sends or
// broadcasts arrives in that order.
//
// Send does not wait for a slow reader: see [SlowConsumer]. It fails with [ErrClosed],
// [ErrOverloaded] or [ErrOpcode].
func (c *Conn) Send(op Opcode, payload []byte) error {
	if op != Text && op != Binary {
		return ErrOpcode
	}
	if !c.isOpen() {
		return ErrClosed
	}
	return c.sh.postMessage(c, op, payload)
}

// SendFrame sends a prepared message. Its bytes are shared, not copied, so a frame that goes to many
// connections is encoded once.
func (c *Conn) SendFrame(f *codec.Frame) error {
	if !c.isOpen() {
		return ErrClosed
	}
	return c.sh.postFrame(c, f)
}

// isOpen reports whether messages flow, as far as the application is concerned.
func (c *Conn) isOpen() bool { return c.state.Load() == stateOpen && !c.asked.Load() }

// Close starts the closing handshake (RFC 6455, section 7.1.2): everything sent before goes out
// first, then a close frame with the code and at most 123 bytes of the reason. From
// now on Send fails, and the application gets no more messages of this connection. Closing a connection that
// is closing already does nothing and is no error. It fails with [ErrCloseCode].
func (c *Conn) Close(code codec.CloseCode, reason string) error {
	if !code.Valid() {
		return fmt.Errorf("%w: %d", ErrCloseCode, code)
	}
	if c.state.Load() == stateOpen && !c.asked.Swap(true) {
		c.sh.postClose(c, closeOwn, code, reason)
	}
	return nil
}

// CloseError says how a connection ended; [Handler.Close] gets it.
type CloseError struct {
	// Code is the one of the close frame that came first, or [codec.CloseNoStatus] when it had none,
	// or [codec.CloseAbnormal] when the connection was lost without one.
	Code   codec.CloseCode
	Reason string // of that frame, or what happened
	Remote bool   // the peer began
	Err    error  // the error of a lost connection, such as io.EOF or a system call's
}

func (e *CloseError) Error() string {
	who := "server"
	if e.Remote {
		who = "peer"
	}
	if e.Reason == "" {
		return fmt.Sprintf("closed by the %s: %v", who, e.Code)
	}
	return fmt.Sprintf("closed by the %s: %v: %s", who, e.Code, e.Reason)
}

func (e *CloseError) Unwrap() error { return e.Err }

// Opened is when the client connected, to the second.
func (c *Conn) Opened() time.Time {
	return c.sh.engine.begin.Add(time.Duration(c.opened) * time.Second)
}

// uptimeSeconds is the present one, counted from when the server was made.
func (e *engine) uptimeSeconds() uint32 { return uint32(time.Since(e.begin) / time.Second) }
