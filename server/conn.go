package server

import (
	"context"
	"net/netip"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
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
	ErrClosed = reactor.ErrClosed

	// ErrOpcode is returned for a message that is neither [Text] nor [Binary].
	ErrOpcode = reactor.ErrOpcode

	// ErrCloseCode is returned for a close code that must not be sent (RFC 6455, section 7.4).
	ErrCloseCode = reactor.ErrCloseCode

	// ErrTooManyTimers is returned by [Conn.After] for a connection with 1,024 timers that have not run.
	ErrTooManyTimers = reactor.ErrTooManyTimers

	// ErrEngine is returned by [Server.Run] when the event engine has ended by itself.
	ErrEngine = reactor.ErrEngine
)

// CloseError says how a connection ended; [Handler.Close] gets it.
type CloseError = codec.CloseError

// Conn is one WebSocket connection. Its methods may be called from any goroutine, also from handlers
// and after the connection has closed.
type Conn reactor.Conn

// core is the same connection as the event loops know it.
func (c *Conn) core() *reactor.Conn { return (*reactor.Conn)(c) }

// shard is the connection's event loop.
func (c *Conn) shard() *reactor.Shard { return c.core().Shard() }

// ID is unique among all connections of this server since its start, and with [Options.Broker] most likely among those
// of all servers. It is below 2^53, so that it is a whole number in JavaScript, too.
func (c *Conn) ID() uint64 { return c.core().ID() }

// RemoteAddr is the client's address: the one at the other end of the TCP connection, or what the
// balancers and proxies before it say, as far as they are trusted (see Options.ProxyProtocol and
// Options.TrustedProxies). It is the zero AddrPort for a client of a unix socket
// whose address no proxy has told.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.core().RemoteAddr() }

// Path is the path of the endpoint that the connection was opened on.
func (c *Conn) Path() string { return c.core().Path() }

// Subprotocol is the one that was negotiated, or "".
func (c *Conn) Subprotocol() string { return c.core().Subprotocol() }

// Opened is when the client connected, to the second.
func (c *Conn) Opened() time.Time { return c.core().Opened() }

// Send sends one message. The payload is copied (and compressed, where that was negotiated) before
// Send returns; the bytes leave when the connection's loop comes round. What one goroutine sends or
// broadcasts arrives in that order.
//
// Send does not wait for a slow reader: see [SlowConsumer]. It fails with [ErrClosed],
// [ErrOverloaded] or [ErrOpcode].
func (c *Conn) Send(op Opcode, payload []byte) error { return c.core().Send(op, payload) }

// SendFrame sends a prepared message. Its bytes are shared, not copied, so a frame that goes to many
// connections is encoded once.
func (c *Conn) SendFrame(f *codec.Frame) error { return c.core().SendFrame(f) }

// Close starts the closing handshake (RFC 6455, section 7.1.2): everything sent before goes out
// first, then a close frame with the code and at most 123 bytes of the reason. From
// now on Send fails, and the application gets no more messages of this connection. Closing a connection that
// is closing already does nothing and is no error. It fails with [ErrCloseCode].
func (c *Conn) Close(code codec.CloseCode, reason string) error { return c.core().Close(code, reason) }

// Value returns what SetValue, or [Request.Value] during the handshake, attached to the connection.
func (c *Conn) Value() any { return c.core().Value() }

// SetValue attaches any value of the application to the connection. It stays readable after the
// connection has closed. Each call allocates, so state that changes often is best kept in a struct whose pointer
// is attached.
func (c *Conn) SetValue(v any) { c.core().SetValue(v) }

// Context returns a context that ends when the connection does, just before [Handler.Close]; its cause is
// the same *[CloseError], or [ErrClosed] if it was asked for later than that. It is for goroutines that
// work for a connection. Only connections whose context was asked for have one.
func (c *Conn) Context() context.Context { return c.core().Context() }

// Do has f called on the connection's event loop: never at the same time as another call for this connection, so f
// may use what its [Handler] uses without a lock, and like a handler it must not block. It may be called from any
// goroutine, and returns before f is called, also on the loop itself.
//
// f takes its turn among what the calling goroutine asks of the connection: what was sent before is on its way to the
// client when f is called, and a [Conn.Close] comes after it. Messages that the client has sent and f are not ordered:
// those that have arrived already may be handled first.
//
// When the connection closes before that, f is not called: nothing is after [Handler.Close]. Do fails with [ErrClosed]
// when the connection is closed or closing already, and with [ErrOverloaded] when its loop has more than
// Limits.MaxBacklog bytes to handle; f counts as 256.
func (c *Conn) Do(f func()) error { return c.core().Do(f) }

// After has f called as [Conn.Do] does, once d has passed. Timers of a connection that are due together run in the
// order of their times.
//
// f is not called when the connection closes before that, or [Conn.Close] is called: all its timers end then, and what
// they hold can be collected. The payload of [Handler.Message] is not valid any more when f is called; keep a copy.
//
// After fails with [ErrClosed], with [ErrTooManyTimers], and with [ErrOverloaded] when the timers of all connections
// of the loop take more than Limits.MaxBacklog, each about 200 bytes. The timer is then nil.
func (c *Conn) After(d time.Duration, f func()) (*Timer, error) {
	t, err := c.core().After(d, f)
	return (*Timer)(t), err
}

// Timer is a call that [Conn.After] has put off.
type Timer reactor.Timer

// Stop prevents the call, and reports whether it has: false means that the function has been called or is about to be,
// that the timer was stopped before, or that the connection has closed. It may be called from any goroutine.
func (t *Timer) Stop() bool { return (*reactor.Timer)(t).Stop() }
