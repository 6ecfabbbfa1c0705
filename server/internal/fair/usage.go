// Package fair shares a resource among clients by what each of them has used lately.
package fair

import "time"

// Usage is how much time a connection has used of something lately. It halves every usageHalf, so for one that uses the
// same part all the time it is about that part of a second. The zero value is none. Owned by the loop.
type Usage struct {
	Sum time.Duration // as it was at that time
	At  time.Duration // after the server was made
}

// Quantum is how long one client is served before others are.
const Quantum = 150 * time.Microsecond

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
	u.Add(took+overrunWeight*max(took-Quantum, 0), now)
}

// Delay is for how long others come first that have used nothing.
func (u *Usage) Delay(now time.Duration) time.Duration {
	used := u.Lately(now)
	delay := min(littleWeight*used, littleDelay) + freeWeight*min(max(used-usageLittle, 0), usageFree-usageLittle) + usageWeight*max(used-usageFree, 0)
	return min(delay, MaxDelay)
}

// IsForgotten reports whether so little was used that it does not matter any more.
func (u *Usage) IsForgotten(now time.Duration) bool { return u.Lately(now) < 16*time.Microsecond }

// VirtualTime is the clock of a queue whose members are delayed by [Usage.Delay]. As in start-time fair queueing, it
// shows the tag of the member that was served last, and so falls behind the real time under overload. A client that has
// used little then does not wait for all that came before it.
type VirtualTime time.Duration

// maxBehind is how far it may fall behind, so that clients that have used much are served, too.
const maxBehind = 500 * time.Millisecond

// At returns the virtual time at a real time. In an empty queue they are the same.
func (q *VirtualTime) At(now time.Duration, empty bool) time.Duration {
	if empty {
		*q = VirtualTime(now)
	}
	*q = min(max(*q, VirtualTime(now-maxBehind)), VirtualTime(now))
	return time.Duration(*q)
}

// Served notes that the member with this tag is served.
func (q *VirtualTime) Served(tag time.Duration) { *q = max(*q, VirtualTime(tag)) }
