package server

import (
	"fmt"
	"time"

	"carillon/codec"
	"carillon/server/internal/hub"
	"carillon/server/internal/protocol"
	"carillon/server/internal/reactor"
	"carillon/server/stats"
)

// loopsOwner is the server as its event loops see it: see [reactor.Owner].
type loopsOwner Server

func (o *loopsOwner) server() *Server { return (*Server)(o) }

func (o *loopsOwner) Booted() error {
	s := o.server()
	if s.internal != nil && s.internal.socket != nil {
		if err := s.internal.socket.Publish(); err != nil {
			return fmt.Errorf("internal.listen: %w", err)
		}
	}
	s.ops.settled.Store(int64(s.engine.Uptime()))
	return nil
}

func (o *loopsOwner) EngineFailed(err error) {
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
	hub     *hub.Hub // immutable
	request Request
	via     codec.Via // of the request
}

func (l *loopState) Hub() *hub.Hub { return l.hub }

func (o *loopsOwner) NewShard(sh *reactor.Shard) {
	s := o.server()
	sh.OwnerData = &loopState{hub: s.hub}
	for _, ep := range s.endpoints {
		l := &hub.Local{Shard: sh, Source: &ep.Source}
		for i, g := range sh.TablesOf(&ep.LoopEndpoint) {
			g.Feed, l.Audiences[i] = l, &g.Audience
		}
	}
}

// Server is the server that the connection is one of.
func (c *Conn) Server() *Server { return c.core().Owner().(*loopsOwner).server() }

func (c *Conn) loopState() *loopState { return c.shard().OwnerData.(*loopState) }

// hub is that of the connection's server.
func (c *Conn) hub() *hub.Hub { return hub.Of(c.shard()) }

func (o *loopsOwner) SweepTopics(now time.Time, part int) { o.hub.Sweep(now, part) }

func (o *loopsOwner) EvictIdle() bool { return o.plain != nil && o.plain.evictIdle(reactor.EvictGrace) }

func (o *loopsOwner) TakeHead(c *reactor.Conn, b []byte) { (*Conn)(c).shake(b) }

func (o *loopsOwner) HeadDue(c *reactor.Conn, since uint32) bool {
	return (*Conn)(c).handshakeDue(since)
}

func (o *loopsOwner) IsDeciding(c *reactor.Conn) bool { return (*Conn)(c).waitsFor() != nil }

func (o *loopsOwner) StopDeciding(c *reactor.Conn) { (*Conn)(c).dropPendingDecision() }

func (o *loopsOwner) TakeMessage(c *reactor.Conn, op codec.Opcode, payload []byte) {
	(*Conn)(c).callMessage(op, payload)
}

func (o *loopsOwner) BrokeRule(c *reactor.Conn, err error) {
	(*Conn)(c).callError((*Conn)(c).handler(), err)
}

func (o *loopsOwner) HasClosed(c *reactor.Conn, why *CloseError) {
	(*Conn)(c).callClose((*Conn)(c).handlerOr(c.Detach(why)), why)
}

// closeExpired tells a client that its token, or whatever let it in, is good no more.
const closeExpired codec.CloseCode = 4401

// Expired closes a connection whose identity has expired.
func (o *loopsOwner) Expired(c *reactor.Conn) {
	if c.IsOpen() {
		c.Shard().Stats.Cut(stats.CutExpired)
	}
	c.StartClose(reactor.CloseOwn, closeExpired, "token expired")
}

func (o *loopsOwner) Call(c *reactor.Conn, hook reactor.HookKind, do func()) {
	(*Conn)(c).callFunc(hook, do)
}

// connState is what the server keeps for the few connections that have any of it. The pointers are guarded by sh.mu:
// only the loop writes.
type connState struct {
	principal *protocol.Principal
	pending   *pendingDecision // during the handshake only; owned by the loop
}

// Principal is the client's identity, or nil.
func (x *connState) Principal() *protocol.Principal { return x.principal }

// connState returns what the server keeps for a connection, or nil.
func (c *Conn) connState() *connState {
	if c.core().Extension() == nil {
		return nil
	}
	x, _ := c.core().Extension().OwnerData.(*connState)
	return x
}

// needConnState returns the same, which is made if need be. The caller holds sh.mu.
func (c *Conn) needConnState() *connState {
	if x := c.connState(); x != nil {
		return x
	}
	x := &connState{}
	c.core().Extend().OwnerData = x
	return x
}
