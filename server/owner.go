package server

import (
	"fmt"
	"time"
)

// What the engine and its loops need of their server is in this file, except for three things: the endpoints for a new
// shard, the hub for subscriptions and publications, and the functions of [Handler].

// booted is called when the listeners are open, before the loops accept.
func (s *Server) booted() error {
	if s.internal != nil && s.internal.socket != nil {
		if err := s.internal.socket.Publish(); err != nil {
			return fmt.Errorf("internal.listen: %w", err)
		}
	}
	s.ops.settled.Store(int64(s.engine.uptime()))
	return nil
}

// engineFailed ends the server, because the engine cannot go on. It may be called more than once.
func (s *Server) engineFailed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drainState.expedite()
	if s.stop != nil {
		s.stop(err)
	}
}

// sweepTopics is called with every tick, of which part is the number.
func (s *Server) sweepTopics(now time.Time, part int) { s.hub.sweep(now, part) }

// evictIdle closes a connection of plain HTTP that carries no request, so that a newcomer can have its place, and
// reports whether there was one.
func (s *Server) evictIdle() bool { return s.plain != nil && s.plain.evictIdle(evictGrace) }
