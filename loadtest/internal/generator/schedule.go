package generator

import (
	"math"
	"time"
)

// due is when message i (from 0) is to be sent, counted from the start, at a rate of messages a second.
// It depends on nothing else: a message that is sent late delays none of those after it.
func due(i int64, rate float64) time.Duration {
	// The whole seconds apart, so that a long run loses no nanosecond to rounding.
	seconds := math.Floor(float64(i) / rate)
	rest := float64(i) - seconds*rate
	return time.Duration(seconds)*time.Second + time.Duration(rest/rate*float64(time.Second))
}

// dueWithin is how many messages are due before the end of d.
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

// spread says which of the targets a connection goes to: one after the other, so that every target gets
// its share of any number of connections, and of the senders among them. Connection i belongs to process
// i modulo processes. When that number and the targets' have a common divisor, a process would go on
// meeting the same few targets, so everyone moves on by one target each time the pattern repeats.
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

// turns hands the messages of a schedule to senders, one after the other: message i is that of sender
// i modulo senders. Every process walks over its own senders only, which are first, first+stride, ...
type turns struct {
	senders, first, stride int

	round  int64
	sender int
}

func newTurns(senders, first, stride int) turns {
	return turns{senders: senders, first: first, stride: stride, sender: first}
}

// index is the number of the next message among those of all senders, or false when no sender is ours.
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

// skip goes past all messages below the given number, and says how many they were.
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

// ours is how many messages below the given number are those of our senders.
func (t *turns) ours(below int64) int64 {
	sendersBelow := func(n int64) int64 { return max(0, (n-int64(t.first)+int64(t.stride)-1)/int64(t.stride)) }
	senders := int64(t.senders)
	return below/senders*sendersBelow(senders) + sendersBelow(below%senders)
}
