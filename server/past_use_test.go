package server

import (
	"testing"
	"time"

	"carillon/server/internal/limit"
)

func TestPastUse(t *testing.T) {
	var p pastUse
	of := func(d time.Duration) used { return used{loop: usage{d, 0}} }
	p.leave(1000, of(leastPast/2), 0)
	p.leave(1000, of(3*time.Millisecond), 0)
	p.leave(1000, of(5*time.Millisecond), 0)
	p.leave(2000, used{offloaded: usage{7 * time.Millisecond, 0}}, 0)
	if got := p.take(3000, 0); got != (used{}) {
		t.Errorf("somebody else inherits %v", got)
	}
	for _, want := range []time.Duration{5 * time.Millisecond, 3 * time.Millisecond, 0} {
		if got := p.take(1000, 0); got != of(want) {
			t.Errorf("one inherits %v, want %v", got, want)
		}
	}
	p.sweep(usageHalf)
	if got := p.take(2000, usageHalf); got.lately(usageHalf) != 3500*time.Microsecond {
		t.Errorf("half a life later %v is left of 7 ms", got.lately(usageHalf))
	}
	for i := range limit.Key(2 * maxPast) {
		p.leave(1000+i%50, of(time.Second), 0)
	}
	if p.count != maxPast {
		t.Errorf("it remembers %d", p.count)
	}
	p.sweep(20 * usageHalf)
	if p.count != 0 || p.lists.Len() != 0 {
		t.Errorf("%d are left of %d addresses", p.count, p.lists.Len())
	}
}

// Somebody sends one large message on each connection. Each connection goes on where the last one was, and others of the
// same address do not.
func TestWhoComesBackGoesOn(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast(), Limits: Limits{MaxMessage: 16 << 20}})
	loop := func(c *Conn, do func(w *workload)) {
		t.Helper()
		done := make(chan struct{})
		c.sh.postDo(c, 0, func() { do(c.needWorkload()); close(done) })
		<-done
	}
	past := usage{sum: 800 * time.Millisecond}
	alice := dial(t, s, "/echo")
	loop(onlyConn(t, s, "/echo"), func(w *workload) {
		past.at = s.engine.uptime()
		w.used = past
	})
	_ = alice.conn.Close()
	eventually(t, "she has gone", func() bool { return s.Count() == 0 })

	bob := dial(t, s, "/echo")
	bob.echoes("he says little")
	loop(onlyConn(t, s, "/echo"), func(w *workload) {
		if w.inherited {
			t.Error("he inherits although he has used nothing")
		}
	})
	cathy := dial(t, s, "/broadcast")
	cathy.write(masked(0x82, make([]byte, 8<<20)))
	conn, goesOn := onlyConn(t, s, "/broadcast"), false
	eventually(t, "she goes on where alice was", func() bool {
		loop(conn, func(w *workload) {
			now := s.engine.uptime()
			goesOn = w.inherited && w.used.lately(now) >= past.lately(now)-time.Millisecond
		})
		return goesOn
	})
}
