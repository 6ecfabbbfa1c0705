package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// positions is the file in which a node remembers how far the streams were when it last saw them. It is not in
// JetStream's directory, so that an older copy of that does not bring an older copy of this with it.
//
// Each new sequence is written before anyone gets it. The write is not followed by an fsync: it outlives the process,
// not the machine. For the machine there is a reservation: no sequence beyond it is given out before a higher one is on
// the disk. After a power loss a stream that is shorter than the reservation may have lost messages, and is taken for
// one that has: a reservation can begin an epoch for nothing, but never hides a loss.
//
// Each stream has two slots of fixed size, which are written in turn, so that one is whole when the other is torn.
type positions struct {
	log  *slog.Logger // immutable
	boot [16]byte     // immutable: this start of the machine; zero is unknown

	mu      sync.Mutex
	file    *os.File             // guarded by mu; nil without a file
	entries map[string]*position // guarded by mu: by the id of the rule
	pairs   int                  // guarded by mu: of slots, in the file
	broken  []int                // guarded by mu: pairs that cannot be read
	failed  bool                 // guarded by mu: the last write failed
	buffer  [slotSize]byte       // guarded by mu
}

// position is what the file has of a stream.
type position struct {
	mark
	census     census
	reserved   uint64   // what was given out is not beyond it
	boot       [16]byte // the start of the machine in which it was written
	clean      bool     // the node ended in order: mark is exact
	generation uint64

	pair      int
	begun     bool
	durable   uint64 // the reservation that is on the disk
	changed   time.Time
	extending bool
	past      []string // epochs that have ended, as far as there is room
}

const (
	reserveStep = 1 << 20         // sequences
	reserveTime = 3 * time.Minute // without a message, after which nothing is reserved: JetStream syncs every 2 minutes

	slotSize  = 256
	slotMagic = 0x43504f31 // CPO1
	pastAt    = 144
	pastSize  = 16 // an epoch has eight characters
	maxPast   = (slotSize - pastAt) / pastSize
)

var errSlot = errors.New("not a slot of a positions file")

// openPositions reads the file, or makes it.
func openPositions(path string, boot string, log *slog.Logger) (*positions, error) {
	p := &positions{log: log, entries: map[string]*position{}}
	if boot != "" {
		sum := sha256.Sum256([]byte(boot))
		copy(p.boot[:], sum[:])
	}
	if path == "" {
		return p, nil
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	p.file = file
	p.read(data)
	if len(data) == 0 {
		if dir, err := os.Open(filepath.Dir(path)); err == nil {
			_ = dir.Sync() // not every file system can
			dir.Close()
		}
	}
	return p, nil
}

func (p *positions) read(data []byte) {
	p.pairs = (len(data) + 2*slotSize - 1) / (2 * slotSize)
	for i := range p.pairs {
		pair := data[i*2*slotSize : min((i+1)*2*slotSize, len(data))]
		var best *position
		var rule string
		for len(pair) > 0 {
			n := min(slotSize, len(pair))
			if id, one, err := readSlot(pair[:n]); err == nil && (best == nil || one.generation > best.generation) {
				rule, best = id, one
			}
			pair = pair[n:]
		}
		if best == nil {
			p.broken = append(p.broken, i)
			continue
		}
		best.pair = i
		p.entries[rule] = best
	}
}

// slot writes a slot to b.
func (e *position) slot(b []byte, rule string) []byte {
	clear(b)
	le := binary.LittleEndian
	le.PutUint32(b, slotMagic)
	le.PutUint64(b[8:], e.generation)
	copy(b[16:32], rule)
	copy(b[32:64], e.epoch)
	le.PutUint64(b[64:], e.seq)
	le.PutUint64(b[72:], uint64(e.at))
	le.PutUint64(b[80:], e.reserved)
	copy(b[88:104], e.boot[:])
	if e.clean {
		b[104] = 1
	}
	if e.loose {
		b[105] = 1
	}
	le.PutUint64(b[112:], e.census.first)
	le.PutUint64(b[120:], e.census.last)
	le.PutUint64(b[128:], e.census.messages)
	le.PutUint64(b[136:], e.census.history)
	for i, one := range e.past {
		copy(b[pastAt+i*pastSize:][:pastSize], one)
	}
	le.PutUint32(b[4:], crc32.ChecksumIEEE(b[8:]))
	return b
}

func readSlot(b []byte) (rule string, e *position, err error) {
	le := binary.LittleEndian
	if len(b) != slotSize || le.Uint32(b) != slotMagic || le.Uint32(b[4:]) != crc32.ChecksumIEEE(b[8:]) {
		return "", nil, errSlot
	}
	e = &position{generation: le.Uint64(b[8:]), reserved: le.Uint64(b[80:]), clean: b[104] == 1}
	e.mark = mark{string(bytes.TrimRight(b[32:64], "\x00")), le.Uint64(b[64:]), int64(le.Uint64(b[72:])), b[105] == 1}
	copy(e.boot[:], b[88:104])
	e.census = census{le.Uint64(b[112:]), le.Uint64(b[120:]), le.Uint64(b[128:]), le.Uint64(b[136:])}
	for i := range maxPast {
		if one := bytes.TrimRight(b[pastAt+i*pastSize:][:pastSize], "\x00"); len(one) > 0 {
			e.past = append(e.past, string(one))
		}
	}
	return string(bytes.TrimRight(b[16:32], "\x00")), e, nil
}

// before returns what a run before this one has left of a stream. unsure is a sequence up to which messages may have
// been given out without being in the mark: of a machine that crashed, the reservation. unread means that the file had
// something that cannot be read.
func (p *positions) before(rule string) (m mark, c census, unsure uint64, unread bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[rule]
	if e == nil {
		return m, c, 0, len(p.broken) > 0
	}
	if !e.clean && (e.boot != p.boot || p.boot == [16]byte{}) {
		unsure = e.reserved
	}
	return e.mark, e.census, unsure, false
}

// past lists the epochs of a stream that are known to have ended.
func (p *positions) past(rule string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[rule]; e != nil {
		return e.past
	}
	return nil
}

// turn notes a mark of another epoch. The caller holds mu.
func (e *position) turn(m mark) {
	if e.epoch != m.epoch && e.epoch != "" {
		e.past = append(slices.DeleteFunc(slices.Clone(e.past), func(one string) bool { return one == m.epoch }), e.epoch)
		e.past = e.past[max(0, len(e.past)-maxPast):]
		e.census = census{}
	}
	e.mark, e.reserved = m, m.seq
}

// begin notes the mark of a stream that was compared with what the file had. Nothing is noted of a stream before that.
func (p *positions) begin(rule string, m mark) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return
	}
	e := p.entries[rule]
	switch {
	case e == nil && len(p.broken) > 0:
		e, p.broken = &position{pair: p.broken[0]}, p.broken[1:]
	case e == nil:
		e = &position{pair: p.pairs}
		p.pairs++
	}
	p.entries[rule] = e
	e.turn(m)
	e.clean, e.begun, e.changed = false, true, time.Now()
	p.sync(rule, e)
}

// mend overwrites what cannot be read and is of no stream that there is.
func (p *positions) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return
	}
	for _, pair := range p.broken {
		p.sync("-", &position{pair: pair, clean: true})
	}
	p.broken = nil
}

// saw notes the mark of a stream, if it is a later one, before anyone gets it.
func (p *positions) saw(rule string, m mark) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[rule]
	if p.file == nil || e == nil || !e.begun {
		return
	}
	switch {
	case e.epoch != m.epoch:
		e.turn(m)
		p.sync(rule, e)
	case m.seq < e.seq, m.seq == e.seq && (m.loose || !e.loose && e.at != 0):
		return
	case m.seq > e.durable:
		e.mark, e.reserved = m, m.seq+reserveStep
		p.sync(rule, e)
	default:
		e.mark = m
		if m.seq+reserveStep/2 > e.durable && !e.extending {
			e.reserved, e.extending = m.seq+reserveStep, true
			go p.extend(e)
		}
		p.write(rule, e)
	}
	e.changed = time.Now()
}

// extend makes a reservation durable while messages go on.
func (p *positions) extend(e *position) {
	p.mu.Lock() // behind the write of the reservation
	file, epoch, reserved := p.file, e.epoch, e.reserved
	p.mu.Unlock()
	if file == nil {
		return
	}
	err := file.Sync()
	p.mu.Lock()
	defer p.mu.Unlock()
	e.extending = false
	if err == nil && e.epoch == epoch {
		e.durable = max(e.durable, reserved)
	}
}

// tidy notes the number of messages of a stream, and gives up its reservation when nothing has come for long.
func (p *positions) tidy(rule string, c census, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[rule]
	if p.file == nil || e == nil || !e.begun {
		return
	}
	if now.Sub(e.changed) > reserveTime && e.reserved > e.seq && !e.extending {
		e.reserved, e.durable = e.seq, e.seq
		p.sync(rule, e)
	}
	if e.census != c {
		e.census = c
		p.write(rule, e)
	}
}

// write writes the slot that is not the newest one. The caller holds mu.
func (p *positions) write(rule string, e *position) bool {
	e.generation++
	e.boot = p.boot
	_, err := p.file.WriteAt(e.slot(p.buffer[:], rule), int64(e.pair)*2*slotSize+int64(e.generation%2)*slotSize)
	p.report(err)
	return err == nil
}

// sync writes the slot and waits for the disk. The caller holds mu.
func (p *positions) sync(rule string, e *position) {
	if !p.write(rule, e) {
		return
	}
	err := p.file.Sync()
	if p.report(err); err == nil {
		e.durable = e.reserved
	}
}

// report logs that the file cannot be written, once. The caller holds mu.
func (p *positions) report(err error) {
	if err != nil && !p.failed {
		p.log.Error("cannot store the positions of the streams; if they lose messages while this node is down, it will not notice",
			"file", p.file.Name(), "error", err)
	}
	p.failed = err != nil
}

// close ends the use of the file. After an end in order its marks are exact.
func (p *positions) close(clean bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return
	}
	for rule, e := range p.entries {
		if clean && e.begun {
			e.clean, e.reserved = true, e.seq
			p.sync(rule, e)
		}
	}
	p.report(p.file.Close())
	p.file = nil
}

// openPositions opens the file of this node's options. By default it is beside the directory of the embedded server, or
// in it where that cannot be written to.
func (b *Broker) openPositions() (err error) {
	path, byDefault := b.o.Positions, b.o.Positions == ""
	if byDefault && b.o.NATS.StoreDir != "" {
		path = filepath.Clean(b.o.NATS.StoreDir) + ".positions"
	}
	if path == off || len(b.byRule) == 0 {
		path = ""
	}
	b.positions, err = openPositions(path, b.boot, b.log)
	if err != nil && byDefault {
		inside := filepath.Join(b.o.NATS.StoreDir, "carillon.positions")
		b.log.Warn("cannot write next to cluster.nats.store_dir; storing positions inside it, so this node will not notice if an older copy of the directory"+
			" is restored; set cluster.positions to a file elsewhere", "file", inside, "error", err)
		path = inside
		b.positions, err = openPositions(path, b.boot, b.log)
	}
	if err != nil {
		return fmt.Errorf("cluster.positions: %w", err)
	}
	return nil
}
