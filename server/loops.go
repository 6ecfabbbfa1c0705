package server

import (
	"fmt"
	"time"

	"carillon/codec"
)

// loopsOwner is the server as its event loops see it: see owner.
type loopsOwner Server

func (o *loopsOwner) server() *Server { return (*Server)(o) }

func (o *loopsOwner) booted() error {
	s := o.server()
	if s.internal != nil && s.internal.socket != nil {
		if err := s.internal.socket.Publish(); err != nil {
			return fmt.Errorf("internal.listen: %w", err)
		}
	}
	s.ops.settled.Store(int64(s.engine.uptime()))
	return nil
}

func (o *loopsOwner) engineFailed(err error) {
	s := o.server()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drainState.expedite()
	if s.stop != nil {
		s.stop(err)
	}
}

// loopState is what a server keeps for each loop. Owned by the loop.
type loopState struct {
	hub     *hub // immutable
	request Request
	via     codec.Via // of the request
}

func (o *loopsOwner) newShard(sh *shard) {
	s := o.server()
	sh.ownerData = &loopState{hub: s.hub}
	for _, ep := range s.endpoints {
		l := &local{sh: sh, src: &ep.source}
		for i, g := range sh.tablesOf(&ep.loopEndpoint) {
			g.feed, l.audiences[i] = l, &g.audience
		}
	}
}

// Server is the server that the connection is one of.
func (c *Conn) Server() *Server { return c.owner().(*loopsOwner).server() }

func (c *Conn) loopState() *loopState { return c.sh.ownerData.(*loopState) }

// hubOf is the hub whose messages a loop hands out.
func hubOf(sh *shard) *hub { return sh.ownerData.(*loopState).hub }

func (o *loopsOwner) sweepTopics(now time.Time, part int) { o.hub.sweep(now, part) }

func (o *loopsOwner) evictIdle() bool { return o.plain != nil && o.plain.evictIdle(evictGrace) }

func (o *loopsOwner) takeHead(c *Conn, b []byte) { c.shake(b) }

func (o *loopsOwner) headDue(c *Conn, since uint32) bool { return c.handshakeDue(since) }

func (o *loopsOwner) isDeciding(c *Conn) bool { return c.waitsFor() != nil }

func (o *loopsOwner) stopDeciding(c *Conn) { c.dropPendingDecision() }

func (o *loopsOwner) takeMessage(c *Conn, op codec.Opcode, payload []byte) { c.callMessage(op, payload) }

func (o *loopsOwner) brokeRule(c *Conn, err error) { c.callError(c.handler(), err) }

func (o *loopsOwner) hasClosed(c *Conn, why *CloseError) { c.callClose(c.handlerOr(c.detach(why)), why) }

func (o *loopsOwner) call(c *Conn, hook hookKind, do func()) { c.callFunc(hook, do) }

// connState is what the server keeps for the few connections that have any of it. The pointers are guarded by sh.mu:
// only the loop writes.
type connState struct {
	principal *principal
	pending   *pendingDecision // during the handshake only; owned by the loop
}

// connState returns what the server keeps for a connection, or nil.
func (c *Conn) connState() *connState {
	if c.ext == nil {
		return nil
	}
	x, _ := c.ext.ownerData.(*connState)
	return x
}

// needConnState returns the same, which is made if need be. The caller holds sh.mu.
func (c *Conn) needConnState() *connState {
	if x := c.connState(); x != nil {
		return x
	}
	x := &connState{}
	c.extend().ownerData = x
	return x
}
