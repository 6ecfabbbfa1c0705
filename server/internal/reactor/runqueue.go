package reactor

import (
	"time"

	"carillon/codec"
	"carillon/internal/indexheap"
	"carillon/server/internal/fair"
)

// runQueue is a loop's connections that have work to do. They are served in the order in which they have come, as if
// each had come later by many times what it has used of the loop lately. So connections that use much wait for each
// other and not the others for them, and none waits forever. While no other wants the loop, they have all of it.
// Owned by the loop.
type runQueue struct {
	Heap       indexheap.Heap[*Workload]
	time       fair.VirtualTime
	charged    []*Workload // that have nothing to do, and whose connection is remembered for what it has used
	Blocked    []*Workload // that wait for fan-out
	inflating  inflating   // that are being decompressed
	Collecting collecting  // of which large messages are arriving
	orders     uint64
	relief     *time.Timer // looks again at those blocked, and at those that collect while others wait
	looks      bool        // relief is set

	awaitStall []*Workload   // that may go on if the broker stands still
	stallLook  time.Duration // when these are looked at
	stall      *time.Timer   // then
}

const (
	// quantum is how long one connection is served before others are. Where very many wait it is shorter, so that all
	// of them have had a turn after runRound, but not shorter than leastQuantum.
	quantum      = fair.Quantum
	leastQuantum = 20 * time.Microsecond
	runRound     = 5 * time.Millisecond

	// requestDelay is how long requests give way on a busy loop to what costs less. The first one of a connection may
	// already take some milliseconds, which it has not been charged for.
	requestDelay = time.Second

	// chargeFrom is the least time that is charged to a connection outside its turns in the queue.
	chargeFrom = quantum / 4
)

// Quantum is how long a connection is served now.
func (q *runQueue) Quantum() time.Duration {
	return max(min(quantum, runRound/time.Duration(max(len(q.Heap), 1))), leastQuantum)
}

// isLong reports whether so many connections wait that each is served for less than a quantum.
func (q *runQueue) isLong() bool { return len(q.Heap) > int(runRound/quantum) }

// TurnEnd is until when a connection is served at once, without the run queue.
func (sh *Shard) TurnEnd() time.Duration { return sh.Began + sh.Run.Quantum() }

// now is the time of the queue.
func (q *runQueue) now(now time.Duration) time.Duration { return q.time.At(now, len(q.Heap) == 0) }

// Pop takes the connection that is to be served first.
func (q *runQueue) Pop() *Workload {
	w := q.Heap.TakeFirst()
	q.time.Served(w.tag)
	return w
}

// Schedule puts a connection into the queue if it has something to do.
func (q *runQueue) Schedule(w *Workload) {
	if w == nil || w.Index >= 0 || w.Served || !w.isRunnable() {
		return
	}
	q.orders++
	now := w.Conn.sh.Began
	w.tag, w.order = max(q.now(now)+w.Used.Delay(now), w.notBefore), q.orders
	if w.canAnswer() && !w.Requests.first().quick {
		w.tag += requestDelay
	}
	q.Heap.Insert(w)
}

// wouldWait reports whether a connection comes after the first one in the queue for what it has used.
func (q *runQueue) wouldWait(w *Workload) bool {
	now := w.Conn.sh.Began
	return len(q.Heap) > 0 && !w.Used.IsForgotten(now) && q.now(now)+w.Used.Delay(now) > q.Heap[0].tag
}

// runQueued serves connections that have work to do: for a slice, or one of them with something that takes longer.
func (sh *Shard) runQueued() {
	q := &sh.Run
	var early []*Workload // what they asked for has to wait for commands
	if len(q.Heap) == 0 {
		return
	}
	clock := fair.StartWorkClock()
	for start := sh.Engine.Uptime(); len(q.Heap) > 0; {
		w := q.Pop()
		began := sh.Engine.Uptime()
		w.Served, w.MaxTurn = true, 0
		w.Conn.serve(w, began+q.Quantum())
		w.Served = false
		now := sh.Engine.Uptime()
		took := clock.Took(now - began)
		if w.MaxTurn > 0 {
			took = min(took, w.MaxTurn)
		}
		w.Used.AddTurn(took, now)
		if w.Requests.len() > 0 && w.Requests.first().after > sh.ran {
			early = append(early, w)
		} else {
			q.Schedule(w)
		}
		w.Conn.settleWorkload(w)
		sh.admitInflating()
		if now-start > sliceTime {
			break
		}
	}
	for _, w := range early {
		q.Schedule(w)
	}
}

// forget lets go of what connections have used that no longer delays them.
func (q *runQueue) forget() {
	list := q.charged
	q.charged = nil
	for _, w := range list {
		w.listed = false
		if w.Conn.Workload() == w {
			w.Conn.settleWorkload(w)
		}
	}
}

// Connections that publish faster than loops can hand out wait until the loops have caught up, so that TCP slows them
// down and nothing has to be refused.

// relieveEvery is how often a loop checks whether blocked connections may go on. They may in any case after
// relieveAtLast, and as much later as they have used of the loop lately, up to relieveDelay: the fan-out that keeps a
// loop busy can be that of others. While a loop is filling they wait for relieveFilling at most: what fills it may be
// messages of the application, which does not wait.
const (
	relieveEvery  = time.Millisecond
	relieveAtLast = 10 * time.Millisecond
	relieveDelay  = time.Second

	relieveFilling = 5 * time.Second
)

// MuchBacklog is how many bytes a loop may have to hand out, at most, before publishers wait.
const MuchBacklog = 1 << 20

// congested reports whether a loop has much to hand out.
func (e *Engine) congested() bool { return e.isBehind(e.muchBacklog()) }

// isFilling reports whether a loop has so much to hand out that no publisher may go on, so that others need not wait
// long for theirs, and none is refused.
func (e *Engine) isFilling() bool { return e.isBehind(e.filling()) }

func (e *Engine) filling() int64 { return e.Settings().MaxBacklog / 8 }

func (sh *Shard) isFilling() bool { return sh.Backlog.Load() > sh.Engine.filling() }

func (e *Engine) isBehind(most int64) bool {
	for _, sh := range e.AllShards() {
		if sh.Backlog.Load() > most {
			return true
		}
	}
	return false
}

func (e *Engine) muchBacklog() int64 { return min(e.Settings().MaxBacklog/16, MuchBacklog) }

func (sh *Shard) isCongested() bool { return sh.Backlog.Load() > sh.Engine.muchBacklog() }

// fanout counts what was published to connections of this server.
func (e *Engine) fanout() (n uint64) {
	for _, sh := range e.AllShards() {
		n += sh.Fanout.Load()
	}
	return n
}

// notCongested is no number of messages.
const notCongested = ^uint64(0)

// fanoutIfCongested counts what has been published, if a loop has much to hand out.
func (sh *Shard) fanoutIfCongested() uint64 {
	if !sh.Engine.congested() {
		return notCongested
	}
	return sh.Engine.fanout()
}

// block has a connection wait if it has published something since fanout was counted.
func (c *Conn) block(fanout uint64) bool {
	sh := c.sh
	if fanout == notCongested || sh.Engine.fanout() == fanout {
		return false
	}
	if w := c.NeedWorkload(); w.blockedAt == 0 {
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
	w := c.NeedWorkload()
	if w.passes {
		w.passes = false
		return false
	}
	if w.blockedAt == 0 {
		w.HeldBack = true
		sh.awaitRelief(w)
	}
	return true
}

func (sh *Shard) awaitRelief(w *Workload) {
	w.blockedAt = sh.Engine.Uptime()
	sh.Run.Blocked = append(sh.Run.Blocked, w)
	sh.lookForRelief()
}

// lookForRelief has relieve called soon. Those that come meanwhile do not put it off.
func (sh *Shard) lookForRelief() {
	switch q := &sh.Run; {
	case q.looks:
		return
	case q.relief == nil:
		q.relief = time.AfterFunc(relieveEvery, sh.postRelief)
	default:
		q.relief.Reset(relieveEvery)
	}
	sh.Run.looks = true
}

// relieve lets connections go on that wait for fan-out, or were held back. Of those that have waited for long it lets
// one go on, since what it says may be as much again, and while a loop is filling one that has waited for very long:
// very many publishers that use little would fill it, each with one message. Those come first that have used least.
func (sh *Shard) relieve() {
	q := &sh.Run
	q.looks = false
	sh.endStallWait()
	sh.movePlaces()
	if len(q.Blocked) == 0 {
		return
	}
	congested, busy, now, rest := sh.Engine.congested(), sh.isCongested(), sh.Engine.Uptime(), q.Blocked[:0]
	var next *Workload
	if congested {
		next = q.nextPublisher(sh.Engine.isFilling(), now)
	}
	passed := false
	for _, w := range q.Blocked {
		waits := w.blockedAt != 0 && congested && w != next
		if w.blockedAt != 0 && w.HeldBack {
			waits = busy && (passed || now-w.blockedAt < w.relievedAfter(now))
			w.passes = busy && !waits
			passed = passed || w.passes
		}
		if waits {
			rest = append(rest, w)
			continue
		}
		w.blockedAt, w.HeldBack = 0, false
		q.Schedule(w)
	}
	clear(q.Blocked[len(rest):])
	q.Blocked = rest
	if len(rest) > 0 {
		sh.lookForRelief()
	}
}

// nextPublisher is the one that goes on of those that have waited for fan-out for long enough: the one that has used
// least.
func (q *runQueue) nextPublisher(filling bool, now time.Duration) (next *Workload) {
	for _, w := range q.Blocked {
		waited := now - w.blockedAt
		if w.blockedAt == 0 || w.HeldBack || waited < w.relievedAfter(now) || filling && waited < relieveFilling {
			continue
		}
		if next == nil || w.Used.Delay(now) < next.Used.Delay(now) {
			next = w
		}
	}
	return next
}

// relievedAfter is how long a blocked connection waits at least, although its loop has much to hand out.
func (w *Workload) relievedAfter(now time.Duration) time.Duration {
	return relieveAtLast + min(w.Used.Delay(now), relieveDelay)
}
