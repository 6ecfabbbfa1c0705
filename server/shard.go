package server

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"carillon/codec"
)

// shard is all that one event loop owns. It is made when the loop accepts its first connection.
type shard struct {
	// Immutable.
	srv       *Server
	loop      gnet.EventLoop
	groups    []*group  // those of the endpoints, see groupsOf, then the two below
	shaking   *group    // connections whose handshake is not complete
	closing   *group    // connections that are no members of an endpoint any more
	goroutine goroutine // the loop's

	mail    mailbox
	backlog atomic.Int64 // bytes of messages that were posted and have not been handed to connections
	stats   counters
	meters  meters                   // each says who uses what of it
	called  atomic.Pointer[callSite] // what the loop has called last
	excess  atomic.Int64             // bytes that slow consumers have too much, for the next sweep

	// Guards the lists of connections in groups, and the values that applications attach.
	mu sync.Mutex

	// Owned by the loop.
	owner        goroutine
	set          *settings // at the beginning of this turn
	site         *callSite // as in called
	tally        tally
	reading      correspondence
	sweep        sweep
	began        time.Duration // of this turn, after the server was made
	clock        uint32        // the same in milliseconds; never 0
	sliced       bool          // the last turn that the bell asked for did not finish its work
	pending      queue         // audiences whose streams are not at their end
	goingAway    bool          // the server shuts down: nobody may stay
	stalled      []*Conn       // those that have an outbox
	entrances    []entrance    // see listenerOf
	deadlines    deadlines
	lost         error // why the connection that is being closed was aborted
	decoder      codec.Decoder
	inflater     *codec.Inflater
	request      Request
	via          codec.Via // of the request
	freeInbound  []*inbound
	freeOutboxes []*outbox
	freePasses   []*pass
	chunk        []byte // for writing several waiting frames at once
	joined       []byte // for reading on behind an incomplete frame
	control      []byte // for a control frame or an HTTP response
	clear        []byte // for what is decrypted
	sealed       []byte // for what is encrypted: empty but during a write or a read
}

// tally is what a turn adds to the counters, all at once.
type tally struct{ deliveries, bytesOut, writes uint64 }

func newShard(s *Server, loop gnet.EventLoop) (*shard, error) {
	sh := &shard{srv: s, loop: loop, set: s.settings()}
	sh.meters.flushed = make([]histogram, 1+len(s.endpoints))
	if sh.goroutine = currentGoroutine(); s.checkOwner {
		sh.owner = sh.goroutine
	}
	sh.decoder = s.newDecoder()
	for _, ep := range s.endpoints {
		for range ep.framings {
			sh.groups = append(sh.groups, newGroup(sh, ep))
		}
	}
	sh.shaking, sh.closing = newGroup(sh, nil), newGroup(sh, nil)
	sh.groups = append(sh.groups, sh.shaking, sh.closing)
	var err error
	sh.mail.bell, err = newBell(sh)
	return sh, err
}

// check panics in tests when it is called on another goroutine than the loop's.
func (sh *shard) check() {
	if sh.owner != 0 {
		sh.owner.check()
	}
}

// enter begins a turn of the loop: who posts now need not ring the bell, because leave looks.
func (sh *shard) enter() {
	sh.check()
	if set := sh.srv.settings(); set != sh.set {
		sh.follow(set)
	}
	sh.began = sh.srv.elapsed()
	sh.clock = max(uint32(sh.began.Milliseconds()), 1)
	sh.mail.mu.Lock()
	sh.mail.inTurn, sh.mail.began = true, sh.began
	sh.mail.mu.Unlock()
}

// follow does what new settings ask of a shard that had others. Messages that have begun to come keep the
// limits with which they began.
func (sh *shard) follow(set *settings) {
	sh.set = set
	sh.decoder = sh.srv.newDecoder()
	for _, g := range sh.groups {
		g.charge(set)
	}
}

// leave ends a turn: the letters are read, and if something is left to do, be it new letters or a
// walk or sweep that has further slices, the bell makes sure of the next turn. Everything else that
// is ready on the loop comes before that.
func (sh *shard) leave() {
	sh.readMail(false)
	if sh.backlog.Load() > sh.set.maxBacklog/16 {
		// Publishers are faster than the walk. A turn reads up to 64 KiB; now it also reads all letters
		// and hands out a batch, which is more, so that the backlog shrinks and TCP slows the
		// publishers down.
		sh.readMail(true)
		sh.walk(true)
	}
	sh.meters.turn.since(sh.began, sh.srv.elapsed())
	sh.settle()
	m := &sh.mail
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inTurn = false
	if len(m.letters) > 0 || m.tick || m.goAway || sh.busy() {
		m.wake()
	}
}

// rung is the turn that the bell asked for. After a slice that left something to do, it first gives way
// once: epoll reports the bell before the sockets that became ready during the slice, and those have
// waited long enough.
func (sh *shard) rung() {
	rung := sh.mail.heard()
	sh.enter()
	sh.meters.lag.since(rung, sh.began)
	if sh.sliced {
		sh.sliced = false
		sh.leave()
		return
	}
	sh.readMail(false)
	sh.walk(false)
	sh.sweepOn()
	sh.leave()
	sh.sliced = sh.busy()
}

// walk hands out what was published: a slice, for the audiences in turn, or a whole batch to at least
// one of them.
func (sh *shard) walk(whole bool) {
	s := slice{start: time.Now(), whole: whole}
	for range sh.pending.len() {
		a := sh.pending.pop()
		if a.queued = !a.walk(&s); a.queued {
			sh.pending.push(a)
		}
		if s.over() || whole && time.Since(s.start) > sliceTime {
			return
		}
	}
}

func (sh *shard) busy() bool {
	return !sh.reading.done() || sh.sweep.running || sh.pending.len() > 0 || sh.goingAway && sh.occupied()
}

func (sh *shard) settle() {
	if sh.tally != (tally{}) {
		sh.stats.Deliveries.Add(sh.tally.deliveries)
		sh.stats.BytesOut.Add(sh.tally.bytesOut)
		sh.stats.Writes.Add(sh.tally.writes)
		sh.tally = tally{}
	}
	sh.meters.publish()
}
