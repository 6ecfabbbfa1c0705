package reactor

import (
	"slices"
	"time"

	"carillon/codec"
)

const (
	// maxInflating is how many messages of a loop may be in the midst of being decompressed. Each holds what it has
	// become so far, up to limits.max_message; others wait as they came, which is about a thousandth of that for a
	// compression bomb.
	maxInflating = 8

	// yieldFrom is by how much more than twice what another one has used a connection must have used its loop, so that
	// its message leaves its place to that one's and begins anew later.
	yieldFrom = 2 * time.Millisecond
)

// inflating are the connections whose messages are in the midst of being decompressed, or wait for others that are.
// Owned by the loop.
type inflating struct {
	begun   []*Workload // at most MaxInflating, and some that are done meanwhile
	waiting []*Workload
}

// awaitInflater has a connection wait while as many messages as may are being decompressed.
func (c *Conn) awaitInflater(d *codec.Decoder) {
	w, q := c.NeedWorkload(), &c.sh.Run.inflating
	switch {
	case !d.PutOff():
		if !slices.Contains(q.begun, w) {
			q.begun = append(slices.DeleteFunc(q.begun, func(w *Workload) bool { return !w.inflatesNow() }), w)
		}
	case !w.inflates:
		w.inflates = true
		q.waiting = append(q.waiting, w)
		q.yieldTo(w)
	}
}

// inflatesNow reports whether a message of the connection is in the midst of being decompressed.
func (w *Workload) inflatesNow() bool {
	in := w.Conn.in
	return in != nil && w.Conn.Workload() == w && in.decoder.InProgress()
}

// yieldTo has the message of the connection that has used most of the loop leave its place to one that has used much
// less. Otherwise clients that are last in the run queue would keep the places from all others.
func (q *inflating) yieldTo(w *Workload) {
	var last *Workload
	var most time.Duration
	now := w.Conn.sh.Began
	for _, one := range q.begun {
		if used := one.Used.Lately(now); one.inflatesNow() && (last == nil || used > most) {
			last, most = one, used
		}
	}
	if last == nil || most < 2*w.Used.Lately(now)+yieldFrom {
		return
	}
	last.Conn.in.decoder.Yield()
	last.inflates = true
	q.waiting = append(q.waiting, last)
}

// admitInflating lets connections go on whose messages wait for others, those first that have used least of the loop.
func (sh *Shard) admitInflating() {
	q := &sh.Run.inflating
	for len(q.waiting) > 0 && sh.inflater.Suspended() < maxInflating {
		next := 0
		for i, w := range q.waiting {
			if w.Used.Lately(sh.Began) < q.waiting[next].Used.Lately(sh.Began) {
				next = i
			}
		}
		w := q.waiting[next]
		q.waiting = slices.Delete(q.waiting, next, next+1)
		if w.inflates {
			w.inflates = false
			sh.Run.Schedule(w)
			return
		}
	}
}
