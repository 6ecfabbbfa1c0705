package generator

import "slices"

// verdict is what a ledger makes of one message.
type verdict uint8

const (
	fresh     verdict = iota // the first time, in order or with some before it missing so far
	late                     // the first time, but after a later one of the same sender
	duplicate                // not the first time
)

// maxGaps bounds what is remembered of one connection. A message that comes late after so many later
// gaps counts as missing and as duplicated.
const maxGaps = 4096

// gap is a run of messages of one stream that have not arrived, though later ones have.
type gap struct {
	stream   uint32
	from, to uint32 // the first, and the one after the last
}

// ledger keeps account of what every receiver got from every sender. All messages of one sender to one
// receiver are a stream, and are numbered from 0.
type ledger struct {
	streams int
	next    []uint32 // by receiver and stream: the number after the highest that has arrived
	gaps    map[int][]gap

	received, duplicated, reordered int64
}

func newLedger(receivers, streams int) *ledger {
	return &ledger{streams: streams, next: make([]uint32, receivers*streams), gaps: map[int][]gap{}}
}

// note enters one message.
func (l *ledger) note(receiver, stream int, sequence uint32) verdict {
	next := &l.next[receiver*l.streams+stream]
	if sequence == *next {
		*next++
		l.received++
		return fresh
	}
	if sequence > *next {
		l.openGap(receiver, gap{uint32(stream), *next, sequence})
		*next = sequence + 1
		l.received++
		return fresh
	}
	if l.closeGap(receiver, uint32(stream), sequence) {
		l.received++
		l.reordered++
		return late
	}
	l.duplicated++
	return duplicate
}

func (l *ledger) openGap(receiver int, g gap) {
	gaps := l.gaps[receiver]
	if len(gaps) >= maxGaps {
		gaps = slices.Delete(gaps, 0, 1)
	}
	l.gaps[receiver] = append(gaps, g)
}

// closeGap takes a late message out of its gap, and reports whether there was one.
func (l *ledger) closeGap(receiver int, stream, sequence uint32) bool {
	gaps := l.gaps[receiver]
	for i := len(gaps) - 1; i >= 0; i-- {
		g := &gaps[i]
		if g.stream != stream || sequence < g.from || sequence >= g.to {
			continue
		}
		before, after := *g, *g
		before.to, after.from = sequence, sequence+1
		switch {
		case before.from == before.to && after.from == after.to:
			gaps = slices.Delete(gaps, i, i+1)
		case before.from == before.to:
			*g = after
		case after.from == after.to:
			*g = before
		default:
			*g = before
			gaps = slices.Insert(gaps, i+1, after)
		}
		l.gaps[receiver] = gaps
		return true
	}
	return false
}

// reached is the number after the highest message of a stream that has arrived at a receiver.
func (l *ledger) reached(receiver, stream int) uint32 {
	return l.next[receiver*l.streams+stream]
}
