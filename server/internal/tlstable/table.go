// Package tlstable says which TLS handshakes compute, and which are evicted when there are too many.
package tlstable

import (
	"container/list"
	"runtime"
	"sync"
	"time"

	"carillon/internal/indexheap"
	"carillon/internal/shrink"
	"carillon/server/internal/limit"
)

// Table holds the TLS handshakes that are under way, and shares out the two things that they need.
//
// The processors: only a part of them computes handshakes, because a loop would otherwise wait for all that were
// ready before it. They go to handshakes whose clients have answered, and then to those that have not begun, one of
// each address in turn. An address that had none waiting comes first: when there is more to do than can be done, those
// that have just come still get an answer, instead of all too late. Those of suspects come last.
//
// The memory: a handshake that has begun keeps a goroutine and about 30 KB until its client answers, which costs the
// client nothing. There is room for a limited number of them. When the table is full, a newcomer takes the place of one
// that waits for its client: at once if the address of that one is suspect, or has more handshakes there than the
// newcomer's and more than share allows, and otherwise when it has been silent for grace, so that clients on slow
// networks are not cut off for each other. In each case it is the one that has been silent for longest. A handshake
// that has not begun costs only its first message, and its socket.
//
// Its methods may be called from any goroutine.
type Table struct {
	now   func() time.Duration
	limit func() int // of handshakes that have begun; negative for none

	mu       sync.Mutex
	grace    time.Duration                // guarded by mu
	idle     int                          // guarded by mu: processors that compute no handshake and may
	open     int                          // guarded by mu: handshakes that have begun
	waiting  int                          // guarded by mu: handshakes that have not
	peers    shrink.Map[limit.Key, *peer] // guarded by mu: those that have handshakes
	turns    [numQueues]list.List         // guarded by mu: of *peer that have a handshake in that queue
	crowded  indexheap.Heap[*peer]        // guarded by mu: those with silent handshakes
	silent   list.List                    // guarded by mu: of *Entry, the one that has been silent for longest first
	suspects suspects                     // guarded by mu
	timer    *time.Timer                  // guarded by mu: dispatches when the grace of a handshake ends; nil if unset
}

// Entry is a handshake in a [Table]. The exported fields are set before it enters.
type Entry struct {
	Begin func()          // begins the handshake on a goroutine of its own; must not block
	Evict func()          // called at most once, when it has lost its place; must not block, or call the table
	Gone  <-chan struct{} // closed when the client has gone

	turn chan struct{} // has a value when it has been given a processor

	// Guarded by the table's mu.
	peer    *peer
	begun   bool
	state   state         // queued at first
	queue   queue         // that it is in, while it is queued
	place   *list.Element // in that, or among the silent ones of its peer
	silence *list.Element // among the silent ones of all
	since   time.Duration // when it began to wait for its client
}

// defaultGrace is how long a client has to answer while the table is full and its address has no more handshakes in it
// than others: longer than the round trip of nearly every network.
const defaultGrace = time.Second

// share is the part of the table of which one address may have more than others.
const share = 16

// queue is what a handshake waits for a processor with.
type queue uint8

const (
	resumed   queue = iota // its client has answered
	newcomers              // it has not begun
	behind                 // nor has this one, whose address is suspect
	numQueues
)

// state is where a handshake is in the table.
type state uint8

const (
	queued    state = iota // in one of the queues of its peer
	computing              // has a processor
	silent                 // waits for its client
	done                   // is not in the table any more
)

// peer is one client address. Everything in it is guarded by the table's mu.
type peer struct {
	key     limit.Key
	suspect bool                     // see suspects
	queues  [numQueues]list.List     // of *Entry
	turns   [numQueues]*list.Element // its places in the table's turns
	silent  list.List                // of *Entry, the one that has been silent for longest first
	open    int                      // handshakes that have begun
	slot    int                      // in crowded
}

func (p *peer) quietest() *Entry { return p.silent.Front().Value.(*Entry) }

// Before has suspect peers evicted first, then the one with most silent handshakes, and of several the one with the
// quietest.
func (p *peer) Before(other *peer) bool {
	if p.suspect != other.suspect {
		return p.suspect
	}
	if a, b := p.silent.Len(), other.silent.Len(); a != b {
		return a > b
	}
	return p.quietest().since < other.quietest().since
}

func (p *peer) Place() *int { return &p.slot }

// New makes a table. now is a clock that only goes forward. limit is asked for each newcomer how many handshakes may
// have begun; negative is any number. All processors but one compute.
func New(now func() time.Duration, limit func() int) *Table {
	return &Table{now: now, limit: limit, grace: defaultGrace, idle: max(1, runtime.GOMAXPROCS(0)-1)}
}

// SetGrace changes how long a client has to answer while the table is full: a second by default. It is for tests.
func (t *Table) SetGrace(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grace = d
}

// Enter takes a handshake in. It begins as soon as it can.
func (t *Table) Enter(h *Entry, from limit.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers.Get(from)
	if p == nil {
		p = &peer{key: from, suspect: t.suspects.has(from, t.now())}
		t.peers.Set(from, p)
	}
	h.peer, h.turn = p, make(chan struct{}, 1)
	t.waiting++
	if p.suspect {
		t.queue(h, behind)
	} else {
		t.queue(h, newcomers)
	}
	t.dispatch()
}

// Pause gives up the processor of a handshake that has to wait for its client.
func (t *Table) Pause(h *Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.state != computing {
		return
	}
	p := h.peer
	t.idle++
	h.state, h.since = silent, t.now()
	h.place, h.silence = p.silent.PushBack(h), t.silent.PushBack(h)
	if p.silent.Len() == 1 {
		t.crowded.Insert(p)
	} else {
		t.crowded.Moved(p)
	}
	t.dispatch()
}

// Resume waits for a processor, or for the end of the handshake.
func (t *Table) Resume(h *Entry) {
	t.mu.Lock()
	if h.state == silent {
		t.unsilence(h)
		t.queue(h, resumed)
		t.dispatch()
	}
	t.mu.Unlock()
	select {
	case <-h.turn:
	case <-h.Gone:
	}
}

// Leave takes a handshake out whose client has gone. One that has begun leaves when its goroutine ends.
func (t *Table) Leave(h *Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.state == queued && !h.begun {
		t.unqueue(h)
		t.waiting--
		h.state = done
		t.forget(h.peer)
	}
}

// Finish takes a handshake out whose goroutine ends.
func (t *Table) Finish(h *Entry, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.suspects.remove(h.peer.key)
		t.setSuspect(h.peer, false)
	case h.state == silent:
		t.suspect(h.peer)
	}
	t.remove(h)
	t.dispatch()
}

// remove takes a handshake out that has begun, unless that was done before. The caller holds mu.
func (t *Table) remove(h *Entry) {
	switch h.state {
	case done:
		return
	case computing:
		t.idle++
	case silent:
		t.unsilence(h)
	case queued:
		t.unqueue(h)
	}
	h.state = done
	t.open--
	h.peer.open--
	t.forget(h.peer)
}

// suspect is called when a client did not go on with its handshake. The caller holds mu.
func (t *Table) suspect(p *peer) {
	t.suspects.add(p.key, t.now())
	t.setSuspect(p, true)
}

// setSuspect holds for handshakes of a peer that come from now on. The caller holds mu.
func (t *Table) setSuspect(p *peer, is bool) {
	if p.suspect == is {
		return
	}
	p.suspect = is
	if p.silent.Len() > 0 {
		t.crowded.Moved(p)
	}
}

// queue puts a handshake behind the others of its peer. The caller holds mu.
func (t *Table) queue(h *Entry, q queue) {
	p := h.peer
	h.state, h.queue = queued, q
	h.place = p.queues[q].PushBack(h)
	switch {
	case p.turns[q] != nil:
	case q == newcomers:
		p.turns[q] = t.turns[q].PushFront(p)
	default:
		p.turns[q] = t.turns[q].PushBack(p)
	}
}

// unqueue is the opposite of queue. The caller holds mu.
func (t *Table) unqueue(h *Entry) {
	p, q := h.peer, h.queue
	p.queues[q].Remove(h.place)
	h.place = nil
	if p.queues[q].Len() == 0 {
		t.turns[q].Remove(p.turns[q])
		p.turns[q] = nil
	}
}

// unsilence takes a handshake out of those that wait for their clients. The caller holds mu.
func (t *Table) unsilence(h *Entry) {
	p := h.peer
	p.silent.Remove(h.place)
	t.silent.Remove(h.silence)
	h.place, h.silence = nil, nil
	if p.silent.Len() == 0 {
		t.crowded.Remove(p)
	} else {
		t.crowded.Moved(p)
	}
}

// forget drops a peer that has nothing left in the table. The caller holds mu.
func (t *Table) forget(p *peer) {
	if p.open == 0 && p.queues[newcomers].Len()+p.queues[behind].Len() == 0 {
		t.peers.Delete(p.key)
	}
}

// dispatch gives processors to the handshakes whose turn it is. The caller holds mu.
func (t *Table) dispatch() {
	for t.idle > 0 {
		h := t.next()
		if h == nil {
			return
		}
		t.unqueue(h)
		t.idle--
		h.state = computing
		if h.begun {
			h.turn <- struct{}{}
			continue
		}
		h.begun = true
		t.waiting--
		t.open++
		h.peer.open++
		h.Begin()
	}
}

// maxSkipped bounds how many peers are looked at that have too many handshakes in a full table.
const maxSkipped = 64

// next finds the handshake whose turn it is, and makes room for it. Its peer goes behind the others. It is nil when
// there is none, or none that there is room for. The caller holds mu.
func (t *Table) next() *Entry {
	if peers := &t.turns[resumed]; peers.Len() > 0 {
		p := peers.Front().Value.(*peer)
		peers.MoveToBack(peers.Front())
		return p.queues[resumed].Front().Value.(*Entry)
	}
	for _, q := range []queue{newcomers, behind} {
		peers := &t.turns[q]
		for range min(peers.Len(), maxSkipped) {
			p := peers.Front().Value.(*peer)
			hasRoom := t.makeRoom(p, q)
			if !hasRoom && p.open == 0 {
				return nil // nor is there room for a peer that has more
			}
			peers.MoveToBack(peers.Front())
			if hasRoom {
				return p.queues[q].Front().Value.(*Entry)
			}
		}
	}
	return nil
}

// makeRoom reports whether the table has room for a handshake of a peer that waits in a queue. If it is full, one is
// evicted where that is fair. The caller holds mu.
func (t *Table) makeRoom(p *peer, q queue) bool {
	most := t.limit()
	if most < 0 || t.open < most {
		return true
	}
	if len(t.crowded) == 0 {
		return false // all have a processor, or wait for one
	}
	worst := t.crowded[0]
	isSuspect := worst.suspect && worst != p && q == newcomers
	if isSuspect || worst.silent.Len() > max(p.open+1, most/share) {
		t.evict(worst.quietest())
		return true
	}
	quietest := t.silent.Front().Value.(*Entry)
	if left := quietest.since + t.grace - t.now(); left > 0 {
		t.dispatchIn(left)
		return false
	}
	t.evict(quietest)
	return true
}

// evict takes out a handshake that waits for its client, and has its connection closed. The caller holds mu.
func (t *Table) evict(h *Entry) {
	t.suspect(h.peer)
	t.remove(h)
	h.Evict()
}

// dispatchIn schedules another look. The caller holds mu.
func (t *Table) dispatchIn(d time.Duration) {
	if t.timer != nil {
		return
	}
	t.timer = time.AfterFunc(d, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.timer = nil
		t.dispatch()
	})
}

// Counts are the handshakes that have begun, and those that wait for a processor or for room.
func (t *Table) Counts() (running, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open, t.waiting
}
