package server

import (
	"time"

	"carillon/codec"
)

// runQueue is a loop's connections that have work to do. They are served in the order in which they have come, as if
// each had come later by many times what it has used of the loop lately. So connections that use much wait for each
// other and not the others for them, and nobody waits for ever. While nobody else wants the loop, they have all of it.
// Owned by the loop.
type runQueue struct {
	heap       indexedHeap[*workload]
	time       virtualTime
	charged    []*workload // that have nothing to do, and whose connection is remembered for what it has used
	blocked    []*workload // that wait for fan-out
	inflating  inflating   // that are being decompressed
	collecting collecting  // of which large messages are arriving
	orders     uint64
	relief     *time.Timer // looks again at those blocked, and at those that collect while others wait
	looks      bool        // relief is set

	awaitStall []*workload   // that may go on if the broker stands still
	stallLook  time.Duration // when these are looked at
	stall      *time.Timer   // then
}

const (
	// quantum is how long one connection is served before others are. Where very many wait it is shorter, so that all
	// of them have had a turn after runRound, but not shorter than leastQuantum.
	quantum      = 150 * time.Microsecond
	leastQuantum = 20 * time.Microsecond
	runRound     = 5 * time.Millisecond

	// requestDelay is how long requests give way on a busy loop to what costs less. The first one of a connection may
	// already take some milliseconds, which it has not been charged for.
	requestDelay = time.Second

	// chargeFrom is the least time that is charged to a connection outside its turns in the queue.
	chargeFrom = quantum / 4
)

// quantum is how long a connection is served now.
func (q *runQueue) quantum() time.Duration {
	return max(min(quantum, runRound/time.Duration(max(len(q.heap), 1))), leastQuantum)
}

// isLong reports whether so many connections wait that each is served for less than a quantum.
func (q *runQueue) isLong() bool { return len(q.heap) > int(runRound/quantum) }

// turnEnd is until when a connection is served at once, without the run queue.
func (sh *shard) turnEnd() time.Duration { return sh.began + sh.run.quantum() }

// now is the time of the queue.
func (q *runQueue) now(now time.Duration) time.Duration { return q.time.at(now, len(q.heap) == 0) }

// pop takes the connection that is to be served first.
func (q *runQueue) pop() *workload {
	w := q.heap.pop()
	q.time.served(w.tag)
	return w
}

// schedule puts a connection into the queue if it has something to do.
func (q *runQueue) schedule(w *workload) {
	if w == nil || w.index >= 0 || w.served || !w.isRunnable() {
		return
	}
	q.orders++
	now := w.conn.sh.began
	w.tag, w.order = max(q.now(now)+w.used.delay(now), w.notBefore), q.orders
	if w.canAnswer() && !w.requests.first().quick {
		w.tag += requestDelay
	}
	q.heap.push(w)
}

// wouldWait reports whether a connection comes after the first one in the queue for what it has used.
func (q *runQueue) wouldWait(w *workload) bool {
	now := w.conn.sh.began
	return len(q.heap) > 0 && !w.used.isForgotten(now) && q.now(now)+w.used.delay(now) > q.heap[0].tag
}

// runQueued serves connections that have work to do: for a slice, or one of them with something that takes longer.
func (sh *shard) runQueued() {
	q := &sh.run
	var early []*workload // what they asked for has to wait for commands
	if len(q.heap) == 0 {
		return
	}
	clock := startWorkClock()
	for start := sh.engine.uptime(); len(q.heap) > 0; {
		w := q.pop()
		began := sh.engine.uptime()
		w.served, w.maxTurn = true, 0
		w.conn.serve(w, began+q.quantum())
		w.served = false
		now := sh.engine.uptime()
		took := clock.took(now - began)
		if w.maxTurn > 0 {
			took = min(took, w.maxTurn)
		}
		w.used.addTurn(took, now)
		if w.requests.len() > 0 && w.requests.first().after > sh.ran {
			early = append(early, w)
		} else {
			q.schedule(w)
		}
		w.conn.settleWorkload(w)
		sh.admitInflating()
		if now-start > sliceTime {
			break
		}
	}
	for _, w := range early {
		q.schedule(w)
	}
}

// forget lets go of what connections have used that no longer delays them.
func (q *runQueue) forget() {
	list := q.charged
	q.charged = nil
	for _, w := range list {
		w.listed = false
		if w.conn.workload() == w {
			w.conn.settleWorkload(w)
		}
	}
}

// Connections that publish faster than loops can hand out wait until the loops have caught up, so that TCP slows them
// down and nothing has to be refused.

// relieveEvery is how often a loop checks whether blocked connections may go on, and relieveAtLast when they may in any
// case: the fan-out that keeps a loop busy can be that of others, which are told that the server is overloaded.
const (
	relieveEvery  = time.Millisecond
	relieveAtLast = 10 * time.Millisecond
)

// muchBacklog is how many bytes a loop may have to hand out, at most, before publishers wait.
const muchBacklog = 1 << 20

// congested reports whether a loop has much to hand out.
func (e *engine) congested() bool {
	most := e.muchBacklog()
	for _, sh := range e.allShards() {
		if sh.backlog.Load() > most {
			return true
		}
	}
	return false
}

func (e *engine) muchBacklog() int64 { return min(e.settings().maxBacklog/16, muchBacklog) }

func (sh *shard) isCongested() bool { return sh.backlog.Load() > sh.engine.muchBacklog() }

// fanout counts what was published to connections of this server.
func (e *engine) fanout() (n uint64) {
	for _, sh := range e.allShards() {
		n += sh.fanout.Load()
	}
	return n
}

// notCongested is no number of messages.
const notCongested = ^uint64(0)

// fanoutIfCongested counts what has been published, if a loop has much to hand out.
func (sh *shard) fanoutIfCongested() uint64 {
	if !sh.engine.congested() {
		return notCongested
	}
	return sh.engine.fanout()
}

// block has a connection wait if it has published something since fanout was counted.
func (c *Conn) block(fanout uint64) bool {
	sh := c.sh
	if fanout == notCongested || sh.engine.fanout() == fanout {
		return false
	}
	if w := c.needWorkload(); w.blockedAt == 0 {
		sh.awaitRelief(w)
	}
	return true
}

// largeMessage is the size in bytes from which on a message is held back on a loop that has much to hand out: such as
// its echo would have all others wait longer.
const largeMessage = 64 << 10

// holdBack has a connection wait with a large message that is arriving, if its loop has much to hand out.
func (c *Conn) holdBack(d *codec.Decoder) bool {
	sh := c.sh
	if d.Buffered() < largeMessage || d.Suspended() || !sh.isCongested() {
		return false
	}
	w := c.needWorkload()
	if w.passes {
		w.passes = false
		return false
	}
	if w.blockedAt == 0 {
		w.heldBack = true
		sh.awaitRelief(w)
	}
	return true
}

func (sh *shard) awaitRelief(w *workload) {
	w.blockedAt = sh.engine.uptime()
	sh.run.blocked = append(sh.run.blocked, w)
	sh.lookForRelief()
}

// lookForRelief has relieve called soon. Those that come meanwhile do not put it off.
func (sh *shard) lookForRelief() {
	switch q := &sh.run; {
	case q.looks:
		return
	case q.relief == nil:
		q.relief = time.AfterFunc(relieveEvery, sh.postRelief)
	default:
		q.relief.Reset(relieveEvery)
	}
	sh.run.looks = true
}

// relieve lets connections go on that wait for fan-out, or were held back. Of those held back for long it lets one go
// on: what it says may be as much again.
func (sh *shard) relieve() {
	q := &sh.run
	q.looks = false
	sh.endStallWait()
	sh.movePlaces()
	if len(q.blocked) == 0 {
		return
	}
	congested, busy, now, rest := sh.engine.congested(), sh.isCongested(), sh.engine.uptime(), q.blocked[:0]
	passed := false
	for _, w := range q.blocked {
		long := now-w.blockedAt >= relieveAtLast
		waits := w.blockedAt != 0 && congested && !long
		if w.blockedAt != 0 && w.heldBack {
			waits = busy && (passed || !long)
			w.passes = busy && !waits
			passed = passed || w.passes
		}
		if waits {
			rest = append(rest, w)
			continue
		}
		w.blockedAt, w.heldBack = 0, false
		q.schedule(w)
	}
	clear(q.blocked[len(rest):])
	q.blocked = rest
	if len(rest) > 0 {
		sh.lookForRelief()
	}
}
