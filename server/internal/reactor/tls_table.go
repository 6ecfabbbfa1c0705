package reactor

import (
	"container/list"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"carillon/internal/indexheap"
	"carillon/internal/shrink"
	"carillon/server/internal/limit"
)

// TLSTable holds the TLS handshakes that are under way, and shares out the two things that they need.
//
// The processors: only a part of them computes handshakes, because a loop would otherwise wait for all that were
// ready before it. They go to handshakes whose clients have answered, and then to those that have not begun, one of
// each address in turn. An address that had none waiting comes first: when there is more to do than can be done, those
// that have just come still get an answer, instead of all too late. See [TLSSuspects] for those that come last.
//
// The memory: a handshake that has begun keeps a goroutine and about 30 KB until its client answers, which costs the
// client nothing. There is room for Limits.MaxTLSHandshakes of them. When the table is full, a newcomer takes the
// place of one that waits for its client: at once if the address of that one is suspect, or has more handshakes there
// than the newcomer's and more than tlsShare allows, and otherwise when it has been silent for tlsGrace, so that
// clients on slow networks are not cut off for each other. In each case it is the one that has been silent for
// longest. A handshake that has not begun costs only its first message, and its socket.
//
// Its methods may be called from any goroutine.
type TLSTable struct {
	engine *Engine
	Unread atomic.Int64 // bytes that came for all handshakes and were not read

	Mu       sync.Mutex
	Grace    time.Duration                   // guarded by mu: tlsGrace, but in tests
	Idle     int                             // guarded by mu: processors that compute no handshake and may
	open     int                             // guarded by mu: handshakes that have begun
	waiting  int                             // guarded by mu: handshakes that have not
	Peers    shrink.Map[limit.Key, *tlsPeer] // guarded by mu: those that have handshakes
	Turns    [numTLSQueues]list.List         // guarded by mu: of *tlsPeer that have a handshake in that queue
	Crowded  indexheap.Heap[*tlsPeer]        // guarded by mu: those with silent handshakes
	Silent   list.List                       // guarded by mu: of *tlsHandshake, the one that has been silent for longest first
	suspects tlsSuspects                     // guarded by mu
	timer    *time.Timer                     // guarded by mu: dispatches when the grace of a handshake ends; nil if unset
}

// tlsGrace is how long a client has to answer while the table is full and its address has no more handshakes in it
// than others: longer than the round trip of nearly every network.
const tlsGrace = time.Second

// tlsShare is the part of the table of which one address may have more than others.
const tlsShare = 16

// tlsQueue is what a handshake waits for a processor with.
type tlsQueue uint8

const (
	TLSResumed   tlsQueue = iota // its client has answered
	TLSNewcomers                 // it has not begun
	TLSBehind                    // nor has this one, whose address is suspect
	numTLSQueues
)

// tlsState is where a handshake is in the table.
type tlsState uint8

const (
	tlsQueued    tlsState = iota // in one of the queues of its peer
	tlsComputing                 // has a processor
	tlsSilent                    // waits for its client
	tlsDone                      // is not in the table any more
)

// tlsPeer is one client address. Everything in it is guarded by the table's mu.
type tlsPeer struct {
	key     limit.Key
	suspect bool                        // see TLSSuspects
	queues  [numTLSQueues]list.List     // of *tlsHandshake
	turns   [numTLSQueues]*list.Element // its places in the table's turns
	silent  list.List                   // of *tlsHandshake, the one that has been silent for longest first
	open    int                         // handshakes that have begun
	slot    int                         // in crowded
}

func (p *tlsPeer) quietest() *tlsHandshake { return p.silent.Front().Value.(*tlsHandshake) }

// Before has suspect peers evicted first, then the one with most silent handshakes, and of several the one with the
// quietest.
func (p *tlsPeer) Before(other *tlsPeer) bool {
	if p.suspect != other.suspect {
		return p.suspect
	}
	if a, b := p.silent.Len(), other.silent.Len(); a != b {
		return a > b
	}
	return p.quietest().since < other.quietest().since
}

func (p *tlsPeer) Place() *int { return &p.slot }

func newTLSTable(e *Engine) *TLSTable {
	return &TLSTable{engine: e, Grace: tlsGrace, Idle: max(1, runtime.GOMAXPROCS(0)-1)}
}

// enter takes a handshake in. It begins as soon as it can.
func (t *TLSTable) enter(h *tlsHandshake, from limit.Key) {
	t.Mu.Lock()
	defer t.Mu.Unlock()
	p := t.Peers.Get(from)
	if p == nil {
		p = &tlsPeer{key: from, suspect: t.suspects.has(from, t.engine.Uptime())}
		t.Peers.Set(from, p)
	}
	h.peer = p
	t.waiting++
	if p.suspect {
		t.queue(h, TLSBehind)
	} else {
		t.queue(h, TLSNewcomers)
	}
	t.dispatch()
}

// pause gives up the processor of a handshake that has to wait for its client.
func (t *TLSTable) pause(h *tlsHandshake) {
	t.Mu.Lock()
	defer t.Mu.Unlock()
	if h.state != tlsComputing {
		return
	}
	p := h.peer
	t.Idle++
	h.state, h.since = tlsSilent, t.engine.Uptime()
	h.place, h.silence = p.silent.PushBack(h), t.Silent.PushBack(h)
	if p.silent.Len() == 1 {
		t.Crowded.Insert(p)
	} else {
		t.Crowded.Moved(p)
	}
	t.dispatch()
}

// resume waits for a processor, or for the end of the handshake.
func (t *TLSTable) resume(h *tlsHandshake) {
	t.Mu.Lock()
	if h.state == tlsSilent {
		t.unsilence(h)
		t.queue(h, TLSResumed)
		t.dispatch()
	}
	t.Mu.Unlock()
	select {
	case <-h.turn:
	case <-h.dead:
	}
}

// leave takes a handshake out whose client has gone. One that has begun leaves when its goroutine ends.
func (t *TLSTable) leave(h *tlsHandshake) {
	t.Mu.Lock()
	defer t.Mu.Unlock()
	if h.state == tlsQueued && !h.begun {
		t.unqueue(h)
		t.waiting--
		h.state = tlsDone
		t.forget(h.peer)
	}
}

// finish takes a handshake out whose goroutine ends.
func (t *TLSTable) finish(h *tlsHandshake, err error) {
	t.Mu.Lock()
	defer t.Mu.Unlock()
	switch {
	case err == nil:
		t.suspects.remove(h.peer.key)
		t.setSuspect(h.peer, false)
	case h.state == tlsSilent:
		t.suspect(h.peer)
	}
	t.remove(h)
	t.dispatch()
}

// remove takes a handshake out that has begun, unless that was done before. The caller holds mu.
func (t *TLSTable) remove(h *tlsHandshake) {
	switch h.state {
	case tlsDone:
		return
	case tlsComputing:
		t.Idle++
	case tlsSilent:
		t.unsilence(h)
	case tlsQueued:
		t.unqueue(h)
	}
	h.state = tlsDone
	t.open--
	h.peer.open--
	t.forget(h.peer)
}

// suspect is called when a client did not go on with its handshake. The caller holds mu.
func (t *TLSTable) suspect(p *tlsPeer) {
	t.suspects.add(p.key, t.engine.Uptime())
	t.setSuspect(p, true)
}

// setSuspect holds for handshakes of a peer that come from now on. The caller holds mu.
func (t *TLSTable) setSuspect(p *tlsPeer, is bool) {
	if p.suspect == is {
		return
	}
	p.suspect = is
	if p.silent.Len() > 0 {
		t.Crowded.Moved(p)
	}
}

// queue puts a handshake behind the others of its peer. The caller holds mu.
func (t *TLSTable) queue(h *tlsHandshake, q tlsQueue) {
	p := h.peer
	h.state, h.queue = tlsQueued, q
	h.place = p.queues[q].PushBack(h)
	switch {
	case p.turns[q] != nil:
	case q == TLSNewcomers:
		p.turns[q] = t.Turns[q].PushFront(p)
	default:
		p.turns[q] = t.Turns[q].PushBack(p)
	}
}

// unqueue is the opposite of queue. The caller holds mu.
func (t *TLSTable) unqueue(h *tlsHandshake) {
	p, q := h.peer, h.queue
	p.queues[q].Remove(h.place)
	h.place = nil
	if p.queues[q].Len() == 0 {
		t.Turns[q].Remove(p.turns[q])
		p.turns[q] = nil
	}
}

// unsilence takes a handshake out of those that wait for their clients. The caller holds mu.
func (t *TLSTable) unsilence(h *tlsHandshake) {
	p := h.peer
	p.silent.Remove(h.place)
	t.Silent.Remove(h.silence)
	h.place, h.silence = nil, nil
	if p.silent.Len() == 0 {
		t.Crowded.Remove(p)
	} else {
		t.Crowded.Moved(p)
	}
}

// forget drops a peer that has nothing left in the table. The caller holds mu.
func (t *TLSTable) forget(p *tlsPeer) {
	if p.open == 0 && p.queues[TLSNewcomers].Len()+p.queues[TLSBehind].Len() == 0 {
		t.Peers.Delete(p.key)
	}
}

// dispatch gives processors to the handshakes whose turn it is. The caller holds mu.
func (t *TLSTable) dispatch() {
	for t.Idle > 0 {
		h := t.next()
		if h == nil {
			return
		}
		t.unqueue(h)
		t.Idle--
		h.state = tlsComputing
		if h.begun {
			h.turn <- struct{}{}
			continue
		}
		h.begun = true
		t.waiting--
		t.open++
		h.peer.open++
		go h.session.run()
	}
}

// maxSkipped bounds how many peers are looked at that have too many handshakes in a full table.
const maxSkipped = 64

// next finds the handshake whose turn it is, and makes room for it. Its peer goes behind the others. It is nil when
// there is none, or none that there is room for. The caller holds mu.
func (t *TLSTable) next() *tlsHandshake {
	if peers := &t.Turns[TLSResumed]; peers.Len() > 0 {
		p := peers.Front().Value.(*tlsPeer)
		peers.MoveToBack(peers.Front())
		return p.queues[TLSResumed].Front().Value.(*tlsHandshake)
	}
	for _, q := range []tlsQueue{TLSNewcomers, TLSBehind} {
		peers := &t.Turns[q]
		for range min(peers.Len(), maxSkipped) {
			p := peers.Front().Value.(*tlsPeer)
			hasRoom := t.makeRoom(p, q)
			if !hasRoom && p.open == 0 {
				return nil // nor is there room for a peer that has more
			}
			peers.MoveToBack(peers.Front())
			if hasRoom {
				return p.queues[q].Front().Value.(*tlsHandshake)
			}
		}
	}
	return nil
}

// makeRoom reports whether the table has room for a handshake of a peer that waits in a queue. If it is full, one is
// evicted where that is fair. The caller holds mu.
func (t *TLSTable) makeRoom(p *tlsPeer, q tlsQueue) bool {
	most := t.engine.Settings().MaxTLSHandshakes
	if most < 0 || t.open < most {
		return true
	}
	if len(t.Crowded) == 0 {
		return false // all have a processor, or wait for one
	}
	worst := t.Crowded[0]
	isSuspect := worst.suspect && worst != p && q == TLSNewcomers
	if isSuspect || worst.silent.Len() > max(p.open+1, most/tlsShare) {
		t.evict(worst.quietest())
		return true
	}
	quietest := t.Silent.Front().Value.(*tlsHandshake)
	if left := quietest.since + t.Grace - t.engine.Uptime(); left > 0 {
		t.dispatchIn(left)
		return false
	}
	t.evict(quietest)
	return true
}

// evict takes out a handshake that waits for its client, and has its connection closed. The caller holds mu.
func (t *TLSTable) evict(h *tlsHandshake) {
	t.suspect(h.peer)
	t.remove(h)
	c := h.session.Conn
	c.sh.PostDo(c, 0, func() { c.evictTLS(h) })
}

// dispatchIn schedules another look. The caller holds mu.
func (t *TLSTable) dispatchIn(d time.Duration) {
	if t.timer != nil {
		return
	}
	t.timer = time.AfterFunc(d, func() {
		t.Mu.Lock()
		defer t.Mu.Unlock()
		t.timer = nil
		t.dispatch()
	})
}

// Counts are the handshakes that have begun, and those that wait for a processor or for room.
func (t *TLSTable) Counts() (running, waiting int) {
	t.Mu.Lock()
	defer t.Mu.Unlock()
	return t.open, t.waiting
}
