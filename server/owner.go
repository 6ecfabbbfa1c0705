package server

import (
	"time"

	"carillon/codec"
)

// owner is the server as its engine and its loops see it. They call it once for an event, never once for a receiver.
// What is about a connection is called on its loop.
type owner interface {
	booted() error          // called when the listeners are open, before the loops accept
	engineFailed(err error) // ends the server; may be called more than once
	newShard(sh *shard)     // before its first connection: sets ownerData, and the feeds of tables

	// sweepTopics is called with every tick, of which part is the number.
	sweepTopics(now time.Time, part int)

	// evictIdle closes a connection of plain HTTP that carries no request, so that a newcomer can have its place, and
	// reports whether there was one.
	evictIdle() bool

	// In the handshake.
	takeHead(c *Conn, b []byte)         // some more of a request
	headDue(c *Conn, since uint32) bool // ends the handshake if it takes too long, and reports whether it does
	isDeciding(c *Conn) bool            // the request is whole, and is being decided
	stopDeciding(c *Conn)               // the connection has gone, or is refused

	// Of a connection that is open.
	takeMessage(c *Conn, op codec.Opcode, payload []byte)
	brokeRule(c *Conn, err error) // before the close that the error leads to
	hasClosed(c *Conn, why *CloseError)
	expired(c *Conn)                        // its deadline has come
	call(c *Conn, hook hookKind, do func()) // do may be the application's, or have it called
}

func (c *Conn) owner() owner { return c.sh.engine.owner }
