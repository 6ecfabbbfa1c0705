package hub

import (
	"slices"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
	"carillon/server/stats"
	"carillon/server/topic"
)

// replay is a topic's long history on its way to a new subscriber, in pieces: the loop has others to serve, and what a
// slow subscriber has not read need not wait in its outbox. Live messages follow when the subscriber has all of the
// history. It counts as a subscriber from the beginning, so that the topic lives on. Owned by the loop.
type replay struct {
	hub   *Hub
	conn  *reactor.Conn
	told  func(topic.Subscribed) // of a gap
	topic *topicState
	kind  reactor.Framing
	asked bool       // by the client
	epoch string     // of the messages
	rest  []*Message // what is to be sent next; never empty
}

// MaxReplay is how many messages are taken from a history at once. There may be millions, of which a client gets few if
// it goes away or does not read.
const MaxReplay = 4 * ReplayPiece

// ReplayPiece is how many messages of a history are sent in one go, and ReplayBytes about how many bytes of payloads:
// they may have to be encoded and compressed first.
const (
	ReplayPiece = 1024
	ReplayBytes = 256 << 10
)

// pieceOf returns how many of the messages are sent in one go: one at least, if there is any.
func pieceOf(list []*Message) (n int) {
	size := 0
	for n < min(len(list), ReplayPiece) {
		if size += len(list[n].Raw().Payload()); n > 0 && size > ReplayBytes {
			break
		}
		n++
	}
	return n
}

// largePiece is the size in bytes of a piece from which on it takes too much of a loop's time to encode it.
const largePiece = 32 << 10

// step sends the next piece, or all that is left. Another goroutine encodes it first if it is large.
func (r *replay) step() {
	if r.conn.IsOpen() && workOf(r.conn, r.rest[:pieceOf(r.rest)], r.kind) > largePiece {
		r.encodeElsewhere()
	} else {
		r.send()
	}
}

// workOf is how many bytes have to be encoded or compressed before messages can be sent.
func workOf(c *reactor.Conn, list []*Message, kind reactor.Framing) (n int) {
	if kind == reactor.FramingRaw && !c.Deflates() {
		return 0
	}
	for _, m := range list {
		n += m.work(kind, c.Window())
	}
	return n
}

// encodeElsewhere has another goroutine encode the next piece, as it is sent then. What the client asks for behind it
// waits.
func (r *replay) encodeElsewhere() {
	c, piece := r.conn, slices.Clone(r.rest[:pieceOf(r.rest)])
	n, window, deflater := workOf(c, piece, r.kind), c.Window(), c.Settings().Deflater
	s := c.Offload(&c.Shard().Engine.Offload, time.Duration(n)*reactor.CompressByte, n, func() func() {
		for _, m := range piece {
			if c.State().Load() != reactor.StateOpen {
				break
			}
			if f := m.Frame(r.kind); window > 0 {
				f.DeflatedWithin(deflater, window)
			}
		}
		return r.send
	}, func() {
		for _, m := range piece {
			if window > 0 {
				m.Frame(r.kind).LeavePlain(window)
			}
		}
		r.send()
	})
	s.Cancel = r.release
}

// send sends the next piece, or all that is left.
func (r *replay) send() {
	c := r.conn
	if !c.Ready() {
		r.release()
		return
	}
	if pieceOf(r.rest) == len(r.rest) && r.join() {
		return
	}
	n := pieceOf(r.rest)
	sendHistory(c, r.rest[:n], r.kind)
	if !c.IsOpen() {
		r.release()
		return
	}
	r.rest = r.rest[n:]
	c.QueueFirst(&reactor.Slot{Do: r.step, Cancel: r.release, Cost: reactor.SlotCost, Open: true, Drained: true})
}

// join sends what is left and makes the connection a subscriber of what comes next, or takes more from the history and
// returns false if that is much.
func (r *replay) join() bool {
	c, t := r.conn, r.topic
	last := r.rest[len(r.rest)-1].Offset
	t.Mu.Lock()
	newer, recovered := t.Since(topic.Start{Since: &topic.Position{Offset: last, Epoch: r.epoch}}, c.Shard().Engine.AgeMillis(), MaxReplay)
	at := t.position()
	if pieceOf(newer) < len(newer) {
		t.Mu.Unlock()
		if recovered {
			r.rest = append(r.rest[:len(r.rest):len(r.rest)], newer...)
			return false
		}
		sendHistory(c, r.rest, r.kind)
		r.tellGap(at, newer, last)
		r.rest, r.epoch = newer, at.Epoch
		return false
	}
	a, next := t.audience(c.Shard(), r.kind), t.Seq+1
	t.Mu.Unlock()

	c.Join(a, next, r.asked)
	sendHistory(c, r.rest, r.kind)
	if !recovered {
		r.tellGap(at, newer, last)
	}
	sendHistory(c, newer, r.kind)
	return true
}

// tellGap tells the subscriber that messages are missing before those that follow: the topic dropped them from its
// history before they could be sent.
func (r *replay) tellGap(at topic.Position, newer []*Message, last uint64) {
	c := r.conn
	first := at.Offset + 1
	if len(newer) > 0 {
		first = newer[0].Offset
	}
	if at.Epoch == r.epoch && first > last {
		c.Shard().Stats.Drop(stats.DropHistory, first-last-1)
	}
	if r.kind == reactor.FramingRaw {
		c.StartClose(reactor.CloseOwn, CloseGap, "gap")
		return
	}
	if c.IsOpen() {
		r.told(topic.Subscribed{Topic: r.topic.Name, Position: at, After: next(newer, at.Offset)})
	}
}

// release ends the subscription before it has begun: the connection is gone.
func (r *replay) release() {
	r.topic.Mu.Lock()
	more := len(r.topic.historyAfter(r.rest[len(r.rest)-1].Offset))
	r.conn.Shard().Stats.Drop(stats.DropClosed, uint64(len(r.rest)+more))
	r.topic.unsubscribe(r.hub)
}

// sendHistory sends messages that a topic has kept.
func sendHistory(c *reactor.Conn, list []*Message, kind reactor.Framing) {
	if len(list) == 0 || c.State().Load() != reactor.StateOpen {
		return
	}
	frames := make([]*codec.Frame, len(list))
	for i, m := range list {
		frames[i] = m.Frame(kind)
	}
	c.Shard().Counters.Deliveries += uint64(len(frames))
	c.SendFrames(nil, 0, frames)
	if c.Outbox() != nil && c.Outbox().History > 0 {
		c.Outbox().Batches++
	}
	t := list[0].Topic
	t.Mu.Lock()
	sent := t.historyAfter(list[0].Offset - 1)
	t.boundForms(sent[:min(len(sent), len(list))])
	t.Mu.Unlock()
}
