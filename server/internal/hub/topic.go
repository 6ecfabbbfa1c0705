package hub

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"carillon/server/topic"
)

// topic is a named stream of messages.
type topicState struct {
	Source
	hub   *Hub
	epoch uint64

	// Guarded by mu.
	rule      *topic.Rule   // nil when it keeps nothing
	offset    uint64        // of the last message
	floor     uint64        // a client that has everything up to this offset misses only what is in history
	used      time.Duration // when it last had a message or a subscriber, after the server was made
	Forgotten bool          // it is not in the hub any more
	idle      bool          // it is in one of the hub's lists of idle topics
	heard     bool          // a subscriber may have a position in it, or has seen an offset by a pattern
	history   ring
	forms     int       // bytes of the encoded forms of what is in history
	Patterns  []*Source // that match it
	version   uint64    // of the hub's patterns, when that was found out
}

// epochText is for clients. The caller holds mu.
func (t *topicState) epochText() string {
	if t.Link.replica != nil {
		return t.Link.replica.epochText()
	}
	return t.ownEpoch()
}

// ownEpoch is the epoch of a topic whose offsets are this server's own.
func (t *topicState) ownEpoch() string { return strconv.FormatUint(t.epoch, 36) }

func (t *topicState) position() topic.Position {
	return topic.Position{Offset: t.offset, Epoch: t.epochText()}
}

// ring is the history of a topic, the oldest message first.
type ring struct {
	list  []*Message
	head  int
	bytes int
}

func (r *ring) len() int { return len(r.list) - r.head }

func (r *ring) all() []*Message { return r.list[r.head:] }

// newest is the newest message as a list, which is empty if there is none.
func (r *ring) newest() []*Message { return r.list[max(len(r.list)-1, r.head):] }

// push appends a message.
func (r *ring) push(m *Message) {
	if len(r.list) == cap(r.list) && r.head > len(r.list)/2 {
		n := copy(r.list, r.list[r.head:])
		clear(r.list[n:])
		r.list, r.head = r.list[:n], 0
	}
	r.list = append(r.list, m)
	r.bytes += len(m.Raw().Payload())
}

// dropOldest removes the oldest message. There must be one.
func (r *ring) dropOldest() {
	r.bytes -= len(r.list[r.head].Raw().Payload())
	r.list[r.head] = nil
	r.head++
	if r.head == len(r.list) {
		r.list, r.head = nil, 0
	} else if cap(r.list) > 64 && r.len() < cap(r.list)/4 {
		r.list, r.head = append(make([]*Message, 0, cap(r.list)/2), r.all()...), 0
	}
}

// keep puts a message into the history, if there is one. The caller holds mu.
func (t *topicState) keep(m *Message) {
	if t.rule == nil {
		t.floor = m.Offset
		return
	}
	t.boundForms(t.history.newest())
	t.history.push(m)
	t.hub.Messages.Add(1)
	t.hub.Bytes.Add(int64(len(m.Raw().Payload())))
	t.trim()
	t.expire(m.born)
}

// formCost is how many bytes of encoded forms each message of a history may have besides twice its payload.
const formCost = 512

// boundForms notes how much memory the encoded forms take of messages that are in the history. If those of the whole
// history are too large, it forgets them: what clients ask for decides how many there are, and not max_bytes of the
// rule. The caller holds mu.
func (t *topicState) boundForms(list []*Message) {
	for _, m := range list {
		n := m.formSize()
		t.forms += n - m.forms
		m.forms = n
	}
	if t.forms <= 2*t.history.bytes+formCost*t.history.len() {
		return
	}
	for _, m := range t.history.all() {
		if m.forms > 0 {
			m.forgetForms()
			m.forms = 0
		}
	}
	t.forms = 0
}

// trim drops what is too much for the rule. The caller holds mu.
func (t *topicState) trim() {
	var rule topic.Rule
	if t.rule != nil {
		rule = *t.rule
	}
	for t.history.len() > rule.History || rule.MaxBytes >= 0 && t.history.len() > 1 && t.history.bytes > int(rule.MaxBytes) {
		t.dropOldest()
	}
}

// expire drops what is too old at an age of the server. The caller holds mu.
func (t *topicState) expire(now int64) {
	if t.rule == nil || t.rule.MaxAge < 0 {
		return
	}
	oldest := now - t.rule.MaxAge.Milliseconds()
	for t.history.len() > 0 && t.history.all()[0].born < oldest {
		t.dropOldest()
	}
}

func (t *topicState) dropOldest() {
	before, m := t.history.bytes, t.history.all()[0]
	t.floor, t.forms = m.Offset, t.forms-m.forms
	t.history.dropOldest()
	t.hub.Messages.Add(-1)
	t.hub.Bytes.Add(int64(t.history.bytes - before))
}

// Since returns the messages that a subscriber gets before the live ones, and whether that is all that it has missed.
// Of those after a position it returns at most limit, the oldest. The caller holds mu.
func (t *topicState) Since(from topic.Start, now int64, limit int) (missed []*Message, recovered bool) {
	t.expire(now)
	kept := t.history.all()
	switch {
	case from.Since == nil && from.Last == 0 && t.rule != nil && t.rule.Latest:
		return newest(kept, 1), true
	case from.Since == nil:
		return newest(kept, from.Last), true
	case from.Since.Epoch != t.epochText() || from.Since.Offset > t.offset || from.Since.Offset < t.floor:
		return oldest(kept, limit), false // all of it is news
	}
	return oldest(t.historyAfter(from.Since.Offset), limit), true
}

// historyAfter returns the messages that are kept with later offsets. The caller holds mu, and copies what it needs for
// longer.
func (t *topicState) historyAfter(offset uint64) []*Message {
	kept := t.history.all()
	first, _ := slices.BinarySearchFunc(kept, offset+1, func(m *Message, offset uint64) int {
		return cmp.Compare(m.Offset, offset)
	})
	return kept[first:]
}

func oldest(kept []*Message, n int) []*Message { return slices.Clone(kept[:min(len(kept), n)]) }

func newest(kept []*Message, n int) []*Message {
	return slices.Clone(kept[max(len(kept)-max(n, 0), 0):])
}
