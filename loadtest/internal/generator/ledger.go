package generator

import "slices"

// verdict classifies a message.
type verdict uint8

const (
	fresh     verdict = iota // new, and later than all before it
	late                     // new, but after a later one of the same sender
	duplicate                // seen before
)

// maxGaps bounds the gaps remembered per connection. A message that fills a forgotten gap counts as missing
// and as duplicated.
const maxGaps = 4096

// gap is a range of messages of one stream that are missing although later ones have arrived.
type gap struct {
	stream   uint32
	from, to uint32 // the first, and the one after the last
}

// ledger tracks what every receiver got from every sender. The messages of one sender to one receiver form
// a stream, numbered from 0.
type ledger struct {
	streams int
	next    []uint32 // by receiver and stream: one more than the highest number received
	gaps    map[int][]gap

	received, duplicated, reordered int64
}

func newLedger(receivers, streams int) *ledger {
	return &ledger{streams: streams, next: make([]uint32, receivers*streams), gaps: map[int][]gap{}}
}

// note records a message.
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

// closeGap removes a late message from its gap and reports whether there was one.
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

// reached is one more than the highest number that a receiver got of a stream.
func (l *ledger) reached(receiver, stream int) uint32 {
	return l.next[receiver*l.streams+stream]
}
