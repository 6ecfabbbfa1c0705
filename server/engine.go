package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

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
	address, err := s.prepare()
	if err != nil {
		return err
	}
	defer s.ending.stop()
	defer s.watcher.close()
	defer s.releaseAddr()
	defer s.internal.close()
	defer s.agent.close()

	stopped, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s.mu.Lock()
	s.stop = stop
	if s.shutdown != nil {
		stop(nil) // Shutdown came before Run
	}
	s.mu.Unlock()

	for _, w := range s.opts().Warnings() {
		s.log.Warn("an option is hardly meant so", "key", w.Key, "problem", w.Problem)
	}
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
	ended := make(chan error, 1)
	go func() {
		err := s.runEngine(address)
		s.ending.hurry() // there is nobody left to wait for
		ended <- err
	}()

	for over := false; !over; {
		select {
		case err = <-ended:
			return s.engineError(err)
		case <-stopped.Done():
			s.startDrain(whyEnded(ctx), s.opts().Drain.Delay, true)
		case <-s.ending.asked:
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
	return "the program ends"
}

// Shutdown stops the server gracefully but without a delay: it accepts nobody, sends every connection what
// waits for it and a close frame, all at once, and waits for the closing handshakes until ctx ends; then the
// rest is cut. A drain that is under way goes on in this way. Run returns when all is done. Shutdown does not
// wait for that and returns at once. Only the first call counts.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shutdown == nil {
		s.shutdown = ctx
	}
	s.ending.hurry()
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
	s.ending.hurry()
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
func (s *Server) prepare() (address string, err error) {
	if s.maxConnections, err = maxConnections(s.opts().Limits.MaxConnections, s.opts().Loops, s.opts().Internal.most()+s.opts().Agent.most()); err != nil {
		return "", err
	}
	addr, release, err := reserve(s.opts().Listen, s.opts().Takeover)
	if err != nil {
		return "", err
	}
	s.addr, s.releaseAddr = addr, release
	if s.internal, err = s.listenInternal(); err != nil {
		release()
		return "", err
	}
	if s.agent, err = s.listenAgent(); err != nil {
		release()
		s.internal.close()
		return "", err
	}
	if s.watcher, err = newWatcher(); err != nil {
		release()
		s.internal.close()
		s.agent.close()
		return "", fmt.Errorf("watch for writable sockets: %w", err)
	}
	if addr.IP.To4() != nil {
		return "tcp4://" + addr.String(), nil // also what an empty host means on a machine without IPv6
	}
	host, _, _ := net.SplitHostPort(s.opts().Listen)
	return "tcp://" + net.JoinHostPort(host, strconv.Itoa(addr.Port)), nil
}

func (s *Server) runEngine(address string) error {
	return gnet.Run(&events{server: s}, address,
		gnet.WithNumEventLoop(s.opts().Loops),
		gnet.WithReusePort(true), // each loop accepts its own connections
		gnet.WithReuseAddr(true),
		gnet.WithLogger(&engineLogger{s}),
	)
}

// stopEngine asks gnet to end. Its own Stop would look only every half second whether it has.
func (s *Server) stopEngine() {
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
	ticker := time.NewTicker(s.tick())
	defer ticker.Stop()
	for part := 0; ; part++ {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			s.hub.sweep(now, part)
			if s.addresses != nil {
				s.addresses.sweep(part)
			}
			for _, sh := range s.allShards() {
				sh.postTick()
			}
		}
	}
}

// tick is an eighth of the shortest time-out, within 5 ms and 1 s.
func (s *Server) tick() time.Duration {
	l, p := &s.opts().Limits, &s.opts().Ping
	shortest := 8 * time.Second
	if s.opts().ProxyProtocol.Mode != ProxyOff {
		shortest = min(shortest, s.opts().ProxyProtocol.Timeout)
	}
	for _, d := range []time.Duration{l.HandshakeTimeout, l.IdleTimeout, l.WriteTimeout, l.CloseTimeout, p.Interval, p.Timeout} {
		if d > 0 {
			shortest = min(shortest, d)
		}
	}
	return max(shortest/8, 5*time.Millisecond)
}

// events are gnet's callbacks.
type events struct {
	gnet.BuiltinEventEngine
	server *Server
}

func (e *events) OnBoot(engine gnet.Engine) gnet.Action {
	e.server.engine = engine
	if e.server.opts().Takeover {
		steerNobody(e.server.addr)
	}
	e.server.releaseAddr() // the first loop listens, which holds the port for the others
	e.server.ops.settled.Store(int64(e.server.elapsed()))
	close(e.server.started)
	return gnet.None
}

func (e *events) OnOpen(gc gnet.Conn) ([]byte, gnet.Action) {
	switch enrolled := gc.Context().(type) {
	case *bell:
		return nil, gnet.None
	case *returned:
		return nil, enrolled.opened(gc)
	}
	s := e.server
	sh, err := s.shardOf(gc.EventLoop())
	if err != nil {
		s.fail(err)
		return nil, gnet.Close
	}
	if !sh.accept(gc) {
		return nil, gnet.Close
	}
	return nil, gnet.None
}

func (e *events) OnTraffic(gc gnet.Conn) gnet.Action {
	b, _ := gc.Next(-1)
	switch to := gc.Context().(type) {
	case *Conn:
		to.sh.enter()
		to.received(b)
		to.sh.leave()
	case *bell:
		to.sh.rung()
	}
	return gnet.None
}

func (e *events) OnClose(gc gnet.Conn, err error) gnet.Action {
	if c, ok := gc.Context().(*Conn); ok {
		c.gone(err)
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
	if l.s.logsEvents() {
		l.s.logEvent("engine", "says", shown(word.Error()))
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.lastWord = word
}
