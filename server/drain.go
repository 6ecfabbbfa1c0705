package server

import (
	"sync"
	"time"

	"carillon/server/internal/admin"
)

// State is where a server stands in its life.
type State string

const (
	StateStarting State = "starting" // it does not listen yet
	StateServing  State = "serving"
	StateDraining State = "draining" // it is about to end: new connections should go elsewhere
	StateStopped  State = "stopped"  // [Server.Run] has returned, or is about to
)

// DrainStatus says how far the server has come with its end. Reason, Began and ETA are zero while it does
// not drain.
type DrainStatus struct {
	State     State
	Reason    string    // what began the drain
	Began     time.Time // when that was
	Listening bool      // new connections are taken; as long as they are, the drain can be called off
	Total     int       // connections that were open when the first was closed; until then those that are open
	Remaining int       // connections that are open
	ETA       time.Time // when the last connection is asked to go, as far as can be told
}

var (
	// ErrNotDraining is returned by CallOffDrain when there is nothing to call off.
	ErrNotDraining = admin.ErrNotDraining

	// ErrDrainUnderWay is returned by CallOffDrain when it is too late.
	ErrDrainUnderWay = admin.ErrDrainUnderWay
)

// drainState is what is known about the server's end, except by the shards.
type drainState struct {
	asked     chan struct{} // has a value when a drain has begun that Run does not know of
	hurry     chan struct{} // closed when there is no time for order
	committed chan struct{} // closed when nothing can be called off any more

	mu          sync.Mutex // guards what follows
	expedited   bool       // hurry is closed
	isCommitted bool       // committed is closed
	stopped     bool
	now         *drainRun // the drain under way; nil if there is none
}

// drainRun is one drain, from its beginning to the end or to where it is called off. The mutex of ending
// guards what is not immutable.
type drainRun struct {
	reason string        // immutable
	began  time.Time     // immutable
	delay  time.Duration // immutable
	off    chan struct{} // closed when it is called off

	final bool // it cannot be called off any more
	held  bool // the listening socket is
	total int  // 0 until connections are closed
	ends  time.Time
}

func newDrainState() drainState {
	return drainState{asked: make(chan struct{}, 1), hurry: make(chan struct{}), committed: make(chan struct{})}
}

// StartDrain begins the server's end in order: see [Options.Drain]. [Server.Run] returns when it is done.
// The delay stands in for Options.Drain.Delay; until it is over, [Server.CallOffDrain] takes everything
// back. The reason is for logs. It returns false, and changes nothing, if a drain is under way already.
func (s *Server) StartDrain(reason string, delay time.Duration) bool {
	return s.startDrain(reason, delay, false)
}

func (s *Server) startDrain(reason string, delay time.Duration, final bool) bool {
	began := s.drainState.begin(reason, max(delay, 0), final)
	if began {
		s.log.Info("draining", "reason", reason, "connections", s.Count(), "delay", max(delay, 0))
	}
	return began
}

func (e *drainState) begin(reason string, delay time.Duration, final bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return false
	}
	if final {
		e.commit()
	}
	if e.now != nil {
		e.now.final = e.now.final || final
		return false
	}
	e.now = &drainRun{reason: reason, began: time.Now(), delay: delay, off: make(chan struct{}), final: final, held: true}
	select {
	case e.asked <- struct{}{}:
	default:
	}
	return true
}

// CallOffDrain goes back to serving. It fails with [ErrNotDraining], or with [ErrDrainUnderWay] when
// the listening socket has been given up already, or the drain came of the end of Run's context.
func (s *Server) CallOffDrain() error {
	e := &s.drainState
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.now == nil && !e.stopped:
		return ErrNotDraining
	case e.stopped || e.now.final || !e.now.held:
		return ErrDrainUnderWay
	}
	close(e.now.off)
	e.now = nil
	s.log.Info("drain cancelled")
	return nil
}

// Ending is closed when the server's end has begun and cannot be called off any more.
func (s *Server) Ending() <-chan struct{} { return s.drainState.committed }

// State reports whether the server should be sent new connections.
func (s *Server) State() State { return s.Drain().State }

// Drain says how far the server has come with its end.
func (s *Server) Drain() DrainStatus {
	e := &s.drainState
	e.mu.Lock()
	defer e.mu.Unlock()
	st := DrainStatus{State: StateServing, Listening: true, Remaining: s.Count()}
	st.Total = st.Remaining
	select {
	case <-s.engine.Started:
	default:
		st.State, st.Listening = StateStarting, false
	}
	if e.now != nil {
		st.State = StateDraining
		st.Reason, st.Began, st.Listening = e.now.reason, e.now.began, st.Listening && e.now.held
		st.ETA = e.now.began.Add(e.now.delay + s.opts().Drain.paceFor(st.Total))
		if !e.now.ends.IsZero() {
			st.Total, st.ETA = e.now.total, e.now.ends
		}
	}
	if e.stopped {
		st.State, st.Listening = StateStopped, false
	}
	return st
}

// current is the drain under way, or nil.
func (e *drainState) current() *drainRun {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now
}

// giveUp reports whether the listening socket may be given up: the drain was not called off, and cannot be
// from now on.
func (e *drainState) giveUp(run *drainRun) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now != run {
		return false
	}
	run.held = false
	e.commit()
	return true
}

func (e *drainState) planned(total int, ends time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now.total, e.now.ends = total, ends
}

// expedite leaves no time for a delay nor for an even pace.
func (e *drainState) expedite() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.expedited {
		e.expedited = true
		close(e.hurry)
	}
	e.commit()
}

// commit tells those who wait for the end. The caller holds mu.
func (e *drainState) commit() {
	if !e.isCommitted {
		e.isCommitted = true
		close(e.committed)
	}
}

// begun reports whether the server drains or has ended.
func (e *drainState) begun() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now != nil || e.isCommitted
}

func (e *drainState) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	e.commit()
}
