package generator

import (
	"math/rand/v2"
	"time"

	"carillon/loadtest/internal/wsclient"
)

// sender sends messages in one of two ways. With a rate it is an open loop: each message is sent on
// schedule, however slow the server is. Without one it is a closed loop that keeps Depth messages of each
// sender in flight.
type sender struct {
	mine    int // senders of this worker: the connections below this index
	rate    float64
	running bool
	began   int64
	ended   int64
	blank   []byte

	// Open loop.
	turns turns
	total int64 // scheduled messages of all senders

	// Closed loop.
	primed  int // senders that have been started
	witness int // fanout: a message is in flight until this connection has it
	stalls  []stall
	checkAt int64

	publishers *publishers // if messages are published over HTTP
}

// stall records since when a closed loop has made no progress.
type stall struct {
	sent  uint32
	since int64
}

const (
	// After this time without progress a closed loop gives up the messages in flight and goes on.
	stallAfter = 5 * time.Second

	maxTurn  = 64       // messages sent before sockets are polled again
	maxBatch = 64 << 10 // approximate size of one write, in bytes
)

func (s *sender) prepare(w *worker) {
	s.rate = w.spec.Rate
	s.turns = newTurns(w.spec.Senders, w.spec.Index, w.spec.Count)
	if w.spec.Senders == 0 {
		return
	}
	if w.spec.PublishURL != "" {
		s.publishers = newPublishers(&w.spec)
		return
	}
	s.mine = w.spec.mine(w.spec.Senders)
	s.blank = w.payloads.blank()
	s.stalls = make([]stall, s.mine)
}

func (s *sender) start(w *worker, at int64) {
	s.running, s.began = w.spec.Senders > 0, at
	s.chooseWitness(w)
	if s.rate > 0 {
		s.total = dueWithin(w.spec.Duration, s.rate)
	}
	if s.publishers != nil {
		s.publishers.start(at)
	}
}

// stop stops sending and counts the messages that were due but not sent.
func (s *sender) stop(w *worker, now int64) {
	s.ended = now
	if s.publishers != nil {
		s.publishers.stop()
	}
	if !s.running || s.rate == 0 || s.publishers != nil {
		s.running = false
		return
	}
	s.running = false
	for i := range s.mine {
		w.Unsent += int64(w.conns[i].owed)
		w.conns[i].owed = 0
	}
	w.Unsent += s.turns.skip(min(s.total, dueWithin(time.Duration(now-s.began), s.rate)))
}

// settled reports whether no publish request is in flight.
func (s *sender) settled() bool { return s.publishers == nil || s.publishers.idle() }

// turn sends what is due.
func (s *sender) turn(w *worker, now int64) (next int64) {
	next = now + int64(idleTurn)
	switch {
	case !s.running || s.publishers != nil:
		return next
	case s.rate > 0:
		return min(next, s.turnOpen(w))
	}
	for n := 0; s.primed < s.mine; n++ {
		if n == maxTurn {
			return now
		}
		s.send(w, s.primed, Monotonic())
		s.primed++
	}
	if now >= s.checkAt {
		s.checkAt = now + int64(time.Second)
		s.checkStalls(w, now)
	}
	return next
}

func (s *sender) turnOpen(w *worker) (next int64) {
	for range maxTurn {
		index, ok := s.turns.index()
		if !ok || index >= s.total {
			return Monotonic() + int64(idleTurn)
		}
		now, at := Monotonic(), s.began+int64(due(index, s.rate))
		if at > now {
			return at
		}
		w.MaxLate = max(w.MaxLate, now-at)
		i := s.turns.sender / w.spec.Count
		s.turns.next()
		w.conns[i].owed++
		s.send(w, i, now)
	}
	return Monotonic()
}

// send sends everything that sender i may send now.
func (s *sender) send(w *worker, i int, now int64) {
	c := &w.conns[i]
	if !s.running || i >= s.mine {
		return
	}
	for c.state == stateOpen && len(c.unsent) == 0 {
		n := s.may(w, i, c)
		if n <= 0 {
			return
		}
		b := w.batch[:0]
		for ; n > 0 && len(b) < maxBatch; n-- {
			at := now
			if s.rate > 0 {
				index := int64(c.sent)*int64(w.spec.Senders) + int64(w.id(i))
				at = s.began + int64(due(index, s.rate))
				c.owed--
			}
			b = s.appendMessage(w, b, c, stamp{w.id(i), c.sent, at})
			c.sent++
			w.Sent++
		}
		w.batch = b
		w.write(i, c, b)
	}
}

// may returns how many messages a sender may send now.
func (s *sender) may(w *worker, i int, c *conn) int {
	if s.rate > 0 {
		return int(c.owed)
	}
	reached := uint32(0)
	if w.spec.Command == "echo" {
		reached = w.ledger.reached(i, 0)
	} else {
		reached = w.ledger.reached(s.witness, int(w.id(i)))
	}
	return w.spec.Depth - int(c.sent-max(reached, c.skip))
}

func (s *sender) appendMessage(w *worker, to []byte, c *conn, m stamp) []byte {
	w.payloads.put(s.blank, m)
	payload := s.blank
	if c.compressed {
		payload = w.deflate.Compress(payload)
	}
	return wsclient.AppendFrame(to, w.op, c.compressed, rand.Uint32(), payload)
}

// received is called after each read. In a closed loop each message that arrives allows another.
func (s *sender) received(w *worker, i int, c *conn, now int64) {
	switch {
	case !s.running || s.rate > 0 || s.publishers != nil:
	case w.spec.Command == "echo":
		if i < s.primed {
			s.send(w, i, now)
		}
	case i == s.witness:
		for j := range s.primed {
			s.send(w, j, now)
		}
	}
}

// chooseWitness chooses the last open connection, since many servers write to connections in their order.
func (s *sender) chooseWitness(w *worker) {
	s.witness = 0
	for i := range w.conns {
		if w.conns[i].state == stateOpen {
			s.witness = i
		}
	}
}

// checkStalls restarts closed loops whose messages must have been lost.
func (s *sender) checkStalls(w *worker, now int64) {
	if w.conns[s.witness].state != stateOpen {
		s.chooseWitness(w)
	}
	for i := range s.stalls {
		c, was := &w.conns[i], &s.stalls[i]
		if was.sent != c.sent || was.since == 0 {
			*was = stall{c.sent, now}
			continue
		}
		if now-was.since > int64(stallAfter) {
			c.skip = c.sent
			s.send(w, i, now)
		}
	}
}

func (s *sender) report(w *worker, r *Report) {
	if s.publishers != nil {
		s.publishers.report(r)
		return
	}
	if r.Event == EventEnded && w.spec.Command == "fanout" {
		for i := range s.mine {
			r.SentBy = append(r.SentBy, w.conns[i].sent)
		}
	}
}
