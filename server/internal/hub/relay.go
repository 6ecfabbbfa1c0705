package hub

import (
	"sync"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// Messages for transient topics, and broadcasts, are for this server's connections at once, and for those of other
// servers by the broker, at most once. They are counted, so that each server knows what it has missed.

// relayAck is a message on its way to the broker, whose end is told once nothing is locked any more.
type relayAck struct {
	done func(error)

	mu       sync.Mutex
	err      error
	returned bool
	ended    bool
}

func (h *relayAck) end(err error) {
	h.mu.Lock()
	tell := h.returned
	h.ended, h.err = true, err
	h.mu.Unlock()
	if tell {
		h.done(err)
	}
}

// returns is called by the goroutine that has handed the message over, with nothing locked.
func (h *relayAck) returns() {
	h.mu.Lock()
	tell, err := h.ended, h.err
	h.returned = true
	h.mu.Unlock()
	if tell {
		h.done(err)
	}
}

// failed counts what the broker did not take.
func (f *Follower) failed(err error) {
	if err != nil {
		f.stats.Failures.Add(1)
	}
}

// Relay hands a message to the broker that this server's connections have. sent may be nil. The caller holds the
// source's mu.
func (f *Follower) Relay(src *Source, p reactor.Payload, sent func(error)) {
	src.Link.sent++
	done := func(err error) {
		if err == nil {
			f.hub.engine.InFlight.Flows(f.hub.engine.Uptime())
		}
		if f.failed(err); sent != nil {
			sent(err)
		}
	}
	switch p := p.(type) {
	case *Message:
		f.stats.TransientOut.Add(1)
		out := topic.Publication{Topic: src.Name, Format: p.Format, Payload: p.Raw().Payload()} // the key is good at this server
		f.broker.PublishTransient(out, p.Topic.epoch, src.Link.sent, done)
	case *Broadcast:
		f.stats.BroadcastsOut.Add(1)
		f.broker.Broadcast(src.Name, p.raw().Opcode(), p.raw().Payload(), src.Link.sent, done)
	}
}

// receiveTransient takes a message for a transient topic from another server.
func (f *Follower) receiveTransient(from string, incarnation, seq uint64, p *topic.Publication, sent time.Time) {
	f.stats.TransientIn.Add(1)
	t := f.taker(p.Topic)
	if t == nil {
		return
	}
	defer t.Mu.Unlock()
	l := t.Link
	if l.replica != nil { // by the rules of this server the broker keeps it
		f.missed(1)
		return
	}
	patterns := f.hub.PatternsOf(t)
	if l.State == LinkNone && !l.isCovered(patterns) {
		clear(l.senders) // there are no subscribers here
		if len(patterns) > 0 {
			l.coveringPattern = patterns[0]
		}
	}
	if !f.next(l, from, incarnation, seq) {
		return
	}
	m := &Message{Topic: t, Format: p.Format, Offset: t.offset + 1, Time: sent.UnixMilli(), born: f.hub.engine.AgeMillis()}
	m.WithRaw(codec.NewFrame(p.Format.Opcode(), p.Payload))
	if sh := f.hub.overloaded(t, patterns, m); sh != nil {
		_ = sh.Refuse()
		return
	}
	t.used = f.hub.engine.Uptime()
	at := f.hub.engine.Stamp()
	t.issue(m, at)
	issueAll(patterns, m, at)
}

// maxSenders bounds the servers that a topic or an endpoint knows. They get new names when they start anew.
const maxSenders = 1000

// next notes that a message of another server came, and reports whether it is news. What is missing before it is
// counted.
func (f *Follower) next(l *link, from string, incarnation, seq uint64) bool {
	s := l.senders[from]
	switch {
	case s == nil:
		if len(l.senders) >= maxSenders || l.senders == nil {
			l.senders = map[string]*sender{}
		}
		l.senders[from] = &sender{incarnation, seq}
		return true
	case s.incarnation != incarnation:
		*s = sender{incarnation, seq}
		return true
	case seq <= s.seq:
		return false
	}
	if n := seq - s.seq - 1; n > 0 {
		f.stats.SequenceGaps.Add(1)
		f.missed(n)
	}
	s.seq = seq
	return true
}

// broadcast takes a message for an endpoint from another server.
func (f *Follower) broadcast(from, path string, op codec.Opcode, payload []byte, seq uint64) {
	f.stats.BroadcastsIn.Add(1)
	ep := f.hub.owner.EndpointSource(path)
	if ep == nil {
		return
	}
	frame, at := codec.NewFrame(op, payload), f.hub.engine.Stamp()
	ep.Mu.Lock()
	defer ep.Mu.Unlock()
	if !f.next(ep.Link, from, 0, seq) {
		return
	}
	if sh := ep.Overloaded((*Broadcast)(frame), 1); sh != nil {
		_ = sh.Refuse()
		return
	}
	ep.Issue(frame, at)
}
