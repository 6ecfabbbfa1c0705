package fair

import (
	"time"

	"carillon/server/internal/sys"
)

// WorkClock measures work on a loop without the time in which the system ran other threads instead: no connection is to
// be charged for that. Owned by the loop.
type WorkClock struct {
	thread int
	used   time.Duration // processor time of the thread
	known  bool
	short  time.Duration // what short pieces have taken since then
}

// StartWorkClock begins to measure on the thread of the caller.
func StartWorkClock() (w WorkClock) {
	w.thread, w.used, w.known = sys.ThreadTime()
	return w
}

// Took returns the time to charge for a piece of work that ends now, after so much elapsed time. It asks for the
// processor time only if that was longer than a quantum.
func (w *WorkClock) Took(wall time.Duration) time.Duration {
	if wall <= Quantum || !w.known {
		w.short += wall
		return wall
	}
	before := *w
	*w = StartWorkClock()
	if w.thread != before.thread { // the goroutine has moved to another thread
		return Quantum
	}
	return min(max(w.used-before.used-before.short, 0), wall)
}
