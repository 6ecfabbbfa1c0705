package server

import (
	"sync/atomic"
	"time"

	"carillon/codec"
)

// group is a dense list of a shard's connections: those of one endpoint, those in the handshake, or
// those that are closing. Every connection is in exactly one. The group of an endpoint also holds
// the stream of messages that were broadcast to it and walks its members to hand them out.
type group struct {
	sh    *shard
	ep    *endpoint // nil for the handshake and the closing group
	count atomic.Int32

	// Guarded by sh.mu: only the loop writes, so the loop reads without the lock.
	conns []*Conn

	// Owned by the loop, parallel to conns.
	fds   []int32  // the descriptor when a plain write may be tried, else -1
	seqs  []uint32 // the next message of the stream that this member has not got
	times []times

	// Owned by the loop: stream[i] is message number base+i. Numbers wrap, so they are compared by
	// their difference.
	stream []*codec.Frame
	base   uint32

	// Owned by the loop: the walk under way. Members below cursor have everything up to target.
	walking bool
	cursor  int
	target  uint32
	plain   batch
	deflate batch
}

// times are milliseconds of the shard's clock; they wrap after 49 days, and so are only compared by
// their difference.
type times struct {
	read    uint32 // something came; in the closing group: the close began or was flushed
	message uint32 // a message came; in the handshake group: the connection was accepted
	ping    uint32 // an unanswered ping went out; 0 when there is none
}

// batch is the messages of one walk as one piece of memory, so that a member gets them in one write.
type batch struct {
	buf  []byte
	offs []int // offs[i] is where the walk's message i starts
	own  []byte
}

// maxBatch bounds what is copied together: larger pieces gain nothing over the cost of a write.
const maxBatch = 256 << 10

func (g *group) end() uint32 { return g.base + uint32(len(g.stream)) }

// add makes c a member. Messages that were published before do not concern it.
func (g *group) add(c *Conn, t times) {
	g.sh.mu.Lock()
	c.group, c.slot = g, int32(len(g.conns))
	g.conns = append(g.conns, c)
	g.sh.mu.Unlock()
	g.fds = append(g.fds, c.plainFD())
	g.seqs = append(g.seqs, g.end())
	g.times = append(g.times, t)
	g.count.Add(1)
}

// remove takes c out in constant time: another member moves to its place. During a walk, members
// that have been served must stay below the cursor and the others above it, so the hole moves to the
// border first.
func (g *group) remove(c *Conn) {
	hole, last := int(c.slot), len(g.conns)-1
	g.sh.mu.Lock()
	if hole < g.cursor {
		g.cursor--
		g.move(hole, g.cursor)
		hole = g.cursor
	}
	if hole != last { // else the last has moved already, or is c
		g.move(hole, last)
	}
	g.conns[last] = nil
	g.conns = g.conns[:last]
	c.group = nil
	g.sh.mu.Unlock()
	g.fds = g.fds[:last]
	g.seqs = g.seqs[:last]
	g.times = g.times[:last]
	g.count.Add(-1)
	if cap(g.conns) > 1024 && last < cap(g.conns)/4 {
		g.shrink()
	}
}

func (g *group) move(to, from int) {
	g.conns[to], g.fds[to], g.seqs[to], g.times[to] = g.conns[from], g.fds[from], g.seqs[from], g.times[from]
	g.conns[to].slot = int32(to)
}

// shrink gives memory back after a crowd has left.
func (g *group) shrink() {
	g.sh.mu.Lock()
	g.conns = halve(g.conns)
	g.sh.mu.Unlock()
	g.fds, g.seqs, g.times = halve(g.fds), halve(g.seqs), halve(g.times)
}

func halve[T any](s []T) []T { return append(make([]T, 0, cap(s)/2), s...) }

// publish appends a message to the stream. The walk that hands it out comes with the shard's turn.
func (g *group) publish(f *codec.Frame) {
	if len(g.conns) == 0 {
		g.sh.backlog.Add(-int64(len(f.Plain())))
		return
	}
	g.stream = append(g.stream, f)
}

func (g *group) pending() bool { return len(g.stream) > 0 }

// begin fixes the messages of the next walk: all that wait, up to maxBatch bytes.
func (g *group) begin() {
	n, size := 0, 0
	for n < len(g.stream) {
		size += len(g.stream[n].Plain())
		if n > 0 && size > maxBatch {
			break
		}
		n++
	}
	g.walking, g.cursor, g.target = true, 0, g.base+uint32(n)
	g.plain.build(g.stream[:n], (*codec.Frame).Plain)
	g.deflate.buf = nil
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

// A walk is cut into slices by both measures, because one write costs from 2 us for a small message
// to 100 us for a full batch. The clock is read once in sixteen.
const (
	sliceConns = 256
	sliceTime  = 150 * time.Microsecond
)

// walk hands out messages until the slice that began at start is over, or until everybody has one
// batch if whole is set. It says whether it came to the end of the stream.
func (g *group) walk(start time.Time, whole bool) bool {
	served := 0
	for g.pending() {
		if !g.walking {
			g.begin()
		}
		for g.cursor < len(g.conns) {
			if g.serve(g.cursor) {
				served++
			}
			if !whole && served&15 == 15 && (served >= sliceConns || time.Since(start) > sliceTime) {
				return false
			}
		}
		g.finish()
		if whole {
			break
		}
	}
	return !g.pending()
}

// serve gives member i what it has not got, and says whether there was anything. The cursor moves
// first: the write may end the connection, and with it this place.
func (g *group) serve(i int) bool {
	g.cursor++
	n := int32(g.target - g.seqs[i])
	if n <= 0 {
		return false
	}
	skip := g.seqs[i] - g.base
	g.seqs[i] = g.target
	g.sh.tally.deliveries += uint64(n)
	if fd := g.fds[i]; fd >= 0 {
		b := g.plain.buf[g.plain.offs[skip]:]
		written, errno := write(fd, b)
		g.sh.tally.writes++
		if written == len(b) {
			g.sh.tally.bytesOut += uint64(written)
			return true
		}
		g.conns[i].wroteFrames(g.stream[skip:g.target-g.base], written, errno)
		return true
	}
	g.serveSlow(g.conns[i], skip)
	return true
}

// serveSlow is for members that compress or whose socket is full.
func (g *group) serveSlow(c *Conn, skip uint32) {
	frames := g.stream[skip : g.target-g.base]
	if c.out != nil {
		c.queueFrames(frames)
		return
	}
	if g.deflate.buf == nil {
		g.deflate.build(g.stream[:g.target-g.base], g.ep.deflated)
	}
	b := g.deflate.buf[g.deflate.offs[skip]:]
	written, errno := write(c.fd, b)
	g.sh.tally.writes++
	if written == len(b) {
		g.sh.tally.bytesOut += uint64(written)
		return
	}
	c.wroteFrames(frames, written, errno)
}

// finish ends a walk and forgets its messages.
func (g *group) finish() {
	n := int(g.target - g.base)
	bytes := 0
	for _, f := range g.stream[:n] {
		bytes += len(f.Plain())
	}
	g.sh.backlog.Add(-int64(bytes))
	rest := copy(g.stream, g.stream[n:])
	clear(g.stream[rest:])
	g.stream = g.stream[:rest]
	g.base, g.walking, g.cursor = g.target, false, 0
	if rest == 0 {
		g.plain.release()
		g.deflate.release()
		if cap(g.stream) > keepLetters {
			g.stream = nil
		}
	}
}

// catchUp gives c the whole stream at once, so that what is sent to it alone comes after what was
// broadcast before.
func (g *group) catchUp(c *Conn) {
	seq := g.seqs[c.slot]
	n := int32(g.end() - seq)
	if n <= 0 {
		return
	}
	g.seqs[c.slot] = g.end()
	g.sh.tally.deliveries += uint64(n)
	frames := g.stream[len(g.stream)-int(n):]
	for i, f := range frames {
		if c.group != g { // the write ended it, or the slow-consumer policy did
			g.sh.stats.drop(DropClosed, uint64(len(frames)-i))
			return
		}
		c.sendEncoded(c.encoded(f))
	}
}
