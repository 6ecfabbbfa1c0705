package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"carillon/server/internal/listen"
	"carillon/server/internal/logs"

	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/logging"
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

	if err := s.hub.remote.join(stopped); err != nil {
		if stopped.Err() != nil {
			return nil
		}
		return err
	}
	defer s.hub.remote.leave()
	err := s.prepare()
	if err != nil {
		return err
	}
	defer s.drainState.stop()
	defer s.watcher.close()
	defer s.closeListeners()
	defer s.fdReserve.close()
	defer s.internal.close()
	defer s.agent.close()

	s.warn(s.opts())
	if s.plain != nil {
		go s.plain.serve()
		defer s.plain.close()
	}
	defer s.closeShards()
	alive, dead := context.WithCancel(context.Background())
	defer dead()
	s.watchKeys(alive, stopped)
	go s.keepTime(alive)
	s.beginOps(alive)
	s.startAcceptors()
	go s.watchCertificates(alive)
	ended := make(chan error, 1)
	go func() {
		err := s.runEngine()
		close(s.loopsEnded)
		s.drainState.expedite() // there is nobody left to wait for
		ended <- err
	}()

	for over := false; !over; {
		select {
		case err = <-ended:
			return s.engineError(err)
		case <-stopped.Done():
			s.startDrain(whyEnded(ctx), s.opts().Drain.Delay, true)
		case <-s.drainState.asked:
		}
		select {
		case err = <-ended:
			return s.engineError(err)
		case <-s.started: // before that there is no engine to stop
		}
		over = s.failed() != nil || s.drain(stopped)
	}
	select {
	case err = <-ended: // it was faster than we were
		return s.engineError(err)
	default:
	}
	s.stopEngine()
	if err = <-ended; err == nil {
		err = s.failed()
	}
	if err != nil {
		return s.engineError(err)
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

// fail ends the server because of an error that it cannot live with.
func (s *Server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = err
	}
	s.drainState.expedite()
	if s.stop != nil {
		s.stop(err)
	}
}

func (s *Server) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// engineError makes the most of what is known about the engine's end.
func (s *Server) engineError(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	why := []error{ErrEngine}
	for _, e := range []error{s.failure, err, s.lastWord} {
		if e != nil {
			why = append(why, e)
			break
		}
	}
	return errors.Join(why...)
}

// prepare finds out all that could make the engine fail, so that the user gets a clear word.
func (s *Server) prepare() (err error) {
	if err = s.measure(); err != nil {
		return err
	}
	if err = s.openListeners(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.closeListeners()
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
	if s.watcher, err = newWatcher(); err != nil {
		return fmt.Errorf("watch for writable sockets: %w", err)
	}
	return nil
}

// measure finds out how many connections there is room for.
func (s *Server) measure() (err error) {
	s.reloads.mu.Lock()
	defer s.reloads.mu.Unlock()
	set := *s.settings()
	if s.reloads.room, err = roomFor(set.Loops, set.Internal.most()+set.Agent.most()+s.arriving()); err != nil {
		return err
	}
	if set.maxSockets, err = s.reloads.room.sockets(set.Limits.MaxConnections); err == nil {
		s.current.Store(&set)
	}
	return err
}

func (s *Server) runEngine() error {
	var addresses []string
	for _, l := range s.tcp {
		addresses = append(addresses, l.engineAddress())
	}
	options := []gnet.Option{
		gnet.WithNumEventLoop(s.opts().Loops),
		gnet.WithReusePort(true), // each loop accepts its own connections
		gnet.WithReuseAddr(true),
		gnet.WithLogger(&engineLogger{s}),
	}
	if s.arriving() > 0 { // see meetLoops
		options = append(options, gnet.WithTicker(true), gnet.WithLoadBalancing(gnet.LeastConnections))
	}
	return gnet.Rotate(&gnetHandler{server: s}, addresses, options...)
}

// stopEngine asks gnet to end. Its own Stop would look only every half second whether it has.
func (s *Server) stopEngine() {
	s.stopping.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.engine.Stop(ctx)
}

func (s *Server) closeShards() {
	for _, sh := range s.allShards() {
		sh.mail.close()
	}
}

// keepTime has every shard look for time-outs.
func (s *Server) keepTime(ctx context.Context) {
	tick := s.settings().tick
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for part := 0; ; part++ {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if is := s.settings().tick; is != tick {
				tick = is
				ticker.Reset(tick)
			}
			s.hub.sweep(now, part)
			s.addresses.Sweep(part)
			for _, sh := range s.allShards() {
				sh.postTick()
			}
		}
	}
}

// gnetHandler are gnet's callbacks.
type gnetHandler struct {
	gnet.BuiltinEventEngine
	server *Server
}

func (e *gnetHandler) OnBoot(engine gnet.Engine) gnet.Action {
	e.server.engine = engine
	for _, l := range e.server.tcp {
		if e.server.opts().Takeover {
			listen.ClearSteering(l.tcpAddr())
		}
		l.release() // the first loop listens, which holds the port for the others
	}
	if err := e.server.publishSockets(); err != nil {
		e.server.fail(err)
	}
	e.server.ops.settled.Store(int64(e.server.uptime()))
	close(e.server.started)
	return gnet.None
}

func (e *gnetHandler) OnOpen(gc gnet.Conn) ([]byte, gnet.Action) {
	switch enrolled := gc.Context().(type) {
	case *waker:
		return nil, gnet.None
	case *reattached:
		return nil, enrolled.opened(gc)
	case *arrival:
		return nil, enrolled.opened(gc)
	}
	s := e.server
	isAccepted := gc.Context() == nil
	if isAccepted && !s.fdReserve.admits() {
		s.refuseUnknown(gc.Fd(), RefuseDescriptors, rejectDescriptors)
		return nil, gnet.Close
	}
	sh, err := s.shardOf(gc.EventLoop())
	switch {
	case isExhausted(err) && isAccepted:
		s.refuseUnknown(gc.Fd(), RefuseDescriptors, rejectDescriptors)
		return nil, gnet.Close
	case err != nil:
		s.fail(err)
		return nil, gnet.Close
	}
	if gc.Context() == (greeting{}) {
		return nil, gnet.None
	}
	l := sh.listenerOf(gc)
	if l.hidden || !sh.accept(gc, l, s.sockets.Add(1)) {
		return nil, gnet.Close
	}
	return nil, gnet.None
}

// OnTick is called when all loops listen, and then hardly ever: see keepTime.
func (e *gnetHandler) OnTick() (time.Duration, gnet.Action) {
	select {
	case <-e.server.looping:
	default:
		close(e.server.looping)
	}
	return 24 * time.Hour, gnet.None
}

func (e *gnetHandler) OnTraffic(gc gnet.Conn) gnet.Action {
	b, _ := gc.Next(-1)
	switch to := gc.Context().(type) {
	case *Conn:
		to.sh.beginTurn()
		to.received(b)
		to.sh.endSocketTurn()
	case *waker:
		to.sh.wokenTurn()
	}
	return gnet.None
}

func (e *gnetHandler) OnClose(gc gnet.Conn, err error) gnet.Action {
	switch closed := gc.Context().(type) {
	case *Conn:
		sh := closed.sh
		begin := sh.srv.uptime()
		if !closed.outlive(err) {
			closed.isDetached(err)
		}
		if sh.lost == nil { // else it is a part of a turn, which counts it
			sh.addToRound(sh.srv.uptime() - begin)
		}
	case *waker:
		closed.sh.endHalfClosed()
	}
	return gnet.None
}

// engineLogger hears what gnet has to say. Errors are kept, because gnet.Run returns nil for most of
// its ends.
type engineLogger struct{ s *Server }

var _ logging.Logger = (*engineLogger)(nil)

func (l *engineLogger) Debugf(string, ...any)             {}
func (l *engineLogger) Infof(string, ...any)              {}
func (l *engineLogger) Warnf(format string, args ...any)  { l.hear(format, args) }
func (l *engineLogger) Errorf(format string, args ...any) { l.hear(format, args) }
func (l *engineLogger) Fatalf(format string, args ...any) { l.hear(format, args) }

func (l *engineLogger) hear(format string, args []any) {
	word := fmt.Errorf(format, args...)
	if err, ok := acceptError(format, args); ok {
		defer l.s.acceptFailed(fmt.Errorf("accept: %w", err)) // on the loop, before it goes on
	}
	if l.s.logsEvents() {
		l.s.logEvent("engine", "message", logs.Shorten(word.Error()))
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.lastWord = word
}

// acceptError is what accept(2) has failed with, if gnet says so.
func acceptError(format string, args []any) (err error, ok bool) {
	if strings.HasPrefix(format, "Accept()") && len(args) == 1 {
		err, ok = args[0].(error)
	}
	return err, ok
}
