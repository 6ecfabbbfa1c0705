package reactor

import (
	"time"

	"carillon/codec"
)

// Owner is the server as its engine and its loops see it. They call it once for an event, never once for a receiver.
// What is about a connection is called on its loop.
type Owner interface {
	Booted() error          // called when the listeners are open, before the loops accept
	EngineFailed(err error) // ends the server; may be called more than once
	NewShard(sh *Shard)     // before its first connection: sets ownerData, and the feeds of tables

	// SweepTopics is called with every tick, of which part is the number.
	SweepTopics(now time.Time, part int)

	// EvictIdle closes a connection of plain HTTP that carries no request, so that a newcomer can have its place, and
	// reports whether there was one.
	EvictIdle() bool

	// In the handshake.
	TakeHead(c *Conn, b []byte)         // some more of a request
	HeadDue(c *Conn, since uint32) bool // ends the handshake if it takes too long, and reports whether it does
	IsDeciding(c *Conn) bool            // the request is whole, and is being decided
	StopDeciding(c *Conn)               // the connection has gone, or is refused

	// Of a connection that is open.
	TakeMessage(c *Conn, op codec.Opcode, payload []byte)
	BrokeRule(c *Conn, err error) // before the close that the error leads to
	HasClosed(c *Conn, why *codec.CloseError)
	Expired(c *Conn)                        // its deadline has come
	Call(c *Conn, hook HookKind, do func()) // do may be the application's, or have it called
}

// Owner is the server that the connection is one of.
func (c *Conn) Owner() Owner { return c.sh.Engine.owner }
