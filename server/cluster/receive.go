package cluster

import (
	"encoding/hex"
	"strconv"
	"sync"
	"time"

	"carillon/codec"
	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

// What may wait here for the server. The NATS client must never be held up, since then the NATS server would
// cut the connection; so what is beyond this is dropped, counted, and followed by a resync.
const (
	maxArrived      = 1 << 14 // in the channel, before the pump has looked at it
	maxPending      = 1 << 20
	maxPendingBytes = 64 << 20
)

// inbox is what came for topics and endpoints, in the order in which it came.
type inbox struct {
	arrived chan *nats.Msg
	wake    chan struct{}

	mu    sync.Mutex
	list  []*nats.Msg // guarded by mu
	bytes int         // guarded by mu
	since time.Time   // guarded by mu: when the first of the list came
	begun time.Time   // guarded by mu: the same of those that the receiver has taken; zero when it is done with them

	// Owned by the receiver.
	publishers map[uint64]publisher
	looked     time.Time // for silent ones
}

type publisher struct {
	count uint64 // of its last message
	heard time.Time
}

func (in *inbox) init() {
	in.arrived, in.wake = make(chan *nats.Msg, maxArrived), make(chan struct{}, 1)
	in.publishers = map[uint64]publisher{}
}

// pump moves messages from the channel, which is bounded by their number, to the list, which is bounded by
// their size.
func (b *Broker) pump() {
	in := &b.in
	for {
		select {
		case <-b.quit:
			return
		case m := <-in.arrived:
			in.mu.Lock()
			full := len(in.list) >= maxPending || in.bytes+len(m.Data) > maxPendingBytes
			if !full {
				if len(in.list) == 0 {
					in.since = time.Now()
				}
				in.bytes += len(m.Data)
				in.list = append(in.list, m)
			}
			in.mu.Unlock()
			if full {
				b.slow(1)
			} else {
				wake(in.wake)
			}
		}
	}
}

func (b *Broker) receiver() {
	in := &b.in
	for {
		select {
		case <-b.quit:
			return
		case <-in.wake:
		}
		in.mu.Lock()
		list := in.list
		in.list, in.bytes, in.begun = nil, 0, in.since
		in.mu.Unlock()
		now := time.Now()
		for _, m := range list {
			b.receive(m, now)
		}
		in.mu.Lock()
		in.begun = time.Time{}
		in.mu.Unlock()
		in.forget(now)
		if b.stats.behind.Swap(false) {
			b.resync("this node was too slow for its incoming messages")
		}
	}
}

// lag says for how long the oldest message has been here that was not handed over, at most.
func (in *inbox) lag() time.Duration {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case !in.begun.IsZero():
		return time.Since(in.begun)
	case len(in.list) > 0:
		return time.Since(in.since)
	}
	return 0
}

// slow counts messages that came faster than they could be taken.
func (b *Broker) slow(n int) {
	b.stats.slow.Add(uint64(n))
	if !b.stats.behind.Swap(true) {
		b.log.Warn("slow consumer: messages arrive faster than this node can process them; dropping some")
	}
	wake(b.in.wake)
}

func (b *Broker) receive(m *nats.Msg, now time.Time) {
	kind, rest := b.names.kind(m.Subject)
	if kind == 'r' {
		b.receiveStored(m, rest)
		return
	}
	e, payload, err := open(m.Data)
	if err != nil {
		b.foreign("a message")
		return
	}
	// A message comes once for each subscription that it matches, one behind the other, and a publisher's
	// messages come in order: so what is not beyond the last one has been here.
	if e.from == b.number || e.count <= b.in.publishers[e.from].count {
		b.stats.repeated.Add(1)
		return
	}
	b.in.publishers[e.from] = publisher{e.count, now}
	b.stats.received.Add(1)
	from := idOf(e.from)
	switch kind {
	case 'p':
		b.node.Transient(from, e.incarnation, e.seq, topic.Publication{Topic: rest, Format: topic.Format(e.format), Payload: payload}, time.UnixMilli(e.at))
	case 'b':
		if path, err := hex.DecodeString(rest); err == nil {
			b.node.Broadcast(from, string(path), codec.Opcode(e.format), payload, e.seq)
		}
	}
}

// forget forgets publishers that have been silent for long.
func (in *inbox) forget(now time.Time) {
	if now.Sub(in.looked) < time.Minute {
		return
	}
	in.looked = now
	for id, p := range in.publishers {
		if now.Sub(p.heard) > 10*time.Minute {
			delete(in.publishers, id)
		}
	}
}

// foreignPause is how often it is said that messages cannot be read.
const foreignPause = time.Minute

// foreign counts a message that this node does not know how to read.
func (b *Broker) foreign(what string) {
	b.stats.foreign.Add(1)
	last, now := b.stats.foreignSaid.Load(), int64(time.Since(b.started))
	if (last == 0 || now-last > int64(foreignPause)) && b.stats.foreignSaid.CompareAndSwap(last, now) {
		b.log.Warn("ignoring data that this node cannot read, perhaps from another version", "what", what, "format", wireVersion)
	}
}

// receiveStored takes a message that a stream has stored and published again.
func (b *Broker) receiveStored(m *nats.Msg, rest string) {
	rule, epoch, topic := cutRule(rest)
	st := b.byRule[rule]
	if st == nil {
		b.foreign("a message under different rules")
		return
	}
	offset, err1 := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	prev, err2 := strconv.ParseUint(m.Header.Get("Nats-Last-Sequence"), 10, 64)
	message, err3 := openKept(topic, offset, m.Header.Get("Nats-Time-Stamp"), m.Data)
	if err1 != nil || err2 != nil || err3 != nil {
		b.foreign("a stored message")
		return
	}
	if epoch != st.receivedEpoch {
		st.receivedEpoch, st.received = epoch, 0
		if epoch != st.epochNow() {
			b.suspect(st, "a message of another epoch arrived")
		}
	}
	b.see(st, mark{epoch: epoch, seq: offset, at: timeOf(message.Time)})
	if topic == roomTopic {
		return
	}
	switch last := st.received; {
	case offset == last:
		b.stats.repeated.Add(1)
		return
	case offset < last:
		// Another leader's message overtook it, or the stream has lost some and gives their offsets again: what it is
		// has to be found out before the message may be handed over.
		st.received = offset
		b.suspect(st, "its sequence went backwards")
		return
	}
	st.received = offset
	b.stats.received.Add(1)
	b.node.Persistent(message, epoch, prev)
}
