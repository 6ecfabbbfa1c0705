package server

import (
	"fmt"
	"time"

	"carillon/codec"
)

// owner is the server as its engine and its loops see it. They call it once for an event, never once for a receiver.
// What is about a connection is called on its loop.
type owner interface {
	booted() error             // called when the listeners are open, before the loops accept
	engineFailed(err error)    // ends the server; may be called more than once
	allEndpoints() []*endpoint // for a new shard

	// sweepTopics is called with every tick, of which part is the number.
	sweepTopics(now time.Time, part int)

	// evictIdle closes a connection of plain HTTP that carries no request, so that a newcomer can have its place, and
	// reports whether there was one.
	evictIdle() bool

	// unsubscribed counts one subscriber less. The caller holds src.mu, which is not held any more when it returns.
	unsubscribed(src *source)

	// In the handshake.
	takeHead(c *Conn, b []byte)         // some more of a request
	headDue(c *Conn, since uint32) bool // ends the handshake if it takes too long, and reports whether it does
	isDeciding(c *Conn) bool            // the request is whole, and is being decided
	stopDeciding(c *Conn)               // the connection has gone, or is refused

	// Of a connection that is open.
	takeMessage(c *Conn, op codec.Opcode, payload []byte)
	brokeRule(c *Conn, err error) // before the close that the error leads to
	hasClosed(c *Conn, why *CloseError)
	call(c *Conn, do func()) // do may be the application's, or have it called
}

func (c *Conn) owner() owner { return c.sh.engine.owner }

func (s *Server) booted() error {
	if s.internal != nil && s.internal.socket != nil {
		if err := s.internal.socket.Publish(); err != nil {
			return fmt.Errorf("internal.listen: %w", err)
		}
	}
	s.ops.settled.Store(int64(s.engine.uptime()))
	return nil
}

func (s *Server) engineFailed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drainState.expedite()
	if s.stop != nil {
		s.stop(err)
	}
}

func (s *Server) allEndpoints() []*endpoint { return s.endpoints }

func (s *Server) sweepTopics(now time.Time, part int) { s.hub.sweep(now, part) }

func (s *Server) evictIdle() bool { return s.plain != nil && s.plain.evictIdle(evictGrace) }

func (s *Server) unsubscribed(src *source) { src.unsubscribe(s.hub) }

func (s *Server) takeHead(c *Conn, b []byte) { c.shake(b) }

func (s *Server) headDue(c *Conn, since uint32) bool { return c.handshakeDue(since) }

func (s *Server) isDeciding(c *Conn) bool { return c.waitsFor() != nil }

func (s *Server) stopDeciding(c *Conn) { c.dropPendingDecision() }

func (s *Server) takeMessage(c *Conn, op codec.Opcode, payload []byte) { c.callMessage(op, payload) }

func (s *Server) brokeRule(c *Conn, err error) { c.callError(c.handler(), err) }

func (s *Server) hasClosed(c *Conn, why *CloseError) { c.callClose(c.detach(why), why) }

func (s *Server) call(c *Conn, do func()) { c.callFunc(hookDone, do) }
