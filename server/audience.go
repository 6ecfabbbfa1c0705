package server

import (
	"sync/atomic"
	"syscall"
	"time"

	"carillon/codec"
	"carillon/internal/shrink"
	"carillon/server/stats"
)

// audience is a dense list of a shard's connections that get the same messages: those of an endpoint, or
// those that are subscribed to a topic. It holds the stream of messages for them and walks its members to
// hand them out.
type audience struct {
	sh *shard

	// Guarded by sh.mu: only the loop writes, so the loop reads without the lock. What is in a member
	// beside conn is owned by the loop.
	members []member

	// Owned by the loop: parallel to members, but only in tables.
	times []times
	debts []debts // nil where no limit asks for them

	// Owned by the loop: stream[i] is message number base+i. Numbers wrap, so they are compared by
	// their difference.
	stream []*codec.Frame
	stamps []stamp // parallel to stream: when it was published
	base   uint32

	// Owned by the loop.
	pass   *pass        // the walk under way
	queued bool         // stands in sh.pending
	latest bool         // of a topic of which slow members get only the newest message
	kind   uint32       // which of meters.flushed is for it: 0 is that of all topics
	newest *codec.Frame // that message; nil until the topic has been of that kind

	feed feed // immutable; nil for connections that get no messages
}

// feed is where an audience's messages come from. The loop calls it once for each message, never once for a receiver.
type feed interface {
	publish(p *command) (bytes int) // hands a message to the audiences; bytes is what [audience.publish] has returned
	join()                          // a table has one member more
	leave()                         // or one less
	left(a *audience)               // an audience that is no table has one less
}

// member is a connection in an audience.
type member struct {
	conn *Conn
	fd   int32  // the descriptor when a plain write may be tried, else -1
	seq  uint32 // the next message of the stream that it has not got; may be one that has not come yet
	sub  int32  // which of the connection's subscriptions this is; unused in tables
}

// pass is one walk: members below cursor have everything up to target.
type pass struct {
	cursor  int
	target  uint32
	plain   batch
	deflate batch            // for the window that nearly all have
	narrow  map[uint8]*batch // for smaller ones, by their bits; nil until there is one
}

// deflated returns what members get whose window has so many bits.
func (p *pass) deflated(window uint8) *batch {
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

// isTable reports whether the audience is a table.
func (a *audience) isTable() bool { return a.times != nil }

func (a *audience) end() uint32 { return a.base + uint32(len(a.stream)) }

// join makes c a member, for whom the message seq is the first. The caller holds sh.mu.
func (a *audience) join(c *Conn, seq uint32, sub int32) (slot int32) {
	a.members = append(a.members, member{conn: c, fd: c.plainFD(), seq: seq, sub: sub})
	return int32(len(a.members) - 1)
}

// quit takes the member at a slot out in constant time: another one moves to its place. During a walk,
// members that have been served must stay below the cursor and the others above it, so the hole moves to
// the border first. The caller holds sh.mu.
func (a *audience) quit(slot int32) {
	hole, last := int(slot), len(a.members)-1
	if a.pass != nil && hole < a.pass.cursor {
		a.pass.cursor--
		a.move(hole, a.pass.cursor)
		hole = a.pass.cursor
	}
	if hole != last { // else the last has moved already, or is the one that leaves
		a.move(hole, last)
	}
	a.members[last] = member{}
	a.members = a.members[:last]
	if a.times != nil {
		a.times = a.times[:last]
	}
	if a.debts != nil {
		a.debts = a.debts[:last]
	}
	if cap(a.members) > 1024 && last < cap(a.members)/4 { // a crowd has left
		a.members = halve(a.members)
		if a.times != nil {
			a.times = halve(a.times)
		}
		if a.debts != nil {
			a.debts = halve(a.debts)
		}
	}
}

func halve[T any](s []T) []T { return append(make([]T, 0, cap(s)/2), s...) }

func (a *audience) move(to, from int) {
	m := a.members[from]
	a.members[to] = m
	if a.debts != nil {
		a.debts[to] = a.debts[from]
	}
	if a.isTable() {
		a.times[to] = a.times[from]
		m.conn.slot = int32(to)
	} else {
		m.conn.ext.subs[m.sub].slot = int32(to)
	}
}

// publish appends a message to the stream, and returns its cost in bytes, which the caller adds to the backlog. The
// walk that hands it out comes with the shard's turn.
func (a *audience) publish(f *codec.Frame, at stamp) (bytes int) {
	a.stream = append(a.stream, f)
	a.stamps = append(a.stamps, at)
	if a.latest || a.newest != nil {
		a.newest = f
	}
	if !a.isTable() {
		a.sh.published++
	}
	if !a.queued {
		a.queued = true
		a.sh.pending.push(a)
	}
	return len(f.Plain()) + streamCost
}

// streamCost is about what a place in a stream takes in memory, in bytes.
const streamCost = 16

// begin fixes the messages of the next pass: all that wait, up to maxBatch bytes and maxPass messages.
func (a *audience) begin() {
	n, size := 0, 0
	for n < min(len(a.stream), maxPass) {
		size += len(a.stream[n].Plain())
		if n > 0 && size > maxBatch {
			break
		}
		n++
	}
	a.pass = a.sh.newPass()
	a.pass.target = a.base + uint32(n)
	a.pass.plain.build(a.stream[:n], (*codec.Frame).Plain)
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
	work   int // since the clock was read: members, and what they got in sixteens of messages and pieces of sliceBytes
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

func (s *slice) over() bool {
	if s.work < sliceWork {
		return false
	}
	s.work = 0
	return s.served >= sliceConns && s.time == sliceTime || time.Since(s.start) > s.time
}

// walk hands out messages until the slice is over. It reports whether it came to the end of the stream.
func (a *audience) walk(s *slice) bool {
	for len(a.stream) > 0 {
		if a.pass == nil {
			a.begin()
		}
		for a.pass.cursor < len(a.members) {
			if n, bytes := a.serve(a.pass.cursor); n > 0 {
				s.serve(n, bytes)
			}
			if s.over() {
				return false
			}
		}
		a.finish()
	}
	return len(a.stream) == 0
}

// serve gives member i what it has not got, and returns the number of messages, and of the bytes that were written or
// compressed. The cursor moves first: the write may end the connection, and with it this place.
func (a *audience) serve(i int) (messages, bytes int) {
	p, m := a.pass, &a.members[i]
	p.cursor++
	n := int(int32(p.target - m.seq))
	if n <= 0 {
		return 0, 0
	}
	if a.sh.departed.len() > 0 && !a.isTable() && m.hasLeft() {
		a.sh.stats.Drop(stats.DropClosed, uint64(a.missedUntil(int32(i), m.conn.ext.left)))
		m.seq = p.target
		return n, 0
	}
	skip := m.seq - a.base
	m.seq = p.target
	a.sh.counters.deliveries += uint64(n)
	if m.fd < 0 {
		return n, a.serveSlow(m.conn, m.sub, skip)
	}
	b := p.plain.buf[p.plain.offs[skip]:]
	written, errno := write(m.fd, b)
	a.sh.counters.writes++
	a.sh.counters.bytesOut += uint64(written)
	if written == len(b) {
		return n, written
	}
	if errno == syscall.EAGAIN {
		errno = 0
	}
	m.conn.wroteFrames(a, m.sub, a.stream[skip:p.target-a.base], written, errno)
	return n, written
}

// serveSlow is serve for members that compress or encrypt, or whose socket is full.
func (a *audience) serveSlow(c *Conn, sub int32, skip uint32) (bytes int) {
	p := a.pass
	frames := a.stream[skip : p.target-a.base]
	if c.out != nil {
		c.queueFrames(a, sub, frames)
		if c.deflates() { // it may have been the first of its window
			bytes = len(p.plain.buf)
		}
		return bytes
	}
	all := &p.plain
	if c.deflates() {
		if all = p.deflated(c.window); all.buf == nil {
			all.build(a.stream[:p.target-a.base], c.encoded)
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

// finish ends a pass and forgets its messages.
func (a *audience) finish() {
	n := int(a.pass.target - a.base)
	now, flushed := a.sh.engine.stamp(), &a.sh.histograms.Flushed[a.kind]
	for _, at := range a.stamps[:n] {
		flushed.Observe(uint32(now - at))
	}
	a.stamps = a.stamps[:copy(a.stamps, a.stamps[n:])]
	bytes := 0
	for _, f := range a.stream[:n] {
		bytes += len(f.Plain()) + streamCost
	}
	a.sh.backlog.Add(-int64(bytes))
	rest := copy(a.stream, a.stream[n:])
	clear(a.stream[rest:])
	a.stream = a.stream[:rest]
	a.base = a.pass.target
	a.sh.freePass(a.pass)
	a.pass = nil
	if rest == 0 && (!a.isTable() || cap(a.stream) > keepCommands) {
		a.stream, a.stamps = nil, nil // topics are many
	}
}

// catchUp gives a member the whole stream at once, so that what is sent to it alone comes after what was
// published before.
func (a *audience) catchUp(slot int32) {
	m := &a.members[slot]
	n := int32(a.end() - m.seq)
	if n <= 0 {
		return
	}
	m.seq = a.end()
	a.sh.counters.deliveries += uint64(n)
	frames := a.stream[len(a.stream)-int(n):]
	m.conn.boundCompression(frames)
	m.conn.sendFrames(a, m.sub, frames)
}

// catchUpBytes is how many bytes of messages are compressed at most while a connection is given all that waits for it,
// unless the first message is larger.
const catchUpBytes = 1 << 20

// boundCompression has messages go out as they are, to everybody with the same window, that would have to be compressed
// behind others of which that is enough (RFC 7692, section 6, leaves the choice for each message). The walk compresses
// any number, but stops after each.
func (c *Conn) boundCompression(frames []*codec.Frame) {
	if !c.deflates() {
		return
	}
	for _, f := range frames {
		n, left := len(f.Payload()), catchUpBytes-c.sh.caughtUp
		if n > left && c.sh.caughtUp > 0 {
			f.LeavePlain(c.window)
			continue
		}
		c.sh.caughtUp += n
	}
}

// setPlainFD tells all audiences of the connection what plainFD says.
func (c *Conn) setPlainFD(fd int32) {
	c.table.members[c.slot].fd = fd
	if c.ext != nil {
		for _, s := range c.ext.subs {
			s.audience.members[s.slot].fd = fd
		}
	}
}

// missed is how many messages of the stream a member has not got.
func (a *audience) missed(slot int32) uint64 {
	return uint64(max(int32(a.end()-a.members[slot].seq), 0))
}

// hasLeft reports whether a member's connection has left its topics: see [Conn.leaveTopics]. Its descriptor may be
// another connection's. It is for audiences of topics: a table's members leave it at once.
func (m *member) hasLeft() bool { return m.conn.state.Load() != stateOpen }

// appendMembers lists members that have not left, up to limit of the list, and counts all of them. The caller holds
// sh.mu.
func (a *audience) appendMembers(list []*Conn, limit int) (_ []*Conn, count int) {
	if a.sh.departed.len() == 0 {
		for i := range a.members[:min(len(a.members), limit-len(list))] { // the rest of a member is the loop's
			list = append(list, a.members[i].conn)
		}
		return list, len(a.members)
	}
	for i := range a.members {
		if a.members[i].hasLeft() {
			continue
		}
		if count++; len(list) < limit {
			list = append(list, a.members[i].conn)
		}
	}
	return list, count
}

// missedUntil is how many messages of the stream a member has not got that were published before a moment.
func (a *audience) missedUntil(slot int32, moment stamp) (n int) {
	for i := int(int32(a.members[slot].seq - a.base)); i < len(a.stamps) && int32(a.stamps[i]-moment) <= 0; i++ {
		n++
	}
	return n
}

// passes that are kept for the next walks of a shard.
const keepPasses = 4

func (sh *shard) newPass() *pass {
	if last := len(sh.freePasses) - 1; last >= 0 {
		p := sh.freePasses[last]
		sh.freePasses = sh.freePasses[:last]
		return p
	}
	return &pass{}
}

func (sh *shard) freePass(p *pass) {
	p.plain.release()
	p.deflate.release()
	for _, b := range p.narrow {
		b.release()
	}
	p.cursor = 0
	if len(sh.freePasses) < keepPasses {
		sh.freePasses = append(sh.freePasses, p)
	}
}

// queue is a line of audiences, first in, first out.
type queue[T any] struct {
	list []*T
	head int
}

func (q *queue[T]) len() int { return len(q.list) - q.head }

func (q *queue[T]) push(a *T) { q.list = append(q.list, a) }

func (q *queue[T]) first() *T { return q.list[q.head] }

func (q *queue[T]) pop() *T {
	a := q.list[q.head]
	q.list[q.head] = nil
	q.head++
	switch {
	case q.head == len(q.list):
		q.list, q.head = shrink.Slice(q.list[:0]), 0
	case q.head > 64 && q.head > len(q.list)/2:
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = shrink.Slice(q.list[:n]), 0
	}
	return a
}

// table is an audience in which a connection is for a part of its life: that of its endpoint, or those
// of the handshake and of the closing, which get no messages. Every connection is in exactly one, and the
// sweep goes through them.
type table struct {
	audience
	ep    *loopEndpoint // nil for the handshake and the table of closing connections
	count atomic.Int32
}

// times are milliseconds of the shard's clock; they wrap after 49 days, and so are only compared by
// their difference.
type times struct {
	read    uint32 // something came; in the table of closing connections: the close began or was flushed; in the table of handshakes: see entered
	message uint32 // a message came; in the table of handshakes: the connection was accepted
	ping    uint32 // an unanswered ping went out, 0 when there is none; in the table of handshakes: when it was accepted
}

func newTable(sh *shard, ep *loopEndpoint) *table {
	g := &table{audience: audience{sh: sh, times: []times{}}, ep: ep}
	if ep != nil {
		g.kind = uint32(ep.index) + 1
	}
	g.charge(sh.set)
	return g
}

// charge keeps debts while a limit asks for them.
func (g *table) charge(set *loopSettings) {
	switch limited := g.ep != nil && set.keepsDebts(g.ep); {
	case !limited:
		g.debts = nil
	case g.debts == nil:
		g.debts = make([]debts, len(g.members))
	}
}

// add makes c a member. Messages that were published before do not concern it.
func (g *table) add(c *Conn, t times) {
	g.sh.mu.Lock()
	c.table = g
	c.slot = g.join(c, g.end(), 0)
	g.sh.mu.Unlock()
	g.times = append(g.times, t)
	if g.debts != nil {
		g.debts = append(g.debts, debts{})
	}
	g.count.Add(1)
	if g.feed != nil {
		g.feed.join()
	}
}

func (g *table) remove(c *Conn) {
	g.sh.mu.Lock()
	g.quit(c.slot)
	c.table = nil
	g.sh.mu.Unlock()
	g.count.Add(-1)
	if g.feed != nil {
		g.feed.leave()
	}
}
