package server

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"carillon/codec"
	"carillon/server/stats"
)

// shard is all that one event loop owns. It is made when the loop accepts its first connection.
type shard struct {
	// Immutable.
	engine      *engine
	loop        gnet.EventLoop
	interest    interest
	tables      []*table  // those of the endpoints, see tablesOf, then the two below
	handshaking *table    // connections whose handshake is not complete
	closing     *table    // connections that are no members of an endpoint any more
	goroutine   goroutine // the loop's

	ownerData any // what the owner keeps for the loop; immutable

	mail       mailbox
	backlog    atomic.Int64  // bytes of messages that were posted and have not been handed to connections
	fanout     atomic.Uint64 // messages that were posted for many
	stats      stats.Counters
	histograms stats.Histograms         // each says who uses what of it
	called     atomic.Pointer[callSite] // what the loop has called last
	excess     atomic.Int64             // bytes that connections hold too much, for the next sweep
	partial    atomic.Int64             // bytes of large messages that are not complete; written by the loop

	// Guards the lists of connections in tables, and the values that applications attach.
	mu sync.Mutex

	// Owned by the loop.
	owner        goroutine
	set          *loopSettings // at the beginning of this turn
	site         *callSite     // as in called
	counters     turnCounters
	reading      inbox
	ran          uint64 // commands, ever
	run          runQueue
	sweep        sweep
	swept        time.Duration   // when the last sweep began, or was left out, after the server was made
	leftOut      bool            // it was left out
	began        time.Duration   // of this turn, after the server was made
	round        time.Duration   // that turns of sockets have taken since the loop was woken last
	clock        uint32          // the same in milliseconds; never 0
	sliced       bool            // the last turn that the loop was woken for did not finish its work
	pending      queue[audience] // audiences whose streams are not at their end
	departed     queue[Conn]     // that have left their topics and are in the audiences yet; written with mu held
	writable     queue[Conn]     // connections whose sockets take bytes again
	published    uint64          // messages to the streams of topics
	caughtUp     int             // bytes for one connection that may have had to be compressed
	goingAway    bool            // the server shuts down: nobody may stay
	stalled      []*Conn         // those that have an outbox
	lags         lags            // clients that have something to take before they can answer
	partials     []*inbound      // those that keep much of a message
	entrances    []entrance      // see listenerOf
	deadlines    deadlines
	timers       loopTimers
	lost         error // why the connection that is being closed was aborted
	decoder      codec.Decoder
	buffers      codec.Buffers // of the decoders
	rests        codec.Buffers // for input that waits
	inflater     *codec.Inflater
	freeInbound  []*inbound
	freeOutboxes []*outbox
	freePasses   []*pass
	chunk        []byte // for writing several waiting frames at once
	joined       []byte // for reading on behind an incomplete frame
	control      []byte // for a control frame or an HTTP response
	text         []byte // for a reply
	reply        []byte // for its frame
	clear        []byte // for what is decrypted
	sealed       []byte // for what is encrypted: empty but during a write or a read
}

// turnCounters is what a turn adds to the counters, all at once.
type turnCounters struct{ deliveries, bytesOut, writes uint64 }

func newShard(e *engine, loop gnet.EventLoop) (*shard, error) {
	sh := &shard{engine: e, loop: loop, set: e.settings()}
	sh.timers.sh = sh
	sh.histograms.Flushed = make([]stats.Histogram, 1+len(e.endpoints))
	if sh.goroutine = currentGoroutine(); e.checkOwner {
		sh.owner = sh.goroutine
	}
	sh.buffers.Max = maxBuffers
	sh.rests.Max, sh.rests.Min = maxBuffers, largeRest
	sh.decoder = sh.newDecoder()
	for _, ep := range e.endpoints {
		for range ep.framings {
			sh.tables = append(sh.tables, newTable(sh, ep))
		}
	}
	e.owner.newShard(sh)
	sh.handshaking, sh.closing = newTable(sh, nil), newTable(sh, nil)
	sh.tables = append(sh.tables, sh.handshaking, sh.closing)
	var err error
	if sh.interest, err = newInterest(loop); err != nil {
		return nil, err
	}
	sh.mail.waker, err = newWaker(sh)
	return sh, err
}

// maxBuffers is how many bytes of buffers for large messages a loop keeps for the next ones, and as many of those for
// input that waits.
const maxBuffers = 4 << 20

func (sh *shard) newDecoder() codec.Decoder {
	set := sh.engine.settings()
	return codec.Decoder{MaxMessage: set.maxMessage, MaxFragments: set.maxFragments, Buffers: &sh.buffers}
}

// check panics in tests when it is called on another goroutine than the loop's.
func (sh *shard) check() {
	if sh.owner != 0 {
		sh.owner.check()
	}
}

// beginTurn begins a turn of the loop. Commands that are posted now need not wake it, because the end of the turn
// looks.
func (sh *shard) beginTurn() {
	sh.check()
	if set := sh.engine.settings(); set != sh.set {
		sh.follow(set)
	}
	sh.readClock()
	sh.mail.mu.Lock()
	sh.mail.inTurn, sh.mail.began = true, sh.began
	sh.mail.mu.Unlock()
}

func (sh *shard) readClock() {
	sh.began = sh.engine.uptime()
	sh.clock = max(uint32(sh.began.Milliseconds()), 1)
}

// follow does what new settings ask of a shard that had others. Messages that have begun to come keep the
// limits with which they began.
func (sh *shard) follow(set *loopSettings) {
	sh.set = set
	sh.decoder = sh.newDecoder()
	for _, g := range sh.tables {
		g.charge(set)
	}
}

// endSocketTurn ends the turn of a socket: it runs commands and serves connections that have work to do, unless other
// sockets have waited long enough.
func (sh *shard) endSocketTurn() {
	if !sh.isCrowded() {
		sh.runCommands()
		sh.runQueued()
	}
	sh.addToRound(sh.endTurn())
}

// addToRound counts time that was spent on a socket. What comes on the others, once that is enough, waits until the
// loop is woken, which begins the next round.
func (sh *shard) addToRound(d time.Duration) {
	if sh.round += d; sh.isCrowded() {
		sh.wake()
	}
	sh.interest.limitReads(sh.isCrowded() || sh.run.isLong())
}

// endTurn ends a turn and returns how long it took. If something is left to do (new commands, work of connections,
// further slices of a walk or sweep), the loop is woken for another turn, after everything else that is ready on it.
func (sh *shard) endTurn() (took time.Duration) {
	sh.admitInflating()
	ended := sh.engine.uptime()
	sh.histograms.Turn.Since(sh.began, ended)
	sh.publishCounters()
	m := &sh.mail
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inTurn = false
	if len(m.commands) > 0 || m.tick || m.goAway || m.relief || m.timers || sh.busy() {
		m.wake()
	}
	return ended - sh.began
}

// wokenTurn is the turn that the loop was woken for. After a slice that left something to do, it first gives way once:
// epoll reports the waker before the sockets that became ready during the slice, and those have waited long enough.
func (sh *shard) wokenTurn() {
	woken := sh.mail.acknowledge()
	sh.beginTurn()
	sh.histograms.Lag.Since(woken, sh.began)
	sh.round = 0
	sh.interest.limitReads(sh.run.isLong())
	if sh.sliced {
		sh.sliced = false
		sh.runCommands()
		sh.endTurn()
		return
	}
	sh.relieve()
	sh.runCommands()
	sh.walk()
	sh.flushWritable()
	sh.settleDeparted(sh.sliceTime())
	sh.sweepOn()
	sh.timers.run()
	sh.runQueued()
	sh.runCommands()
	sh.endTurn()
	sh.sliced = sh.busy()
}

// sliceTime is how long a slice may take. A loop that has much to hand out does it in longer slices, which cost less.
func (sh *shard) sliceTime() time.Duration {
	if sh.backlog.Load() > sh.set.maxBacklog/16 {
		return 4 * sliceTime
	}
	return sliceTime
}

// walk hands out a slice of what was published, for the audiences in turn.
func (sh *shard) walk() {
	s := slice{start: time.Now(), time: sh.sliceTime()}
	for range sh.pending.len() {
		a := sh.pending.pop()
		if a.queued = !a.walk(&s); a.queued {
			sh.pending.push(a)
		}
		if s.over() {
			return
		}
	}
}

// flushWritable writes what waits for sockets that take bytes again, for a slice, in turn.
func (sh *shard) flushWritable() {
	for start, limit := time.Now(), sh.sliceTime(); sh.writable.len() > 0 && time.Since(start) <= limit; {
		if c := sh.writable.pop(); c.flushSome() {
			sh.writable.push(c)
		}
	}
}

func (sh *shard) busy() bool {
	return !sh.reading.done() || sh.sweep.running || sh.pending.len() > 0 || sh.writable.len() > 0 || sh.departed.len() > 0 || len(sh.run.heap) > 0 ||
		sh.timers.due || sh.goingAway && sh.occupied()
}

func (sh *shard) publishCounters() {
	if sh.counters != (turnCounters{}) {
		sh.stats.Deliveries.Add(sh.counters.deliveries)
		sh.stats.BytesOut.Add(sh.counters.bytesOut)
		sh.stats.Writes.Add(sh.counters.writes)
		sh.counters = turnCounters{}
	}
	sh.histograms.Publish()
}

// keepReply is the size of a buffer for replies that a quiet loop keeps.
const keepReply = 16 << 10

// dropReplies lets go of buffers that large replies have left behind.
func (sh *shard) dropReplies() {
	if cap(sh.text) > keepReply || cap(sh.reply) > keepReply {
		sh.text, sh.reply = nil, nil
	}
}

// tablesOf are the tables of an endpoint, by framing.
func (sh *shard) tablesOf(ep *loopEndpoint) []*table {
	return sh.tables[ep.firstTable : ep.firstTable+ep.framings]
}

// members copies the list, so that nothing is locked while somebody looks at it.
func (sh *shard) members() []*Conn {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var all []*Conn
	for _, g := range sh.tables {
		if g.ep != nil {
			for i := range g.members { // not by value: the loop writes what else is in a member
				all = append(all, g.members[i].conn)
			}
		}
	}
	return all
}
