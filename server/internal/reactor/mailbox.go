package reactor

import (
	"encoding/binary"
	"sync"
	"time"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/internal/outbox"
	"carillon/server/stats"
	"carillon/server/topic"
)

// mailbox holds the commands that goroutines, the loop itself included, post to a loop. Everything is sent in the order
// of the commands, so even a handler's own Send goes through here.
type mailbox struct {
	mu       sync.Mutex
	commands []Command
	arena    []byte // bytes of the commands, one after the other
	tick     bool   // a sweep is due
	goAway   bool   // the server shuts down
	InTurn   bool   // the loop is awake, and looks before it sleeps
	waking   bool   // the loop has been woken, and has not come to it
	relief   bool   // connections may go on that wait for fan-out
	timers   bool   // some are due
	closed   bool   // the loop has ended
	waker    *waker // used under mu, and so not after it is closed

	began time.Duration // when inTurn was set last, after the server was made
	woken time.Duration // when waking was

	posted uint64 // commands, ever
}

// CommandKind says what a loop does with a command.
type CommandKind uint8

const (
	commandBytes    CommandKind = iota // encoded frames for conn, in the arena
	CommandReply                       // the same, of replies to its requests
	commandFrame                       // frame for conn
	CommandPublish                     // payload for the receivers of feed
	CommandGap                         // the same, and some learn of the gap only by a close: see closeForGap
	commandClose                       // close conn; how, code and reason are in the arena
	CommandWritable                    // the socket of conn takes bytes again
	CommandDo                          // call do for conn
)

// Command is an item of a mailbox.
type Command struct {
	Conn    *Conn
	Frame   *codec.Frame // for conn, or the raw one of payload
	Feed    Feed
	Payload Payload
	Do      func()
	n       int    // bytes in the arena
	Cost    int    // bytes that payload counts for in the backlog
	Seq     uint32 // of payload in feed; what do counts for in the backlog
	At      Stamp  // when payload was published
	Latest  bool   // slow receivers need only the newest payload
	Kind    CommandKind
}

// varies reports whether it is unknown how long the command takes.
func (cmd *Command) varies() bool {
	switch {
	case cmd.Kind == CommandDo:
		return true
	case cmd.Frame != nil:
		return len(cmd.Frame.Payload()) >= envelope.LargeText
	}
	return cmd.n >= envelope.LargeText
}

// CommandCost is about how much memory a command takes, in bytes. It counts in the backlog, so that very many small
// messages, or one message for very many patterns, fill it as well.
const CommandCost = 128

// put appends a command. The caller holds the mailbox's mu.
func (sh *Shard) put(cmd Command) {
	m := &sh.Mail
	sh.Backlog.Add(CommandCost)
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
	if !m.InTurn && !m.waking {
		m.waking, m.woken = true, m.waker.sh.Engine.Uptime()
		m.waker.wake()
	}
}

// wake has the loop take another turn.
func (sh *Shard) wake() {
	sh.Mail.mu.Lock()
	defer sh.Mail.mu.Unlock()
	sh.Mail.wake()
}

// acknowledge is called by the loop when it has been woken, and returns when wake was called.
func (m *mailbox) acknowledge() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waking = false
	return m.woken
}

// Waits returns how long the loop's turn has taken so far, or how long ago it was woken without having come to it.
func (m *mailbox) Waits(now time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	var longest time.Duration
	if m.InTurn {
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

// IsClosed reports whether the loop has ended.
func (m *mailbox) IsClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// putBytes is put for a connection whose frames, n bytes, were just appended to the arena. Frames
// that follow one another to the same connection become one command, and so one write.
func (sh *Shard) putBytes(kind CommandKind, c *Conn, n int) {
	m := &sh.Mail
	if last := len(m.commands) - 1; last >= 0 {
		if cmd := &m.commands[last]; cmd.Kind == kind && cmd.Conn == c {
			cmd.n += n
			return
		}
	}
	sh.put(Command{Kind: kind, Conn: c, n: n})
}

// HasRoom reports whether the loop can take another n bytes to hand out.
func (sh *Shard) HasRoom(n int64) bool { return sh.Backlog.Load()+n <= sh.Engine.Settings().MaxBacklog }

// BacklogBytes is what the loops have not handed to connections.
func (e *Engine) BacklogBytes() (n int64) {
	for _, sh := range e.AllShards() {
		n += sh.Backlog.Load()
	}
	return n
}

// Refuse counts a message for which there is no room.
func (sh *Shard) Refuse() error {
	sh.Stats.Drop(stats.DropOverloaded, 1)
	return topic.ErrOverloaded
}

func (sh *Shard) postMessage(c *Conn, op codec.Opcode, payload []byte) error {
	if !sh.HasRoom(int64(len(payload))) {
		return sh.Refuse()
	}
	switch {
	case c.IsEvents():
		sh.postEvent(c, op, payload)
		return nil
	case len(payload) >= largeMessage && !c.Deflates(): // the arena would grow for it, and a slow client copy it once more
		return sh.postFrame(c, codec.NewFrame(op, payload))
	}
	sh.Stats.Deliveries.Add(1)
	sh.PostBytes(commandBytes, c, op, payload)
	return nil
}

// PostBytes is for messages, and for replies and control frames, which no limit may hold up.
func (sh *Shard) PostBytes(kind CommandKind, c *Conn, op codec.Opcode, payload []byte) {
	if c.Deflates() && op < codec.OpClose {
		// Compression takes long, so it is not done under the lock.
		buf := compressed.Get().(*[]byte)
		defer compressed.Put(buf)
		*buf = c.Settings().Deflater.AppendFrameWithin((*buf)[:0], op, payload, c.window)
		sh.postEncoded(kind, c, *buf)
		return
	}
	m := &sh.Mail
	m.mu.Lock()
	before := len(m.arena)
	m.arena = codec.AppendFrame(m.arena, op, payload)
	sh.Backlog.Add(int64(len(m.arena) - before))
	sh.putBytes(kind, c, len(m.arena)-before)
	m.mu.Unlock()
}

// compressed are buffers for frames on their way into an arena.
var compressed = sync.Pool{New: func() any { return new([]byte) }}

func (sh *Shard) postEncoded(kind CommandKind, c *Conn, frame []byte) {
	m := &sh.Mail
	m.mu.Lock()
	m.arena = append(m.arena, frame...)
	sh.Backlog.Add(int64(len(frame)))
	sh.putBytes(kind, c, len(frame))
	m.mu.Unlock()
}

// postEvent is for messages to a connection that gets server-sent events.
func (sh *Shard) postEvent(c *Conn, op codec.Opcode, payload []byte) {
	f := Event(op, payload)
	sh.Backlog.Add(int64(len(f.Plain())))
	sh.Post(Command{Kind: commandFrame, Conn: c, Frame: f})
}

func (sh *Shard) postFrame(c *Conn, f *codec.Frame) error {
	if c.IsEvents() {
		f = Event(f.Opcode(), f.Payload())
	}
	n := int64(len(f.Plain()))
	if !sh.HasRoom(n) {
		return sh.Refuse()
	}
	sh.Backlog.Add(n)
	sh.Post(Command{Kind: commandFrame, Conn: c, Frame: f})
	return nil
}

// PostClose has the loop begin a close. The reason is copied.
func (sh *Shard) PostClose(c *Conn, how closeHow, code codec.CloseCode, reason string) {
	m := &sh.Mail
	m.mu.Lock()
	defer m.mu.Unlock()
	m.arena = append(m.arena, byte(how), byte(code>>8), byte(code))
	m.arena = append(m.arena, reason...)
	sh.put(Command{Kind: commandClose, Conn: c, n: 3 + len(reason)})
}

// Post leaves a command for the loop, and wakes it. It may be called from any goroutine.
func (sh *Shard) Post(cmd Command) {
	sh.Mail.mu.Lock()
	defer sh.Mail.mu.Unlock()
	sh.put(cmd)
}

// PostTick, postRelief, postTimers and PostGoAway leave a mark rather than a command, so that they cannot pile up.
func (sh *Shard) PostTick()   { sh.postMark(&sh.Mail.tick) }
func (sh *Shard) postRelief() { sh.postMark(&sh.Mail.relief) }
func (sh *Shard) postTimers() { sh.postMark(&sh.Mail.timers) }
func (sh *Shard) PostGoAway() { sh.postMark(&sh.Mail.goAway) }

func (sh *Shard) postMark(mark *bool) {
	sh.Mail.mu.Lock()
	defer sh.Mail.mu.Unlock()
	*mark = true
	sh.Mail.wake()
}

// The arena and the commands of a quiet shard are given back above these sizes.
const (
	keepArena    = 256 << 10
	keepCommands = 4096
)

// inbox holds the commands that the loop has taken out of its mailbox, some of which it has run.
type inbox struct {
	commands []Command
	arena    []byte
	ran      int // of the commands
	offset   int // in the arena, of the bytes of the first command that has not run
	goAway   bool
}

// Done reports whether all commands have been run.
func (r *inbox) Done() bool { return r.ran == len(r.commands) }

// DoCost is about what a function takes in memory, in bytes.
const DoCost = 128

// PostDo has the loop call a function. It counts for n bytes, and for what it takes itself, in the backlog.
func (sh *Shard) PostDo(c *Conn, n int, do func()) {
	n += DoCost
	sh.Backlog.Add(int64(n))
	sh.Post(Command{Kind: CommandDo, Conn: c, Seq: uint32(n), Do: do})
}

// RunCommands runs the commands in their order. It empties the mailbox once, so that a goroutine that keeps posting
// cannot hold the loop here, and stops after a slice of time.
func (sh *Shard) RunCommands() {
	r := &sh.Reading
	if r.Done() {
		sh.takeCommands()
	}
	start, limit := time.Now(), sh.sliceTime()
	first := r.ran
	defer func() { sh.Backlog.Add(-CommandCost * int64(r.ran-first)) }()
	for !r.Done() {
		cmd, at := &r.commands[r.ran], r.offset
		r.ran++
		sh.ran++
		r.offset += cmd.n
		sh.execute(cmd, r.arena[at:r.offset])
		// While streams wait, a connection that is sent something has to catch up first, which takes longer.
		if (r.ran&15 == 0 || sh.Pending.Len() > 0 || cmd.varies()) && time.Since(start) > limit {
			return
		}
	}
	sh.GoingAway = r.goAway // not before the commands have run that came before it
}

// takeCommands empties the mailbox and leaves the memory of the last commands in it.
func (sh *Shard) takeCommands() {
	r, m := &sh.Reading, &sh.Mail
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
		sh.Run.forget()
		sh.dropReplies()
	}
	sh.Timers.due = sh.Timers.due || timers
	r.goAway = r.goAway || goAway
}

// execute runs a command. Its bytes leave the backlog only when they are counted elsewhere, in one step, so that an
// observer never sees them twice or not at all.
func (sh *Shard) execute(cmd *Command, b []byte) {
	switch cmd.Kind {
	case commandBytes:
		cmd.Conn.SendBytes(b, outbox.Message)
		sh.Backlog.Add(-int64(cmd.n))
	case CommandReply:
		cmd.Conn.SendBytes(b, outbox.Reply)
		sh.Backlog.Add(-int64(cmd.n))
	case commandFrame:
		sh.Counters.Deliveries++
		cmd.Conn.sendFrame(cmd.Frame)
		cmd.Conn.chargeOutput(len(cmd.Frame.Plain()))
		sh.Backlog.Add(-int64(len(cmd.Frame.Plain())))
	case CommandPublish, CommandGap:
		sh.Backlog.Add(int64(cmd.Feed.Publish(cmd) - cmd.Cost))
	case commandClose:
		cmd.Conn.StartClose(closeHow(b[0]), codec.CloseCode(binary.BigEndian.Uint16(b[1:])), string(b[3:]))
	case CommandWritable:
		sh.writable.push(cmd.Conn)
	case CommandDo:
		sh.Backlog.Add(-int64(cmd.Seq)) // what it may publish takes the place of its bytes
		cmd.Conn.call(cmd.Do)
	}
}
