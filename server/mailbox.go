package server

import (
	"encoding/binary"
	"sync"
	"time"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/stats"
	"carillon/server/topic"
)

// mailbox holds the commands that goroutines, the loop itself included, post to a loop. Everything is sent in the order
// of the commands, so even a handler's own Send goes through here.
type mailbox struct {
	mu       sync.Mutex
	commands []command
	arena    []byte // bytes of the commands, one after the other
	tick     bool   // a sweep is due
	goAway   bool   // the server shuts down
	inTurn   bool   // the loop is awake, and looks before it sleeps
	waking   bool   // the loop has been woken, and has not come to it
	relief   bool   // connections may go on that wait for fan-out
	timers   bool   // some are due
	closed   bool   // the loop has ended
	waker    *waker // used under mu, and so not after it is closed

	began time.Duration // when inTurn was set last, after the server was made
	woken time.Duration // when waking was

	posted uint64 // commands, ever
}

type commandKind uint8

const (
	commandBytes    commandKind = iota // encoded frames for conn, in the arena
	commandReply                       // the same, of replies to its requests
	commandFrame                       // frame for conn
	commandPublish                     // payload for the receivers of feed
	commandGap                         // the same, and some learn of the gap only by a close: see closeForGap
	commandClose                       // close conn; how, code and reason are in the arena
	commandWritable                    // the socket of conn takes bytes again
	commandDo                          // call do for conn
)

type command struct {
	conn    *Conn
	frame   *codec.Frame // for conn, or the raw one of payload
	feed    feed
	payload payload
	do      func()
	n       int    // bytes in the arena
	seq     uint32 // of payload in feed; what do counts for in the backlog
	at      stamp  // when payload was published
	latest  bool   // slow receivers need only the newest payload
	kind    commandKind
}

// varies reports whether it is unknown how long the command takes.
func (cmd *command) varies() bool {
	switch {
	case cmd.kind == commandDo:
		return true
	case cmd.frame != nil:
		return len(cmd.frame.Payload()) >= envelope.LargeText
	}
	return cmd.n >= envelope.LargeText
}

// commandCost is about how much memory a command takes, in bytes. It counts in the backlog, so that very many small
// messages, or one message for very many patterns, fill it as well.
const commandCost = 128

// put appends a command. The caller holds the mailbox's mu.
func (sh *shard) put(cmd command) {
	m := &sh.mail
	sh.backlog.Add(commandCost)
	m.commands = append(m.commands, cmd)
	m.posted++
	m.wake()
}

// count is how many commands have been posted.
func (m *mailbox) count() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.posted
}

// wake makes sure that the loop runs the commands. The caller holds mu.
func (m *mailbox) wake() {
	if !m.inTurn && !m.waking {
		m.waking, m.woken = true, m.waker.sh.engine.uptime()
		m.waker.wake()
	}
}

// wake has the loop take another turn.
func (sh *shard) wake() {
	sh.mail.mu.Lock()
	defer sh.mail.mu.Unlock()
	sh.mail.wake()
}

// acknowledge is called by the loop when it has been woken, and returns when wake was called.
func (m *mailbox) acknowledge() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waking = false
	return m.woken
}

// waits returns how long the loop's turn has taken so far, or how long ago it was woken without having come to it.
func (m *mailbox) waits(now time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	var longest time.Duration
	if m.inTurn {
		longest = now - m.began
	}
	if m.waking {
		longest = max(longest, now-m.woken)
	}
	if m.closed {
		return 0
	}
	return longest
}

// close closes the waker, because the loop has ended.
func (m *mailbox) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waking, m.closed = true, true
	m.waker.close()
}

func (m *mailbox) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// putBytes is put for a connection whose frames, n bytes, were just appended to the arena. Frames
// that follow one another to the same connection become one command, and so one write.
func (sh *shard) putBytes(kind commandKind, c *Conn, n int) {
	m := &sh.mail
	if last := len(m.commands) - 1; last >= 0 {
		if cmd := &m.commands[last]; cmd.kind == kind && cmd.conn == c {
			cmd.n += n
			return
		}
	}
	sh.put(command{kind: kind, conn: c, n: n})
}

// hasRoom reports whether the loop can take another n bytes to hand out.
func (sh *shard) hasRoom(n int64) bool { return sh.backlog.Load()+n <= sh.engine.settings().maxBacklog }

// backlogBytes is what the loops have not handed to connections.
func (e *engine) backlogBytes() (n int64) {
	for _, sh := range e.allShards() {
		n += sh.backlog.Load()
	}
	return n
}

// refuse counts a message for which there is no room.
func (sh *shard) refuse() error {
	sh.stats.Drop(stats.DropOverloaded, 1)
	return topic.ErrOverloaded
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
	sh.postBytes(commandBytes, c, op, payload)
	return nil
}

// postBytes is for messages, and for replies and control frames, which no limit may hold up.
func (sh *shard) postBytes(kind commandKind, c *Conn, op codec.Opcode, payload []byte) {
	if c.deflates() && op < codec.OpClose {
		// Compression takes long, so it is not done under the lock.
		buf := compressed.Get().(*[]byte)
		defer compressed.Put(buf)
		*buf = c.settings().deflater.AppendFrameWithin((*buf)[:0], op, payload, c.window)
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

func (sh *shard) postEncoded(kind commandKind, c *Conn, frame []byte) {
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
	sh.post(command{kind: commandFrame, conn: c, frame: f})
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
	sh.post(command{kind: commandFrame, conn: c, frame: f})
	return nil
}

func (sh *shard) postClose(c *Conn, how closeHow, code codec.CloseCode, reason string) {
	m := &sh.mail
	m.mu.Lock()
	defer m.mu.Unlock()
	m.arena = append(m.arena, byte(how), byte(code>>8), byte(code))
	m.arena = append(m.arena, reason...)
	sh.put(command{kind: commandClose, conn: c, n: 3 + len(reason)})
}

func (sh *shard) post(cmd command) {
	sh.mail.mu.Lock()
	defer sh.mail.mu.Unlock()
	sh.put(cmd)
}

// postTick, postRelief, postTimers and postGoAway leave a mark rather than a command, so that they cannot pile up.
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

// The arena and the commands of a quiet shard are given back above these sizes.
const (
	keepArena    = 256 << 10
	keepCommands = 4096
)

// inbox holds the commands that the loop has taken out of its mailbox, some of which it has run.
type inbox struct {
	commands []command
	arena    []byte
	ran      int // of the commands
	offset   int // in the arena, of the bytes of the first command that has not run
	goAway   bool
}

func (r *inbox) done() bool { return r.ran == len(r.commands) }

// doCost is about what a function takes in memory, in bytes.
const doCost = 128

// postDo has the loop call a function. It counts for n bytes, and for what it takes itself, in the backlog.
func (sh *shard) postDo(c *Conn, n int, do func()) {
	n += doCost
	sh.backlog.Add(int64(n))
	sh.post(command{kind: commandDo, conn: c, seq: uint32(n), do: do})
}

// runCommands runs the commands in their order. It empties the mailbox once, so that a goroutine that keeps posting
// cannot hold the loop here, and stops after a slice of time.
func (sh *shard) runCommands() {
	r := &sh.reading
	if r.done() {
		sh.takeCommands()
	}
	start, limit := time.Now(), sh.sliceTime()
	first := r.ran
	defer func() { sh.backlog.Add(-commandCost * int64(r.ran-first)) }()
	for !r.done() {
		cmd, at := &r.commands[r.ran], r.offset
		r.ran++
		sh.ran++
		r.offset += cmd.n
		sh.execute(cmd, r.arena[at:r.offset])
		// While streams wait, a connection that is sent something has to catch up first, which takes longer.
		if (r.ran&15 == 0 || sh.pending.len() > 0 || cmd.varies()) && time.Since(start) > limit {
			return
		}
	}
	sh.goingAway = r.goAway // not before the commands have run that came before it
}

// takeCommands empties the mailbox and leaves the memory of the last commands in it.
func (sh *shard) takeCommands() {
	r, m := &sh.reading, &sh.mail
	clear(r.commands)
	if cap(r.commands) > keepCommands {
		r.commands = nil
	}
	if cap(r.arena) > keepArena {
		r.arena = nil
	}
	m.mu.Lock()
	r.commands, m.commands = m.commands, r.commands[:0]
	r.arena, m.arena = m.arena, r.arena[:0]
	tick, goAway, relief, timers := m.tick, m.goAway, m.relief, m.timers
	m.tick, m.goAway, m.relief, m.timers = false, false, false, false
	m.mu.Unlock()
	r.ran, r.offset = 0, 0
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

// execute runs a command. Its bytes leave the backlog only when they are counted elsewhere, in one step, so that an
// observer never sees them twice or not at all.
func (sh *shard) execute(cmd *command, b []byte) {
	switch cmd.kind {
	case commandBytes:
		cmd.conn.sendBytes(b, itemMessage)
		sh.backlog.Add(-int64(cmd.n))
	case commandReply:
		cmd.conn.sendBytes(b, itemReply)
		sh.backlog.Add(-int64(cmd.n))
	case commandFrame:
		sh.counters.deliveries++
		cmd.conn.sendFrame(cmd.frame)
		cmd.conn.chargeOutput(len(cmd.frame.Plain()))
		sh.backlog.Add(-int64(len(cmd.frame.Plain())))
	case commandPublish, commandGap:
		sh.backlog.Add(int64(cmd.feed.publish(cmd) - len(cmd.frame.Plain())))
	case commandClose:
		cmd.conn.startClose(closeHow(b[0]), codec.CloseCode(binary.BigEndian.Uint16(b[1:])), string(b[3:]))
	case commandWritable:
		sh.writable.push(cmd.conn)
	case commandDo:
		sh.backlog.Add(-int64(cmd.seq)) // what it may publish takes the place of its bytes
		cmd.conn.call(cmd.do)
	}
}
