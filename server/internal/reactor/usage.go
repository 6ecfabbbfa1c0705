package reactor

import (
	"time"

	"carillon/server/internal/sys"
)

// Usage is how much time a connection has used of something lately. It halves every UsageHalf, so for one that uses the
// same part all the time it is about that part of a second. The zero value is none. Owned by the loop.
type Usage struct {
	Sum time.Duration // as it was at that time
	At  time.Duration // after the server was made
}

const (
	usageHalf = 700 * time.Millisecond

	// usageWeight: a connection comes after those that came so many times later as the time that it has used. It tells
	// those that use much from those that use little even where thousands share a loop, each of which uses a
	// thousandth.
	usageWeight = 64

	// usageLittle and usageFree: where very many share a loop, ordinary clients use as much as those that do all they
	// can. So up to usageLittle, use is weighted by littleWeight and delays a client by littleDelay at most. From there
	// to usageFree it is weighted by freeWeight.
	usageLittle  = 8 * time.Millisecond
	usageFree    = 16 * time.Millisecond
	littleWeight = 8
	littleDelay  = 8 * time.Millisecond
	freeWeight   = 16

	// overrunWeight: what a turn takes longer than a quantum counts so many times more. All that come to the loop at
	// once wait for it, since it could not be interrupted.
	overrunWeight = 8

	// MaxDelay is for how long a connection may come after others that have used less.
	MaxDelay = 10 * time.Second
)

// Lately is what was used, less what is forgotten by now.
func (u *Usage) Lately(now time.Duration) time.Duration {
	passed := max(now-u.At, 0)
	sum := u.Sum >> min(passed/usageHalf, 63)
	return sum - sum*(passed%usageHalf)/(2*usageHalf)
}

// Add adds time that was used up to now.
func (u *Usage) Add(used, now time.Duration) {
	u.Sum = min(u.Lately(now)+used, time.Second)
	u.At = max(now, u.At)
}

// AddTurn adds a turn.
func (u *Usage) AddTurn(took, now time.Duration) {
	u.Add(took+overrunWeight*max(took-quantum, 0), now)
}

// Delay is for how long others come first that have used nothing.
func (u *Usage) Delay(now time.Duration) time.Duration {
	used := u.Lately(now)
	delay := min(littleWeight*used, littleDelay) + freeWeight*min(max(used-usageLittle, 0), usageFree-usageLittle) + usageWeight*max(used-usageFree, 0)
	return min(delay, MaxDelay)
}

// isForgotten reports whether so little was used that it does not matter any more.
func (u *Usage) isForgotten(now time.Duration) bool { return u.Lately(now) < 16*time.Microsecond }

// virtualTime is the clock of a queue whose members are delayed by [Usage.Delay]. As in start-time fair queueing, it
// shows the tag of the member that was served last, and so falls behind the real time under overload. A client that has
// used little then does not wait for all that came before it.
type virtualTime time.Duration

// maxBehind is how far it may fall behind, so that clients that have used much are served, too.
const maxBehind = 500 * time.Millisecond

// at returns the virtual time at a real time. In an empty queue they are the same.
func (q *virtualTime) at(now time.Duration, empty bool) time.Duration {
	if empty {
		*q = virtualTime(now)
	}
	*q = min(max(*q, virtualTime(now-maxBehind)), virtualTime(now))
	return time.Duration(*q)
}

// served notes that the member with this tag is served.
func (q *virtualTime) served(tag time.Duration) { *q = max(*q, virtualTime(tag)) }

// workClock measures work on a loop without the time in which the system ran other threads instead: no connection is to
// be charged for that. Owned by the loop.
type workClock struct {
	thread int
	used   time.Duration // processor time of the thread
	known  bool
	short  time.Duration // what short pieces have taken since then
}

func startWorkClock() (w workClock) {
	w.thread, w.used, w.known = sys.ThreadTime()
	return w
}

// took returns the time to charge for a piece of work that ends now, after so much elapsed time. It asks for the
// processor time only if that was longer than a quantum.
func (w *workClock) took(wall time.Duration) time.Duration {
	if wall <= quantum || !w.known {
		w.short += wall
		return wall
	}
	before := *w
	*w = startWorkClock()
	if w.thread != before.thread { // the goroutine has moved to another thread
		return quantum
	}
	return min(max(w.used-before.used-before.short, 0), wall)
}
