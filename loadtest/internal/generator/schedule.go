package generator

import (
	"math"
	"time"
)

// due is the time from the start at which message i (from 0) is sent, at a rate in messages per second.
// It depends on nothing else: a late message does not delay the following ones.
func due(i int64, rate float64) time.Duration {
	// Whole seconds are computed separately, so that long runs lose no precision.
	seconds := math.Floor(float64(i) / rate)
	rest := float64(i) - seconds*rate
	return time.Duration(seconds)*time.Second + time.Duration(rest/rate*float64(time.Second))
}

// dueWithin returns how many messages are due within d.
func dueWithin(d time.Duration, rate float64) int64 {
	n := int64(math.Ceil(d.Seconds() * rate))
	for n > 0 && due(n-1, rate) >= d {
		n--
	}
	for due(n, rate) < d {
		n++
	}
	return n
}

// spread assigns connections to targets in turn, so that each target gets an equal share of connections
// and of senders. Connection i belongs to process i modulo processes. If the two numbers have a common
// divisor, a process would only ever use some of the targets, so the assignment shifts by one target each
// time the pattern repeats.
func spread(i, processes, targets int) int {
	return (i + i/leastCommonMultiple(processes, targets)) % targets
}

func leastCommonMultiple(a, b int) int {
	x, y := a, b
	for y != 0 {
		x, y = y, x%y
	}
	return a / x * b
}

// turns assigns the messages of a schedule to senders in turn: message i belongs to sender i modulo
// senders. Each process iterates over its own senders only, which are first, first+stride, ...
type turns struct {
	senders, first, stride int

	round  int64
	sender int
}

func newTurns(senders, first, stride int) turns {
	return turns{senders: senders, first: first, stride: stride, sender: first}
}

// index is the number of the next message, or false if this process has no sender.
func (t *turns) index() (int64, bool) {
	if t.first >= t.senders {
		return 0, false
	}
	return t.round*int64(t.senders) + int64(t.sender), true
}

func (t *turns) next() {
	if t.sender += t.stride; t.sender >= t.senders {
		t.sender = t.first
		t.round++
	}
}

// skip skips all messages below the given number and returns how many there were.
func (t *turns) skip(to int64) (skipped int64) {
	index, ok := t.index()
	if !ok || index >= to {
		return 0
	}
	before := t.ours(index)
	t.round, t.sender = to/int64(t.senders), t.first
	for at, _ := t.index(); at < to; at, _ = t.index() {
		t.next()
	}
	return t.ours(to) - before
}

// ours returns how many messages below the given number belong to this process.
func (t *turns) ours(below int64) int64 {
	sendersBelow := func(n int64) int64 { return max(0, (n-int64(t.first)+int64(t.stride)-1)/int64(t.stride)) }
	senders := int64(t.senders)
	return below/senders*sendersBelow(senders) + sendersBelow(below%senders)
}
