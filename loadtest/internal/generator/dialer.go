package generator

import (
	"net/netip"
	"time"
)

// DialTimeout bounds the time from connect(2) to the end of the handshake.
const DialTimeout = 10 * time.Second

// dialer opens the connections, evenly over the ramp or as fast as the server accepts them.
type dialer struct {
	sources   []netip.Addr
	startedAt int64
	started   int // connections attempted
	inFlight  int
	attempts  []attempt // oldest first
}

// attempt is a handshake in progress. It fails after DialTimeout.
type attempt struct{ slot, generation int32 }

// MaxDialing bounds the handshakes in progress in one process, so that no listen queue overflows.
const MaxDialing = 256

func (d *dialer) prepare(s *Spec) { d.sources = s.Sources.All() }

// turn starts the attempts that are due and fails those that have timed out.
func (d *dialer) turn(w *worker, now int64) (next int64) {
	next = now + int64(idleTurn)
	for n := 0; d.started < len(w.conns) && d.inFlight < MaxDialing; n++ {
		if w.spec.Ramp > 0 {
			at := d.startedAt + int64(due(int64(w.id(d.started)), float64(w.spec.Connections)/w.spec.Ramp.Seconds()))
			if at > now {
				next = min(next, at)
				break
			}
		}
		if n >= 64 {
			next = now
			break
		}
		d.inFlight++
		d.started++
		d.start(w, d.started-1, Monotonic())
	}
	d.expire(w, now)
	return next
}

func (d *dialer) start(w *worker, i int, now int64) {
	w.dial(i, now)
	if c := &w.conns[i]; c.state != stateClosed {
		d.attempts = append(d.attempts, attempt{int32(i), c.generation})
	}
}

// expire fails the attempts that have timed out.
func (d *dialer) expire(w *worker, now int64) {
	for len(d.attempts) > 0 {
		a := d.attempts[0]
		c := &w.conns[a.slot]
		if c.generation == a.generation && (c.state == stateDialing || c.state == stateUpgrading) {
			if now-c.began < int64(DialTimeout) {
				return
			}
			w.fail(int(a.slot), "no answer within "+DialTimeout.String())
		}
		d.attempts = d.attempts[1:]
	}
}

func (d *dialer) done(w *worker) bool { return d.started == len(w.conns) && d.inFlight == 0 }
