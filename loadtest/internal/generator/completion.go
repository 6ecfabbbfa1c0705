package generator

import (
	"encoding/binary"
	"math/bits"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// arrival records how many receivers have a message, when it was due, and when the last of them got it.
type arrival struct {
	due, last int64
	receivers uint32
}

// maxArrivals bounds the messages that one process tracks. In longer runs it tracks every second message,
// every fourth, and so on.
const maxArrivals = 1 << 17

// arrivals tracks the messages of one sender whose number is a multiple of 1<<shift.
type arrivals struct {
	shift uint
	max   int
	rows  []arrival
}

// newArrivals divides maxArrivals among the senders. Each gets a power of two.
func newArrivals(senders int) []arrivals {
	limit := 1 << (bits.Len(uint(max(2, maxArrivals/max(senders, 1)))) - 1)
	list := make([]arrivals, senders)
	for i := range list {
		list[i].max = limit
	}
	return list
}

// note records that another receiver has a message.
func (a *arrivals) note(s stamp, now int64) {
	if s.sequence&(1<<a.shift-1) != 0 {
		return
	}
	i := int(s.sequence >> a.shift)
	if i >= len(a.rows) {
		for i >= a.max {
			a.thin()
			if s.sequence&(1<<a.shift-1) != 0 {
				return
			}
			i = int(s.sequence >> a.shift)
		}
		for i >= len(a.rows) {
			a.rows = append(a.rows, arrival{})
		}
	}
	row := &a.rows[i]
	row.receivers++
	row.due, row.last = s.due, now
}

// thin drops every second message.
func (a *arrivals) thin() {
	rows := a.rows[:0]
	for i := 0; i < len(a.rows); i += 2 {
		rows = append(rows, a.rows[i])
	}
	a.rows = rows
	a.shift++
}

// add merges the arrivals that another process recorded for the same sender.
func (a *arrivals) add(b arrivals) {
	for a.shift < b.shift {
		a.thin()
	}
	for b.shift < a.shift {
		b.thin()
	}
	for len(a.rows) < len(b.rows) {
		a.rows = append(a.rows, arrival{})
	}
	for i, row := range b.rows {
		sum := &a.rows[i]
		sum.receivers += row.receivers
		sum.due = max(sum.due, row.due)
		sum.last = max(sum.last, row.last)
	}
}

// complete records how long each message took to reach its last receiver. A message that did not reach all
// receivers counts as missing instead.
func (a *arrivals) complete(h *hdr.Histogram, receivers uint32) {
	for _, row := range a.rows {
		if receivers > 0 && row.receivers == receivers {
			record(h, row.last-row.due)
		}
	}
}

func (a *arrivals) pack() []byte {
	packed := binary.AppendUvarint(nil, uint64(a.shift))
	for _, row := range a.rows {
		packed = binary.AppendUvarint(packed, uint64(row.receivers))
		packed = binary.AppendVarint(packed, row.due)
		packed = binary.AppendVarint(packed, row.last-row.due)
	}
	return packed
}

func unpackArrivals(packed []byte) (a arrivals, ok bool) {
	shift, n := binary.Uvarint(packed)
	if n <= 0 || shift > 32 {
		return a, false
	}
	a.shift = uint(shift)
	for packed = packed[n:]; len(packed) > 0; {
		receivers, n := binary.Uvarint(packed)
		due, m := binary.Varint(packed[max(n, 0):])
		took, k := binary.Varint(packed[max(n, 0)+max(m, 0):])
		if n <= 0 || m <= 0 || k <= 0 {
			return a, false
		}
		packed = packed[n+m+k:]
		a.rows = append(a.rows, arrival{due: due, last: due + took, receivers: uint32(receivers)})
	}
	return a, true
}
