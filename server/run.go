package server

import (
	"context"

	"carillon/server/internal/reactor"
)

// Run listens and serves until ctx ends, and then drains as [Options.Drain] says, as it does after
// [Server.StartDrain]. It returns nil when that is done, and an error when it could not listen or the engine
// ended by itself ([ErrEngine]). A server runs once.
func (s *Server) Run(ctx context.Context) error {
	if s.running.Swap(true) {
		return ErrStarted
	}
	stopped, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s.mu.Lock()
	s.stop = stop
	if s.shutdown != nil {
		stop(nil) // Shutdown came before Run
	}
	s.mu.Unlock()

	if err := s.hub.Remote.Join(stopped); err != nil {
		if stopped.Err() != nil {
			return nil
		}
		return err
	}
	defer s.hub.Remote.Leave()
	err := s.prepare()
	if err != nil {
		return err
	}
	defer s.drainState.stop()
	defer s.engine.Close()
	defer s.internal.close()
	defer s.agent.close()

	s.warn(s.opts())
	if s.plain != nil {
		go s.plain.serve()
		defer s.plain.close()
	}
	defer s.engine.CloseShards()
	alive, dead := context.WithCancel(context.Background())
	defer dead()
	s.watchKeys(alive, stopped)
	s.memory.look()
	go s.memory.run(alive)
	s.engine.Start(alive)
	go s.watchCertificates(alive)
	ended := make(chan error, 1)
	go func() {
		err := s.engine.Run()
		s.drainState.expedite() // nothing is left to wait for
		ended <- err
	}()

	for over := false; !over; {
		select {
		case err = <-ended:
			return s.engine.EndError(err)
		case <-stopped.Done():
			s.startDrain(whyEnded(ctx), s.opts().Drain.Delay, true)
		case <-s.drainState.asked:
		}
		select {
		case err = <-ended:
			return s.engine.EndError(err)
		case <-s.engine.Started: // before that there is no engine to stop
		}
		over = s.engine.Failed() != nil || s.drain(stopped)
	}
	select {
	case err = <-ended: // it was faster than we were
		return s.engine.EndError(err)
	default:
	}
	s.engine.Stop()
	if err = <-ended; err == nil {
		err = s.engine.Failed()
	}
	if err != nil {
		return s.engine.EndError(err)
	}
	s.log.Info("stopped")
	return nil
}

// whyEnded is what ended a context, as far as that is known.
func whyEnded(ctx context.Context) string {
	if why := context.Cause(ctx); why != nil && why != context.Canceled {
		return why.Error()
	}
	return "the program is ending"
}

// Shutdown stops the server gracefully but without a delay: it accepts no new connections, sends every connection what
// waits for it and a close frame, all at once, and waits for the closing handshakes until ctx ends; then the
// rest is cut. A drain that is under way goes on in this way. Run returns when all is done. Shutdown does not
// wait for that and returns at once. Only the first call counts.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shutdown == nil {
		s.shutdown = ctx
	}
	s.drainState.expedite()
	if s.stop != nil {
		s.stop(nil)
	}
}

// prepare finds out all that could make the engine fail, so that the user gets a clear word.
func (s *Server) prepare() (err error) {
	if err = s.measure(); err != nil {
		return err
	}
	if err = s.engine.OpenListeners(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.engine.CloseListeners()
			s.internal.close()
			s.agent.close()
		}
	}()
	if s.internal, err = s.listenInternal(); err != nil {
		return err
	}
	if s.agent, err = s.listenAgent(); err != nil {
		return err
	}
	return s.engine.StartWatcher()
}

// measure finds out how many connections there is room for.
func (s *Server) measure() (err error) {
	s.reloads.mu.Lock()
	defer s.reloads.mu.Unlock()
	set := *s.settings()
	if s.reloads.room, err = reactor.RoomFor(set.Loops, set.Internal.most()+set.Agent.most()+s.engine.Arriving()); err != nil {
		return err
	}
	if set.loops.MaxSockets, err = s.reloads.room.Sockets(set.Limits.MaxConnections); err == nil {
		s.putInForce(&set)
	}
	return err
}
