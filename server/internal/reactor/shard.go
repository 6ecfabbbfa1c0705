package reactor

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"carillon/codec"
	"carillon/server/internal/outbox"
	"carillon/server/stats"
)

// Shard is all that one event loop owns. It is made when the loop accepts its first connection.
type Shard struct {
	// Immutable.
	Engine      *Engine
	loop        gnet.EventLoop
	Interest    interest
	tables      []*Table  // those of the endpoints, see TablesOf, then the two below
	Handshaking *Table    // connections whose handshake is not complete
	closing     *Table    // connections that are no members of an endpoint any more
	goroutine   goroutine // the loop's

	OwnerData any // what the owner keeps for the loop; immutable

	Mail       mailbox
	Backlog    atomic.Int64  // bytes of messages that were posted and have not been handed to connections
	Fanout     atomic.Uint64 // messages that were posted for many
	Stats      stats.Counters
	Histograms stats.Histograms         // each says who uses what of it
	called     atomic.Pointer[callSite] // what the loop has called last
	excess     atomic.Int64             // bytes that connections hold too much, for the next sweep
	partial    atomic.Int64             // bytes of large messages that are not complete; written by the loop

	// Guards the lists of connections in tables, and the values that applications attach.
	Mu sync.Mutex

	// Owned by the loop.
	owner        goroutine
	Set          *LoopSettings // at the beginning of this turn
	site         *callSite     // as in called
	Counters     turnCounters
	Reading      inbox
	ran          uint64 // commands, ever
	Run          runQueue
	sweep        sweep
	swept        time.Duration   // when the last sweep began, or was left out, after the server was made
	leftOut      bool            // it was left out
	Began        time.Duration   // of this turn, after the server was made
	Round        time.Duration   // that turns of sockets have taken since the loop was woken last
	Clock        uint32          // the same in milliseconds; never 0
	sliced       bool            // the last turn that the loop was woken for did not finish its work
	step         int             // of such a turn, with which the next one begins
	late         bool            // the last such turn was late: see isLate
	Pending      queue[Audience] // audiences whose streams are not at their end
	Departed     queue[Conn]     // that have left their topics and are in the audiences yet; written with mu held
	writable     queue[Conn]     // connections whose sockets take bytes again
	published    uint64          // messages to the streams of topics
	caughtUp     int             // bytes for one connection that may have had to be compressed
	GoingAway    bool            // the server shuts down: no connection may stay
	Stalled      []*Conn         // those that have an outbox
	Lags         lags            // clients that have something to take before they can answer
	partials     []*inbound      // those that keep much of a message
	entrances    []entrance      // see listenerOf
	Deadlines    deadlines
	Timers       loopTimers
	lost         error // why the connection that is being closed was aborted
	decoder      codec.Decoder
	buffers      codec.Buffers // of the decoders
	rests        codec.Buffers // for input that waits
	inflater     *codec.Inflater
	freeInbound  []*inbound
	freeOutboxes []*outbox.Outbox
	freePasses   []*pass
	chunk        []byte // for writing several waiting frames at once
	joined       []byte // for reading on behind an incomplete frame
	Control      []byte // for a control frame or an HTTP response
	Text         []byte // for a reply
	Reply        []byte // for its frame
	clear        []byte // for what is decrypted
	sealed       []byte // for what is encrypted: empty but during a write or a read
}

// turnCounters is what a turn adds to the counters, all at once.
type turnCounters struct{ Deliveries, bytesOut, writes uint64 }

func newShard(e *Engine, loop gnet.EventLoop) (*Shard, error) {
	sh := &Shard{Engine: e, loop: loop, Set: e.Settings()}
	sh.Timers.sh = sh
	sh.Histograms.Flushed = make([]stats.Histogram, 1+len(e.Endpoints))
	if sh.goroutine = currentGoroutine(); e.checkOwner {
		sh.owner = sh.goroutine
	}
	sh.buffers.Max = maxBuffers
	sh.rests.Max, sh.rests.Min = maxBuffers, largeRest
	sh.decoder = sh.newDecoder()
	for _, ep := range e.Endpoints {
		for range ep.Framings {
			sh.tables = append(sh.tables, NewTable(sh, ep))
		}
	}
	e.owner.NewShard(sh)
	sh.Handshaking, sh.closing = NewTable(sh, nil), NewTable(sh, nil)
	sh.tables = append(sh.tables, sh.Handshaking, sh.closing)
	var err error
	if sh.Interest, err = newInterest(loop); err != nil {
		return nil, err
	}
	sh.Mail.waker, err = newWaker(sh)
	return sh, err
}

// maxBuffers is how many bytes of buffers for large messages a loop keeps for the next ones, and as many of those for
// input that waits.
const maxBuffers = 4 << 20

func (sh *Shard) newDecoder() codec.Decoder {
	set := sh.Engine.Settings()
	return codec.Decoder{MaxMessage: set.MaxMessage, MaxFragments: set.MaxFragments, Buffers: &sh.buffers}
}

// Check panics in tests when it is called on another goroutine than the loop's.
func (sh *Shard) Check() {
	if sh.owner != 0 {
		sh.owner.check()
	}
}

// BeginTurn begins a turn of the loop. Commands that are posted now need not wake it, because the end of the turn
// looks.
func (sh *Shard) BeginTurn() {
	sh.Check()
	if set := sh.Engine.Settings(); set != sh.Set {
		sh.follow(set)
	}
	sh.readClock()
	sh.Mail.mu.Lock()
	sh.Mail.InTurn, sh.Mail.began = true, sh.Began
	sh.Mail.mu.Unlock()
}

func (sh *Shard) readClock() {
	sh.Began = sh.Engine.Uptime()
	sh.Clock = max(uint32(sh.Began.Milliseconds()), 1)
}

// follow does what new settings ask of a shard that had others. Messages that have begun to come keep the
// limits with which they began.
func (sh *Shard) follow(set *LoopSettings) {
	sh.Set = set
	sh.decoder = sh.newDecoder()
	for _, g := range sh.tables {
		g.charge(set)
	}
}

// EndSocketTurn ends the turn of a socket: it runs commands and serves connections that have work to do, unless other
// sockets have waited long enough.
func (sh *Shard) EndSocketTurn() {
	if !sh.isCrowded() && !sh.isLate() {
		sh.RunCommands()
	}
	if !sh.isCrowded() && !sh.isLate() {
		sh.runQueued()
	}
	sh.AddToRound(sh.endTurn())
}

// AddToRound counts time that was spent on a socket. What comes on the others, once that is enough, waits until the
// loop is woken, which begins the next round.
func (sh *Shard) AddToRound(d time.Duration) {
	if sh.Round += d; sh.isCrowded() {
		sh.wake()
	}
	sh.Interest.limitReads(sh.isCrowded() || sh.Run.isLong())
}

// endTurn ends a turn and returns how long it took. If something is left to do (new commands, work of connections,
// further slices of a walk or sweep), the loop is woken for another turn, after everything else that is ready on it.
func (sh *Shard) endTurn() (took time.Duration) {
	sh.admitInflating()
	ended := sh.Engine.Uptime()
	sh.Histograms.Turn.Since(sh.Began, ended)
	sh.publishCounters()
	m := &sh.Mail
	m.mu.Lock()
	defer m.mu.Unlock()
	m.InTurn = false
	if len(m.commands) > 0 || m.tick || m.goAway || m.relief || m.timers || sh.busy() {
		m.wake()
	}
	return ended - sh.Began
}

// wokenTurn is the turn that the loop was woken for. After a slice that left something to do, it first gives way once:
// epoll reports the waker before the sockets that became ready during the slice, and those have waited long enough.
func (sh *Shard) wokenTurn() {
	woken := sh.Mail.acknowledge()
	sh.BeginTurn()
	sh.Histograms.Lag.Since(woken, sh.Began)
	sh.Round = 0
	sh.Interest.limitReads(sh.Run.isLong())
	if sh.sliced {
		sh.sliced = false
		if !sh.late {
			sh.RunCommands()
		}
		sh.endTurn()
		return
	}
	sh.relieve()
	for range turnSteps {
		sh.runStep()
		if sh.isLate() {
			break
		}
	}
	sh.runQueued()
	if sh.late = sh.isLate(); !sh.late {
		sh.RunCommands()
	}
	sh.endTurn()
	sh.sliced = sh.busy() || sh.late
}

// The steps of a turn for which the loop was woken. Each is a slice, but one of its parts may take longer, such as a
// large message that is encoded: then the others wait until sockets have been served.
const (
	turnSteps = 4
	turnTime  = 2 * time.Millisecond
)

// isLate reports whether this turn has taken so long that what has time waits for the next.
func (sh *Shard) isLate() bool { return sh.Engine.Uptime()-sh.Began > turnTime }

// runStep does the next step of a turn.
func (sh *Shard) runStep() {
	step := sh.step
	sh.step = (step + 1) % turnSteps
	switch step {
	case 0:
		sh.RunCommands()
	case 1:
		sh.Walk()
	case 2:
		sh.flushWritable()
	default:
		sh.settleDeparted(sh.sliceTime())
		sh.sweepOn()
		sh.Timers.run()
	}
}

// sliceTime is how long a slice may take. A loop that has much to hand out does it in longer slices, which cost less.
func (sh *Shard) sliceTime() time.Duration {
	if sh.Backlog.Load() > sh.Set.MaxBacklog/16 {
		return 4 * sliceTime
	}
	return sliceTime
}

// Walk hands out a slice of what was published, for the audiences in turn.
func (sh *Shard) Walk() {
	s := slice{start: time.Now(), time: sh.sliceTime()}
	for range sh.Pending.Len() {
		a := sh.Pending.pop()
		if a.queued = !a.walk(&s); a.queued {
			sh.Pending.push(a)
		}
		if s.over() {
			return
		}
	}
}

// flushWritable writes what waits for sockets that take bytes again, for a slice, in turn.
func (sh *Shard) flushWritable() {
	for start, limit := time.Now(), sh.sliceTime(); sh.writable.Len() > 0 && time.Since(start) <= limit; {
		if c := sh.writable.pop(); c.flushSome() {
			sh.writable.push(c)
		}
	}
}

// busy reports whether the loop has work left, so that it must not wait for events.
func (sh *Shard) busy() bool {
	return !sh.Reading.Done() || sh.sweep.running || sh.Pending.Len() > 0 || sh.writable.Len() > 0 || sh.Departed.Len() > 0 || len(sh.Run.Heap) > 0 ||
		sh.Timers.due || sh.GoingAway && sh.occupied()
}

func (sh *Shard) publishCounters() {
	if sh.Counters != (turnCounters{}) {
		sh.Stats.Deliveries.Add(sh.Counters.Deliveries)
		sh.Stats.BytesOut.Add(sh.Counters.bytesOut)
		sh.Stats.Writes.Add(sh.Counters.writes)
		sh.Counters = turnCounters{}
	}
	sh.Histograms.Publish()
}

// keepReply is the size of a buffer for replies that a quiet loop keeps.
const keepReply = 16 << 10

// dropReplies lets go of buffers that large replies have left behind.
func (sh *Shard) dropReplies() {
	if cap(sh.Text) > keepReply || cap(sh.Reply) > keepReply {
		sh.Text, sh.Reply = nil, nil
	}
}

// TablesOf are the tables of an endpoint, by framing.
func (sh *Shard) TablesOf(ep *LoopEndpoint) []*Table {
	return sh.tables[ep.FirstTable : ep.FirstTable+ep.Framings]
}

// members copies the list, so that nothing is locked while the caller reads it.
func (sh *Shard) members() []*Conn {
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	var all []*Conn
	for _, g := range sh.tables {
		if g.Endpoint != nil {
			for i := range g.Members { // not by value: the loop writes what else is in a member
				all = append(all, g.Members[i].Conn)
			}
		}
	}
	return all
}
