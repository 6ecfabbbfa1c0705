package reactor

import (
	"sync/atomic"
	"syscall"
	"time"

	"carillon/codec"
	"carillon/internal/shrink"
	"carillon/server/internal/sys"
	"carillon/server/stats"
)

// Audience is a dense list of a shard's connections that get the same messages: those of an endpoint, or
// those that are subscribed to a topic. It holds the stream of messages for them and walks its members to
// hand them out.
type Audience struct {
	Shard *Shard

	// Guarded by sh.mu: only the loop writes, so the loop reads without the lock. What is in a member
	// beside conn is owned by the loop.
	Members []member

	// Owned by the loop: parallel to members, but only in tables.
	Times []Times
	debts []Debts // nil where no limit asks for them

	// Owned by the loop: stream[i] is message number base+i. Numbers wrap, so they are compared by
	// their difference.
	Stream []*codec.Frame
	stamps []Stamp // parallel to stream: when it was published
	Base   uint32

	// Owned by the loop.
	Pass   *pass        // the walk under way
	queued bool         // stands in sh.pending
	Latest bool         // of a topic of which slow members get only the newest message
	kind   uint32       // which of meters.flushed is for it: 0 is that of all topics
	newest *codec.Frame // that message; nil until the topic has been of that kind

	Feed Feed // immutable; nil for connections that get no messages
}

// Feed is where an audience's messages come from. The loop calls it once for each message, never once for a receiver.
type Feed interface {
	Publish(p *Command) (bytes int) // hands a message to the audiences; bytes is what [Audience.Publish] has returned
	Join()                          // a table has one member more
	Leave()                         // or one less
	Left(a *Audience)               // an audience that is no table has one less
}

// member is a connection in an audience.
type member struct {
	Conn *Conn
	fd   int32  // the descriptor when a plain write may be tried, else -1
	Seq  uint32 // the next message of the stream that it has not got; may be one that has not come yet
	Sub  int32  // which of the connection's subscriptions this is; unused in tables
}

// pass is one walk: members below cursor have everything up to target.
type pass struct {
	Cursor  int
	target  uint32
	plain   batch
	deflate batch            // for the window that nearly all have
	narrow  map[uint8]*batch // for smaller ones, by codec.SharedWindow; nil until there is one
}

// deflated returns what members get whose window has so many bits.
func (p *pass) deflated(window uint8) *batch {
	window = codec.SharedWindow(window)
	if window == codec.MaxWindow {
		return &p.deflate
	}
	if p.narrow == nil {
		p.narrow = make(map[uint8]*batch)
	}
	b := p.narrow[window]
	if b == nil {
		b = new(batch)
		p.narrow[window] = b
	}
	return b
}

// batch is the messages of one pass as one piece of memory, so that a member gets them in one write.
type batch struct {
	buf  []byte
	offs []int // offs[i] is where the pass's message i starts
	own  []byte
}

// maxBatch bounds what is copied together, in bytes: larger pieces gain nothing over the cost of a write. maxPass
// bounds the number of messages, each of which is put into the queue of a member that does not read.
const (
	maxBatch = 256 << 10
	maxPass  = 4096
)

// IsTable reports whether the audience is a table.
func (a *Audience) IsTable() bool { return a.Times != nil }

// End is the number of the next message of the stream.
func (a *Audience) End() uint32 { return a.Base + uint32(len(a.Stream)) }

// join makes c a member, for whom the message seq is the first. The caller holds sh.mu.
func (a *Audience) join(c *Conn, seq uint32, sub int32) (slot int32) {
	a.Members = append(a.Members, member{Conn: c, fd: c.plainFD(), Seq: seq, Sub: sub})
	return int32(len(a.Members) - 1)
}

// quit takes the member at a slot out in constant time: another one moves to its place. During a walk,
// members that have been served must stay below the cursor and the others above it, so the hole moves to
// the border first. The caller holds sh.mu.
func (a *Audience) quit(slot int32) {
	hole, last := int(slot), len(a.Members)-1
	if a.Pass != nil && hole < a.Pass.Cursor {
		a.Pass.Cursor--
		a.move(hole, a.Pass.Cursor)
		hole = a.Pass.Cursor
	}
	if hole != last { // else the last has moved already, or is the one that leaves
		a.move(hole, last)
	}
	a.Members[last] = member{}
	a.Members = a.Members[:last]
	if a.Times != nil {
		a.Times = a.Times[:last]
	}
	if a.debts != nil {
		a.debts = a.debts[:last]
	}
	if cap(a.Members) > 1024 && last < cap(a.Members)/4 { // a crowd has left
		a.Members = halve(a.Members)
		if a.Times != nil {
			a.Times = halve(a.Times)
		}
		if a.debts != nil {
			a.debts = halve(a.debts)
		}
	}
}

func halve[T any](s []T) []T { return append(make([]T, 0, cap(s)/2), s...) }

func (a *Audience) move(to, from int) {
	m := a.Members[from]
	a.Members[to] = m
	if a.debts != nil {
		a.debts[to] = a.debts[from]
	}
	if a.IsTable() {
		a.Times[to] = a.Times[from]
		m.Conn.slot = int32(to)
	} else {
		m.Conn.ext.Subs[m.Sub].Slot = int32(to)
	}
}

// Publish appends a message to the stream, and returns its cost in bytes, which the caller adds to the backlog. The
// walk that hands it out comes with the shard's turn.
func (a *Audience) Publish(f *codec.Frame, at Stamp) (bytes int) {
	a.Stream = append(a.Stream, f)
	a.stamps = append(a.stamps, at)
	if a.Latest || a.newest != nil {
		a.newest = f
	}
	if !a.IsTable() {
		a.Shard.published++
	}
	if !a.queued {
		a.queued = true
		a.Shard.Pending.push(a)
	}
	return len(f.Plain()) + streamCost
}

// streamCost is about what a place in a stream takes in memory, in bytes.
const streamCost = 16

// Begin fixes the messages of the next pass: all that wait, up to MaxBatch bytes and MaxPass messages.
func (a *Audience) Begin() {
	n, size := 0, 0
	for n < min(len(a.Stream), maxPass) {
		size += len(a.Stream[n].Plain())
		if n > 0 && size > maxBatch {
			break
		}
		n++
	}
	a.Pass = a.Shard.newPass()
	a.Pass.target = a.Base + uint32(n)
	a.Pass.plain.build(a.Stream[:n], (*codec.Frame).Plain)
}

func (b *batch) build(frames []*codec.Frame, encode func(*codec.Frame) []byte) {
	b.offs = append(b.offs[:0], 0)
	if len(frames) == 1 {
		b.buf = encode(frames[0])
		return
	}
	b.own = b.own[:0]
	for _, f := range frames {
		b.own = append(b.own, encode(f)...)
		b.offs = append(b.offs, len(b.own))
	}
	b.buf = b.own
}

func (b *batch) release() {
	b.buf = nil
	if cap(b.own) > 64<<10 {
		b.own = nil
	}
	if cap(b.offs) > 1024 {
		b.offs = nil
	}
}

// slice is a part of a turn that is given to walks. It is bounded by both measures, because one write costs from 2 us
// for a small message to 100 us for a full batch, and a batch may have to be compressed first, which takes up to 10 us
// for each KiB. The clock is read once in sixteen, or more often where each of them gets many messages or many bytes.
type slice struct {
	start  time.Time
	time   time.Duration
	served int
	work   int // since the clock was read: members, and what they got in sixteens of messages and pieces of SliceBytes
}

const (
	sliceWork  = 16
	sliceBytes = 16 << 10
)

// serve notes that a member was served with so many messages, for which so many bytes were written or compressed.
func (s *slice) serve(messages, bytes int) {
	s.served++
	s.work += 1 + messages/sliceWork + bytes/sliceBytes
}

const (
	sliceConns = 256
	sliceTime  = 150 * time.Microsecond
)

// over reports whether the slice is used up. It reads the clock only now and then.
func (s *slice) over() bool {
	if s.work < sliceWork {
		return false
	}
	s.work = 0
	return s.served >= sliceConns && s.time == sliceTime || time.Since(s.start) > s.time
}

// walk hands out messages until the slice is over. It reports whether it came to the end of the stream.
func (a *Audience) walk(s *slice) bool {
	for len(a.Stream) > 0 {
		if a.Pass == nil {
			a.Begin()
		}
		for a.Pass.Cursor < len(a.Members) {
			if n, bytes := a.Serve(a.Pass.Cursor); n > 0 {
				s.serve(n, bytes)
			}
			if s.over() {
				return false
			}
		}
		a.Finish()
	}
	return len(a.Stream) == 0
}

// Serve gives member i what it has not got, and returns the number of messages, and of the bytes that were written or
// compressed. The cursor moves first: the write may end the connection, and with it this place.
func (a *Audience) Serve(i int) (messages, bytes int) {
	p, m := a.Pass, &a.Members[i]
	p.Cursor++
	n := int(int32(p.target - m.Seq))
	if n <= 0 {
		return 0, 0
	}
	if a.Shard.Departed.Len() > 0 && !a.IsTable() && m.hasLeft() {
		a.Shard.Stats.Drop(stats.DropClosed, uint64(a.missedUntil(int32(i), m.Conn.ext.left)))
		m.Seq = p.target
		return n, 0
	}
	skip := m.Seq - a.Base
	m.Seq = p.target
	a.Shard.Counters.Deliveries += uint64(n)
	if m.fd < 0 {
		return n, a.serveSlow(m.Conn, m.Sub, skip)
	}
	b := p.plain.buf[p.plain.offs[skip]:]
	written, errno := sys.Write(m.fd, b)
	a.Shard.Counters.writes++
	a.Shard.Counters.bytesOut += uint64(written)
	if written == len(b) {
		return n, written
	}
	if errno == syscall.EAGAIN {
		errno = 0
	}
	m.Conn.wroteFrames(a, m.Sub, a.Stream[skip:p.target-a.Base], written, errno)
	return n, written
}

// serveSlow is serve for members that compress or encrypt, or whose socket is full.
func (a *Audience) serveSlow(c *Conn, sub int32, skip uint32) (bytes int) {
	p := a.Pass
	frames := a.Stream[skip : p.target-a.Base]
	if c.out != nil {
		c.queueFrames(a, sub, frames)
		if c.Deflates() { // it may have been the first of its window
			bytes = len(p.plain.buf)
		}
		return bytes
	}
	all := &p.plain
	if c.Deflates() {
		if all = p.deflated(c.window); all.buf == nil {
			all.build(a.Stream[:p.target-a.Base], c.encoded)
			bytes = len(p.plain.buf)
		}
	}
	b := all.buf[all.offs[skip]:]
	written, errno := c.putFrames(b, frames)
	if written < len(b) {
		c.wroteFrames(a, sub, frames, written, errno)
	}
	return bytes + written
}

// Finish ends a pass and forgets its messages.
func (a *Audience) Finish() {
	n := int(a.Pass.target - a.Base)
	now, flushed := a.Shard.Engine.Stamp(), &a.Shard.Histograms.Flushed[a.kind]
	for _, at := range a.stamps[:n] {
		flushed.Observe(uint32(now - at))
	}
	a.stamps = a.stamps[:copy(a.stamps, a.stamps[n:])]
	bytes := 0
	for _, f := range a.Stream[:n] {
		bytes += len(f.Plain()) + streamCost
	}
	a.Shard.Backlog.Add(-int64(bytes))
	rest := copy(a.Stream, a.Stream[n:])
	clear(a.Stream[rest:])
	a.Stream = a.Stream[:rest]
	a.Base = a.Pass.target
	a.Shard.freePass(a.Pass)
	a.Pass = nil
	if rest == 0 && (!a.IsTable() || cap(a.Stream) > keepCommands) {
		a.Stream, a.stamps = nil, nil // topics are many
	}
}

// catchUp gives a member the whole stream at once, so that what is sent to it alone comes after what was
// published before.
func (a *Audience) catchUp(slot int32) {
	m := &a.Members[slot]
	n := int32(a.End() - m.Seq)
	if n <= 0 {
		return
	}
	m.Seq = a.End()
	a.Shard.Counters.Deliveries += uint64(n)
	frames := a.Stream[len(a.Stream)-int(n):]
	m.Conn.boundCompression(frames)
	m.Conn.SendFrames(a, m.Sub, frames)
}

// CatchUpBytes is how many bytes of messages are compressed at most while a connection is given all that waits for it,
// unless the first message is larger.
const CatchUpBytes = 1 << 20

// boundCompression has messages go out as they are, to everybody who shares the window, that would have to be
// compressed behind others of which that is enough (RFC 7692, section 6, leaves the choice for each message). The walk
// compresses any number, but stops after each.
func (c *Conn) boundCompression(frames []*codec.Frame) {
	if !c.Deflates() {
		return
	}
	for _, f := range frames {
		n, left := len(f.Payload()), CatchUpBytes-c.sh.caughtUp
		if n > left && c.sh.caughtUp > 0 {
			f.LeavePlain(c.window)
			continue
		}
		c.sh.caughtUp += n
	}
}

// setPlainFD tells all audiences of the connection what plainFD says.
func (c *Conn) setPlainFD(fd int32) {
	c.table.Members[c.slot].fd = fd
	if c.ext != nil {
		for _, s := range c.ext.Subs {
			s.Audience.Members[s.Slot].fd = fd
		}
	}
}

// missed is how many messages of the stream a member has not got.
func (a *Audience) missed(slot int32) uint64 {
	return uint64(max(int32(a.End()-a.Members[slot].Seq), 0))
}

// hasLeft reports whether a member's connection has left its topics: see [Conn.LeaveTopics]. Its descriptor may be
// another connection's. It is for audiences of topics: a table's members leave it at once.
func (m *member) hasLeft() bool { return m.Conn.state.Load() != StateOpen }

// AppendMembers lists members that have not left, up to limit of the list, and counts all of them. The caller holds
// sh.mu.
func (a *Audience) AppendMembers(list []*Conn, limit int) (_ []*Conn, count int) {
	if a.Shard.Departed.Len() == 0 {
		for i := range a.Members[:min(len(a.Members), limit-len(list))] { // the rest of a member is the loop's
			list = append(list, a.Members[i].Conn)
		}
		return list, len(a.Members)
	}
	for i := range a.Members {
		if a.Members[i].hasLeft() {
			continue
		}
		if count++; len(list) < limit {
			list = append(list, a.Members[i].Conn)
		}
	}
	return list, count
}

// missedUntil is how many messages of the stream a member has not got that were published before a moment.
func (a *Audience) missedUntil(slot int32, moment Stamp) (n int) {
	for i := int(int32(a.Members[slot].Seq - a.Base)); i < len(a.stamps) && int32(a.stamps[i]-moment) <= 0; i++ {
		n++
	}
	return n
}

// passes that are kept for the next walks of a shard.
const keepPasses = 4

func (sh *Shard) newPass() *pass {
	if last := len(sh.freePasses) - 1; last >= 0 {
		p := sh.freePasses[last]
		sh.freePasses = sh.freePasses[:last]
		return p
	}
	return &pass{}
}

func (sh *Shard) freePass(p *pass) {
	p.plain.release()
	p.deflate.release()
	for _, b := range p.narrow {
		b.release()
	}
	p.Cursor = 0
	if len(sh.freePasses) < keepPasses {
		sh.freePasses = append(sh.freePasses, p)
	}
}

// queue is a line of audiences, first in, first out.
type queue[T any] struct {
	List []*T
	Head int
}

// Len is the number of elements.
func (q *queue[T]) Len() int { return len(q.List) - q.Head }

// push appends an element.
func (q *queue[T]) push(a *T) { q.List = append(q.List, a) }

func (q *queue[T]) first() *T { return q.List[q.Head] }

// pop removes and returns the first element. There must be one.
func (q *queue[T]) pop() *T {
	a := q.List[q.Head]
	q.List[q.Head] = nil
	q.Head++
	switch {
	case q.Head == len(q.List):
		q.List, q.Head = shrink.Slice(q.List[:0]), 0
	case q.Head > 64 && q.Head > len(q.List)/2:
		n := copy(q.List, q.List[q.Head:])
		clear(q.List[n:])
		q.List, q.Head = shrink.Slice(q.List[:n]), 0
	}
	return a
}

// Table is an audience in which a connection is for a part of its life: that of its endpoint, or those
// of the handshake and of the closing, which get no messages. Every connection is in exactly one, and the
// sweep goes through them.
type Table struct {
	Audience
	Endpoint *LoopEndpoint // nil for the handshake and the table of closing connections
	count    atomic.Int32
}

// Times are milliseconds of the shard's clock; they wrap after 49 days, and so are only compared by
// their difference.
type Times struct {
	Read    uint32 // something came; in the table of closing connections: the close began or was flushed; in the table of handshakes: see entered
	Message uint32 // a message came; in the table of handshakes: the connection was accepted
	Ping    uint32 // an unanswered ping went out, 0 when there is none; in the table of handshakes: when it was accepted
}

// NewTable makes the table of an endpoint, or without one that of handshakes or of closing connections.
func NewTable(sh *Shard, ep *LoopEndpoint) *Table {
	g := &Table{Audience: Audience{Shard: sh, Times: []Times{}}, Endpoint: ep}
	if ep != nil {
		g.kind = uint32(ep.Index) + 1
	}
	g.charge(sh.Set)
	return g
}

// charge keeps debts while a limit asks for them.
func (g *Table) charge(set *LoopSettings) {
	switch limited := g.Endpoint != nil && set.keepsDebts(g.Endpoint); {
	case !limited:
		g.debts = nil
	case g.debts == nil:
		g.debts = make([]Debts, len(g.Members))
	}
}

// Add makes c a member. Messages that were published before do not concern it.
func (g *Table) Add(c *Conn, t Times) {
	g.Shard.Mu.Lock()
	c.table = g
	c.slot = g.join(c, g.End(), 0)
	g.Shard.Mu.Unlock()
	g.Times = append(g.Times, t)
	if g.debts != nil {
		g.debts = append(g.debts, Debts{})
	}
	g.count.Add(1)
	if g.Feed != nil {
		g.Feed.Join()
	}
}

// Remove takes a connection out of the table.
func (g *Table) Remove(c *Conn) {
	g.Shard.Mu.Lock()
	g.quit(c.slot)
	c.table = nil
	g.Shard.Mu.Unlock()
	g.count.Add(-1)
	if g.Feed != nil {
		g.Feed.Leave()
	}
}
