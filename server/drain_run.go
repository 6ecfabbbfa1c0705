package server

import (
	"context"
	"sync"
	"time"

	"carillon/codec"
	"carillon/server/internal/drain"
	"carillon/server/internal/listen"
	"carillon/server/internal/reactor"
)

// drainer does one drain, on Run's goroutine.
type drainer struct {
	srv     *Server
	run     *drainRun
	stopped <-chan struct{} // Run's context has ended; nil once that is known
	hurried <-chan struct{} // there is no time; nil once that is known
	hurry   bool
	limit   context.Context // when the rest is cut

	// While connections are closed.
	began  time.Time
	total  int
	told   time.Time // of the last line in the log
	alone  bool      // new connections are refused
	cutOff context.Context
}

const (
	// handshakeGrace is how long requests may still take to arrive that were under way when the listening
	// socket was given up. Their clients had no other server to go to.
	handshakeGrace = time.Second

	// drainTick is how often those are closed whose turn it is.
	drainTick    = 50 * time.Millisecond
	drainMinTick = 5 * time.Millisecond

	progressEvery = 5 * time.Second
)

// drain ends the service as Options.Drain says. It returns false when it was called off.
func (s *Server) drain(stopped context.Context) (ended bool) {
	d := &drainer{srv: s, run: s.drainState.current(), stopped: stopped.Done(), hurried: s.drainState.hurry}
	if d.run == nil {
		return false
	}
	limit, release := context.WithDeadline(context.Background(), d.run.began.Add(s.opts().Drain.Deadline))
	defer release()
	d.limit = limit
	cutOff, cut := context.WithCancel(context.Background())
	d.cutOff = cutOff

	if !d.wait(d.run.delay) || !s.drainState.giveUp(d.run) {
		cut()
		return false
	}
	d.stopListening()
	d.close()
	if s.engine.Sockets.Load() > 0 {
		cut()
	}
	s.internal.shutdown(d.limit)()
	cut()
	return true
}

// wait lets time pass, unless there is none to lose. It returns false when the drain is called off.
func (d *drainer) wait(t time.Duration) bool {
	over := time.NewTimer(t)
	defer over.Stop()
	for !d.hurry {
		select {
		case <-d.run.off:
			return false
		case <-over.C:
			return true
		case <-d.limit.Done():
			return true
		case <-d.stopped:
			d.stopped = nil
			d.srv.drainState.begin("", 0, true) // from now on it cannot be called off
		case <-d.hurried:
			d.noteExpedite()
		}
	}
	return true
}

// noteExpedite ends what is done in order. The caller of Shutdown also decides how long the rest may take.
func (d *drainer) noteExpedite() {
	d.hurry, d.hurried = true, nil
	d.srv.mu.Lock()
	defer d.srv.mu.Unlock()
	if d.srv.shutdown != nil {
		d.limit = d.srv.shutdown
	}
}

// stopListening gives up the addresses: to a successor, if one listens there already.
func (d *drainer) stopListening() {
	select {
	case <-d.hurried:
		d.noteExpedite()
	default:
	}
	var sockets sync.WaitGroup
	defer sockets.Wait()
	for _, a := range d.srv.engine.Acceptors {
		sockets.Go(a.Close)
	}
	if theirs := d.srv.engine.SteerAway(false); theirs > 0 {
		d.srv.log.Info("new connections now go to the successor", "sockets", theirs)
		d.wait(listen.HandoverTime)
		d.srv.engine.SteerAway(true)
	}
	d.srv.engine.StopListening()
}

// close closes the connections by the schedule and waits until they are gone or time is up.
func (d *drainer) close() {
	s := d.srv
	d.began, d.total = time.Now(), s.Count()
	d.told = d.began
	p := d.newSchedule()
	s.log.Info("closing connections", "connections", d.total, "over", p.Pace, "deadline", d.limitText())
	tick := time.NewTicker(min(max(p.Pace/20, drainMinTick), drainTick))
	defer tick.Stop()
	gone := false
	for {
		now := time.Now()
		d.closeDoor(now)
		if s.engine.Sockets.Load() == 0 {
			return
		}
		if d.alone && p.Over(now) {
			if !gone {
				gone = true
				d.each((*reactor.Shard).PostGoAway)
			}
		} else {
			d.each((*reactor.Shard).PostTick)
		}
		d.progress(now)
		select {
		case <-s.engine.Empty:
		case <-tick.C:
		case <-d.hurried:
			d.noteExpedite()
			p = d.newSchedule()
		case <-d.limit.Done():
			s.log.Warn("cutting connections that did not close in time", "connections", s.engine.Sockets.Load())
			return
		}
	}
}

func (d *drainer) each(post func(*reactor.Shard)) {
	for _, sh := range d.srv.engine.AllShards() {
		post(sh)
	}
}

// newDrainSchedule is the schedule for a number of connections.
func (s *Server) newDrainSchedule(began time.Time, total int, hurry bool) *drain.Schedule {
	d := &s.opts().Drain
	p := &drain.Schedule{Began: began, Random: d.Order == OrderRandom, Code: codec.CloseCode(d.CloseCode)}
	if !hurry {
		p.Pace = d.paceFor(total)
	}
	p.Plan(total, s.engine.IDs)
	return p
}

// Fewer connections a second than this are not worth spreading.
const leastPace = 100

// paceFor is the time over which a number of connections are closed.
func (d *Drain) paceFor(connections int) time.Duration {
	return min(max(d.Duration, 0), time.Duration(connections)*time.Second/leastPace)
}

func (d *drainer) newSchedule() *drain.Schedule {
	p := d.srv.newDrainSchedule(time.Now(), d.total, d.hurry)
	d.srv.drainState.planned(d.total, p.Ends())
	d.srv.engine.Schedule.Store(p)
	return p
}

// closeDoor turns away those whose requests have still not come, and ends plain HTTP.
func (d *drainer) closeDoor(now time.Time) {
	s := d.srv
	if d.alone || !d.hurry && now.Sub(d.began) < min(handshakeGrace, s.opts().Drain.Duration) && s.engine.Handshaking() {
		return
	}
	d.alone = true
	s.engine.Draining.Store(true)
	if s.plain != nil {
		go s.plain.drain(d.cutOff)
	}
}

func (d *drainer) progress(now time.Time) {
	if now.Sub(d.told) < progressEvery {
		return
	}
	d.told = now
	st := d.srv.Drain()
	d.srv.log.Info("closing connections", "remaining", st.Remaining, "total", st.Total,
		"eta", max(time.Until(st.ETA), 0).Round(time.Second))
}

func (d *drainer) limitText() string {
	at, ok := d.limit.Deadline()
	if !ok {
		return "never"
	}
	return at.Format(time.TimeOnly)
}
