package reactor

import (
	"slices"

	"carillon/codec"
)

const (
	// MaxCollecting is how many messages of a loop may be in the midst of being collected when more than collectFrom
	// bytes of each have come. The clients of others are not read. So it takes memory of MaxCollecting large messages
	// and not of all that have begun, and that memory is used again and again: new memory is a page fault each 4 KiB,
	// which takes longer than to read that much.
	MaxCollecting = 8
	collectFrom   = 32 << 10

	// While others wait, the loop looks at those that have places, as often as at blocked ones. After maxLooks in
	// between which too little has come of a message, its connection leaves its place, and gets another one in its
	// turn: for two looks. It is looks that count, because a loop that was kept from the processor has not read what
	// has come.
	maxLooks  = 8
	lookBytes = 8 << 10 // that must come from look to look
)

// collecting are the connections of which a large message is being collected, or waits for its place. Owned by the
// loop.
type collecting struct {
	Holders []*Workload // at most MaxCollecting
	first   placeQueue  // those that have had no place yet for the message
	again   placeQueue  // those that have lost one; they and the first take turns
	turn    bool        // of those in again
}

// placeQueue are connections in the order in which they have come, and some that wait no longer.
type placeQueue []*Workload

func (q *placeQueue) add(w *Workload) { *q = append(*q, w) }

// pop takes out the one that waits for longest, or nil.
func (q *placeQueue) pop() *Workload {
	for len(*q) > 0 {
		w := (*q)[0]
		(*q)[0] = nil
		*q = (*q)[1:]
		if w.awaitsPlace && w.Conn.Workload() == w && w.Conn.in != nil {
			return w
		}
	}
	return nil
}

// next takes out the one that is to have the next place, or nil.
func (q *collecting) next() *Workload {
	now, other := &q.first, &q.again
	if q.turn = !q.turn; q.turn {
		now, other = other, now
	}
	if w := now.pop(); w != nil {
		return w
	}
	return other.pop()
}

func (q *collecting) hasWaiting() bool { return len(q.first)+len(q.again) > 0 }

// collects reports whether the connection may go on with the message that is arriving. If not, it waits for a place.
func (c *Conn) collects(d *codec.Decoder) bool {
	q, w := &c.sh.Run.Collecting, c.Workload()
	arrived := d.Arrived()
	if arrived < collectFrom || d.Suspended() {
		if w != nil {
			w.lostPlace = false
			c.sh.leavePlace(w)
		}
		return true
	}
	if w = c.NeedWorkload(); w.collects {
		return true
	}
	if len(q.Holders) < MaxCollecting {
		q.admit(w, arrived)
		return true
	}
	if !w.awaitsPlace {
		w.awaitsPlace = true
		if w.lostPlace {
			q.again.add(w)
		} else {
			q.first.add(w)
		}
		c.sh.lookForRelief()
	}
	return false
}

// admit gives a connection a place.
func (q *collecting) admit(w *Workload, arrived int) {
	w.looks = maxLooks
	if w.lostPlace {
		w.looks = 2
	}
	w.collects, w.awaitsPlace, w.collected = true, false, arrived
	q.Holders = append(q.Holders, w)
}

// leavePlace gives the connection's place, if it has one, to one that waits.
func (sh *Shard) leavePlace(w *Workload) {
	if !w.collects {
		return
	}
	q := &sh.Run.Collecting
	w.collects = false
	q.Holders = slices.DeleteFunc(q.Holders, func(h *Workload) bool { return h == w })
	for len(q.Holders) < MaxCollecting {
		next := q.next()
		if next == nil {
			return
		}
		q.admit(next, next.Conn.in.decoder.Arrived())
		sh.Run.Schedule(next)
	}
}

// movePlaces takes the places of connections of which too little has come, or that wait for something else, such as a
// broker, and gives them to others.
func (sh *Shard) movePlaces() {
	q := &sh.Run.Collecting
	if !q.hasWaiting() {
		return
	}
	for _, w := range slices.Clone(q.Holders) {
		if w.Index >= 0 { // something has come, and waits for its turn
			continue
		}
		arrived := w.Conn.in.decoder.Arrived()
		w.looks = min(w.looks-1+(arrived-w.collected)/lookBytes, maxLooks)
		w.collected = arrived
		if w.looks <= 0 && q.hasWaiting() {
			w.lostPlace = true
			sh.leavePlace(w)
		}
	}
	if q.hasWaiting() {
		sh.lookForRelief()
	}
}
