package server

import (
	"encoding/binary"
	"sync"
	"time"

	"carillon/codec"
	"carillon/server/internal/envelope"
)

// mailbox is what goroutines, the loop itself included, leave for a loop to do. The order of letters
// is the order in which anything is sent, which is why even a handler's own Send goes through here.
type mailbox struct {
	mu      sync.Mutex
	letters []letter
	arena   []byte // the bytes of the letters, one after the other
	tick    bool   // a sweep is due
	goAway  bool   // the server shuts down
	inTurn  bool   // the loop is awake, and looks before it sleeps
	rang    bool   // the loop will hear the bell
	relief  bool   // connections may go on that wait for fan-out
	timers  bool   // some are due
	closed  bool   // the loop has ended
	bell    *bell  // rung under mu, so that nobody rings it after it is gone

	began time.Duration // when inTurn was set last, after the server was made
	rung  time.Duration // when rang was

	posted uint64 // letters, ever
}

type letterKind uint8

const (
	letterBytes    letterKind = iota // encoded frames for conn, in the arena
	letterReply                      // the same, of replies to its requests
	letterFrame                      // frame for conn
	letterPublish                    // payload for the receivers in local
	letterGap                        // the same, and some learn of the gap only by a close: see closeForGap
	letterClose                      // close conn; how, code and reason are in the arena
	letterWritable                   // the socket of conn takes bytes again
	letterDo                         // call do for conn
)

type letter struct {
	conn    *Conn
	frame   *codec.Frame // for conn, or the raw one of payload
	local   *local
	payload payload
	do      func()
	n       int    // bytes in the arena
	seq     uint32 // of payload in local; what do counts for in the backlog
	at      stamp  // when payload was published
	latest  bool   // slow receivers need only the newest payload
	kind    letterKind
}

// varies reports whether nobody knows how long it takes to do what the letter says.
func (l *letter) varies() bool {
	switch {
	case l.kind == letterDo:
		return true
	case l.frame != nil:
		return len(l.frame.Payload()) >= envelope.LargeText
	}
	return l.n >= envelope.LargeText
}

// letterCost is about what a letter takes in memory, in bytes. It counts in the backlog, so that very many small
// messages, or one message for very many patterns, are much to hand out as well.
const letterCost = 128

// put appends a letter. The caller holds the mailbox's mu.
func (sh *shard) put(l letter) {
	m := &sh.mail
	sh.backlog.Add(letterCost)
	m.letters = append(m.letters, l)
	m.posted++
	m.wake()
}

// count is how many letters have been posted.
func (m *mailbox) count() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.posted
}

// wake makes sure that the loop looks. The caller holds mu.
func (m *mailbox) wake() {
	if !m.inTurn && !m.rang {
		m.rang, m.rung = true, m.bell.sh.srv.elapsed()
		m.bell.ring()
	}
}

// heard is for the loop, when the bell wakes it. It says when the bell was rung.
func (m *mailbox) heard() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rang = false
	return m.rung
}

// waits is for how long the loop has been at its turn, or has not come to the one that it was asked for.
func (m *mailbox) waits(now time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	var longest time.Duration
	if m.inTurn {
		longest = now - m.began
	}
	if m.rang {
		longest = max(longest, now-m.rung)
	}
	if m.closed {
		return 0
	}
	return longest
}

// close silences the bell: the loop has ended.
func (m *mailbox) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rang, m.closed = true, true
	m.bell.close()
}

func (m *mailbox) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// putBytes is put for a connection whose frames, n bytes, were just appended to the arena. Frames
// that follow one another to the same connection become one letter, and so one write.
func (sh *shard) putBytes(kind letterKind, c *Conn, n int) {
	m := &sh.mail
	if last := len(m.letters) - 1; last >= 0 {
		if l := &m.letters[last]; l.kind == kind && l.conn == c {
			l.n += n
			return
		}
	}
	sh.put(letter{kind: kind, conn: c, n: n})
}

// hasRoom reports whether the loop can take another n bytes to hand out.
func (sh *shard) hasRoom(n int64) bool { return sh.backlog.Load()+n <= sh.srv.settings().maxBacklog }

// refuse counts a message for which there is no room.
func (sh *shard) refuse() error {
	sh.stats.Drop(DropOverloaded, 1)
	return ErrOverloaded
}

func (sh *shard) postMessage(c *Conn, op codec.Opcode, payload []byte) error {
	if !sh.hasRoom(int64(len(payload))) {
		return sh.refuse()
	}
	switch {
	case c.isEvents():
		sh.postEvent(c, op, payload)
		return nil
	case len(payload) >= largeMessage && !c.deflates(): // the arena would grow for it, and a slow client copy it once more
		return sh.postFrame(c, codec.NewFrame(op, payload))
	}
	sh.stats.Deliveries.Add(1)
	sh.postBytes(letterBytes, c, op, payload)
	return nil
}

// postBytes is for messages, and for replies and control frames, which no limit may hold up.
func (sh *shard) postBytes(kind letterKind, c *Conn, op codec.Opcode, payload []byte) {
	if c.deflates() && op < codec.OpClose {
		// Compression takes long, so it is not done under the lock.
		buf := compressed.Get().(*[]byte)
		defer compressed.Put(buf)
		*buf = c.ep.now().deflater.AppendFrameWithin((*buf)[:0], op, payload, c.window)
		sh.postEncoded(kind, c, *buf)
		return
	}
	m := &sh.mail
	m.mu.Lock()
	before := len(m.arena)
	m.arena = codec.AppendFrame(m.arena, op, payload)
	sh.backlog.Add(int64(len(m.arena) - before))
	sh.putBytes(kind, c, len(m.arena)-before)
	m.mu.Unlock()
}

// compressed are buffers for frames on their way into an arena.
var compressed = sync.Pool{New: func() any { return new([]byte) }}

func (sh *shard) postEncoded(kind letterKind, c *Conn, frame []byte) {
	m := &sh.mail
	m.mu.Lock()
	m.arena = append(m.arena, frame...)
	sh.backlog.Add(int64(len(frame)))
	sh.putBytes(kind, c, len(frame))
	m.mu.Unlock()
}

// postEvent is for messages to a connection that gets server-sent events.
func (sh *shard) postEvent(c *Conn, op codec.Opcode, payload []byte) {
	f := event(op, payload)
	sh.backlog.Add(int64(len(f.Plain())))
	sh.post(letter{kind: letterFrame, conn: c, frame: f})
}

func (sh *shard) postFrame(c *Conn, f *codec.Frame) error {
	if c.isEvents() {
		f = event(f.Opcode(), f.Payload())
	}
	n := int64(len(f.Plain()))
	if !sh.hasRoom(n) {
		return sh.refuse()
	}
	sh.backlog.Add(n)
	sh.post(letter{kind: letterFrame, conn: c, frame: f})
	return nil
}

func (sh *shard) postClose(c *Conn, how closeHow, code codec.CloseCode, reason string) {
	m := &sh.mail
	m.mu.Lock()
	defer m.mu.Unlock()
	m.arena = append(m.arena, byte(how), byte(code>>8), byte(code))
	m.arena = append(m.arena, reason...)
	sh.put(letter{kind: letterClose, conn: c, n: 3 + len(reason)})
}

func (sh *shard) post(l letter) {
	sh.mail.mu.Lock()
	defer sh.mail.mu.Unlock()
	sh.put(l)
}

// postTick, postRelief, postTimers and postGoAway leave a mark rather than a letter, so that they cannot pile up.
func (sh *shard) postTick()   { sh.postMark(&sh.mail.tick) }
func (sh *shard) postRelief() { sh.postMark(&sh.mail.relief) }
func (sh *shard) postTimers() { sh.postMark(&sh.mail.timers) }
func (sh *shard) postGoAway() { sh.postMark(&sh.mail.goAway) }

func (sh *shard) postMark(mark *bool) {
	sh.mail.mu.Lock()
	defer sh.mail.mu.Unlock()
	*mark = true
	sh.mail.wake()
}

// The arena and the letters of a quiet shard are given back above these sizes.
const (
	keepArena   = 256 << 10
	keepLetters = 4096
)

// correspondence is what the loop has taken out of its mailbox and has not read to the end.
type correspondence struct {
	letters []letter
	arena   []byte
	read    int // letters
	offset  int // of the first unread letter's bytes in the arena
	goAway  bool
}

func (r *correspondence) done() bool { return r.read == len(r.letters) }

// doCost is about what a function takes in memory, in bytes.
const doCost = 128

// postDo has the loop call a function. It counts for n bytes, and for what it takes itself, in the backlog.
func (sh *shard) postDo(c *Conn, n int, do func()) {
	n += doCost
	sh.backlog.Add(int64(n))
	sh.post(letter{kind: letterDo, conn: c, seq: uint32(n), do: do})
}

// readMail does what the letters say, in their order. It looks into the mailbox once, so that nobody
// who keeps writing can hold the loop here, and stops after a slice of time.
func (sh *shard) readMail() {
	r := &sh.reading
	if r.done() {
		sh.takeMail()
	}
	start, limit := time.Now(), sh.sliceTime()
	first := r.read
	defer func() { sh.backlog.Add(-letterCost * int64(r.read-first)) }()
	for !r.done() {
		l, at := &r.letters[r.read], r.offset
		r.read++
		sh.read++
		r.offset += l.n
		sh.open(l, r.arena[at:r.offset])
		// While streams wait, a connection that is sent something has to catch up first, which takes longer.
		if (r.read&15 == 0 || sh.pending.len() > 0 || l.varies()) && time.Since(start) > limit {
			return
		}
	}
	sh.goingAway = r.goAway // not before the letters are read that came before it
}

// takeMail empties the mailbox and leaves the memory of the last letters in it.
func (sh *shard) takeMail() {
	r, m := &sh.reading, &sh.mail
	clear(r.letters)
	if cap(r.letters) > keepLetters {
		r.letters = nil
	}
	if cap(r.arena) > keepArena {
		r.arena = nil
	}
	m.mu.Lock()
	r.letters, m.letters = m.letters, r.letters[:0]
	r.arena, m.arena = m.arena, r.arena[:0]
	tick, goAway, relief, timers := m.tick, m.goAway, m.relief, m.timers
	m.tick, m.goAway, m.relief, m.timers = false, false, false, false
	m.mu.Unlock()
	r.read, r.offset = 0, 0
	if relief {
		sh.relieve()
	}
	if tick {
		sh.beginSweep()
		sh.run.forget()
		sh.dropReplies()
	}
	sh.timers.due = sh.timers.due || timers
	r.goAway = r.goAway || goAway
}

// open does what a letter says. What it has in the backlog leaves that only when it has arrived somewhere
// else, in one step, so that nobody who looks meanwhile finds it nowhere or twice.
func (sh *shard) open(l *letter, b []byte) {
	switch l.kind {
	case letterBytes:
		l.conn.sendBytes(b, itemMessage)
		sh.backlog.Add(-int64(l.n))
	case letterReply:
		l.conn.sendBytes(b, itemReply)
		sh.backlog.Add(-int64(l.n))
	case letterFrame:
		sh.tally.deliveries++
		l.conn.sendFrame(l.frame)
		l.conn.chargeOutput(len(l.frame.Plain()))
		sh.backlog.Add(-int64(len(l.frame.Plain())))
	case letterPublish, letterGap:
		sh.backlog.Add(int64(l.local.publish(l) - len(l.frame.Plain())))
	case letterClose:
		l.conn.startClose(closeHow(b[0]), codec.CloseCode(binary.BigEndian.Uint16(b[1:])), string(b[3:]))
	case letterWritable:
		sh.writable.push(l.conn)
	case letterDo:
		sh.backlog.Add(-int64(l.seq)) // what it may publish takes the place of its bytes
		l.conn.call(l.do)
	}
}
