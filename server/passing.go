package server

import (
	"sync"
	"time"

	"carillon/codec"
)

// Messages for passing topics, and broadcasts, are for this server's connections at once, and for those of other
// servers by the broker, at most once. They are counted, so that each server knows what it has missed.

// handover is a message on its way to the broker, whose end is told once nothing is locked any more.
type handover struct {
	done func(error)

	mu       sync.Mutex
	err      error
	returned bool
	ended    bool
}

func (h *handover) end(err error) {
	h.mu.Lock()
	tell := h.returned
	h.ended, h.err = true, err
	h.mu.Unlock()
	if tell {
		h.done(err)
	}
}

// returns is for whoever has handed over, with nothing locked.
func (h *handover) returns() {
	h.mu.Lock()
	tell, err := h.ended, h.err
	h.returned = true
	h.mu.Unlock()
	if tell {
		h.done(err)
	}
}

// failed counts what the broker did not take.
func (cl *cluster) failed(err error) {
	if err != nil {
		cl.stats.failures.Add(1)
	}
}

// relay hands a message to the broker that this server's subscribers have. The caller holds the topic's mu.
func (cl *cluster) relay(t *topicState, p *publication, m *message, sent func(error)) {
	cl.stats.passingOut.Add(1)
	t.link.sent++
	out := p.Publication
	out.Payload, out.Key, out.Publisher = m.raw.Payload(), "", "" // the key is good at this server
	cl.broker.PublishTransient(out, t.epoch, t.link.sent, func(err error) {
		if cl.failed(err); sent != nil {
			sent(err)
		}
	})
}

// passing takes a message for a passing topic from another server.
func (cl *cluster) passing(from string, incarnation, seq uint64, p *Publication, sent time.Time) {
	cl.stats.passingIn.Add(1)
	t := cl.taker(p.Topic)
	if t == nil {
		return
	}
	defer t.mu.Unlock()
	l := t.link
	if l.kept != nil { // by the rules of this server the broker keeps it
		cl.missed(1)
		return
	}
	patterns := cl.hub.patternsOf(t)
	if l.state == linkNone && !l.fed(patterns) {
		clear(l.senders) // nobody here has listened
		if len(patterns) > 0 {
			l.feeder = patterns[0]
		}
	}
	if l.senders == nil {
		l.senders = map[string]*sender{}
	}
	if !cl.next(l.senders, from, incarnation, seq) {
		return
	}
	m := &message{topic: t, format: p.Format, offset: t.offset + 1, time: sent.UnixMilli(), born: cl.srv.age(), raw: codec.NewFrame(p.Format.Opcode(), p.Payload)}
	if sh := cl.hub.overloaded(t, patterns, int64(len(m.raw.Plain()))); sh != nil {
		sh.stats.Drop(DropOverloaded, 1)
		return
	}
	t.used = cl.srv.elapsed()
	at := cl.srv.stamp()
	t.issue(m, at)
	issueAll(patterns, m, at)
}

// mostSenders bounds the servers that a topic or an endpoint knows. They get new names when they start anew.
const mostSenders = 1000

// next notes that a message of another server came, and says whether it is news. What is missing before it is
// counted.
func (cl *cluster) next(senders map[string]*sender, from string, incarnation, seq uint64) bool {
	s := senders[from]
	if s == nil {
		if len(senders) >= mostSenders {
			clear(senders)
		}
		senders[from] = &sender{incarnation, seq}
		return true
	}
	return cl.follows(s, incarnation, seq)
}

func (cl *cluster) follows(s *sender, incarnation, seq uint64) bool {
	if s.incarnation != incarnation {
		*s = sender{incarnation, seq}
		return true
	}
	if seq <= s.seq {
		return false
	}
	if n := seq - s.seq - 1; n > 0 {
		cl.stats.holes.Add(1)
		cl.missed(n)
	}
	s.seq = seq
	return true
}

// relayBroadcast hands a message to the broker that this server's connections have. The caller holds ep.mu.
func (cl *cluster) relayBroadcast(ep *endpoint, f *codec.Frame, sent func(error)) {
	cl.stats.broadcastsOut.Add(1)
	ep.sent++
	if sent == nil {
		sent = cl.failed
	}
	cl.broker.Broadcast(ep.Path, f.Opcode(), f.Payload(), ep.sent, sent)
}

// broadcast takes one from another server.
func (cl *cluster) broadcast(from, path string, op Opcode, payload []byte, seq uint64) {
	cl.stats.broadcastsIn.Add(1)
	ep := cl.srv.byPath[path]
	if ep == nil {
		return
	}
	cl.mu.Lock()
	s, known := cl.broadcasts[[2]string{from, path}]
	if !known {
		if len(cl.broadcasts) >= mostSenders {
			clear(cl.broadcasts)
		}
		cl.broadcasts[[2]string{from, path}] = &sender{seq: seq}
	}
	news := !known || cl.follows(s, 0, seq)
	cl.mu.Unlock()
	if !news {
		return
	}
	f := codec.NewFrame(op, payload)
	at := cl.srv.stamp()
	ep.mu.Lock()
	defer ep.mu.Unlock()
	shards := cl.srv.allShards()
	if cl.srv.roomFor(shards, int64(len(f.Plain()))) == nil { // else it is counted there
		ep.post(shards, f, at)
	}
}
