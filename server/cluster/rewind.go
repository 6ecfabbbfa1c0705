package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go/jetstream"
)

// mark is the last message of a stream that is known to have been given out.
type mark struct {
	epoch string
	seq   uint64
	at    int64 // the message's time by JetStream's clock, in nanoseconds since 1970; 0 if nothing is known of it
	loose bool  // the message is not younger than that; more is not known
}

// clockSlack is by how much JetStream's clock, as this node knows it, may be wrong.
const clockSlack = 5 * time.Second

// fits reports whether the message that has the sequence now, and is of a time, may be that of the mark.
func (m mark) fits(at int64) bool {
	if m.loose {
		return at <= m.at+int64(clockSlack)
	}
	return at == m.at
}

// census is how many messages there were in a stream at one time.
type census struct {
	first, last, messages uint64
	history               uint64 // how many of a topic it kept
}

// isShort reports whether messages have gone that JetStream had no reason to remove. It removes one of a topic when a
// newer one comes, and otherwise the oldest of all.
func (c census) isShort(now census) bool {
	removed := now.first - min(now.first, c.first) // at most
	return c.history == now.history && now.last >= c.last && now.messages+removed < c.messages
}

// A stream that has lost its newest messages gives their sequences again. A client that has had the first ones must not
// be told that it has had the second ones. So each node knows the highest sequence that it has seen, by itself or from
// the heartbeats of others, with the time of that message, and some know it from before their start (positions). The
// stream is compared with that at the start, when the connection to NATS is back, when there is a new leader, and each
// second. If it is shorter, or has another message in that place, or gives a sequence that was given before, a new
// epoch begins.
//
// While a stream is in doubt, messages for it wait, and so do those who load a topic.

// doubt has the stream compared with what is known before anything goes on.
func (st *stream) doubt() { st.doubts.Add(1) }

func (st *stream) isDoubtful() bool { return st.doubts.Load() != st.cleared.Load() }

// see notes that a message of the stream has been given out. It is called before the message, or a position at it, is
// handed to anyone.
func (b *Broker) see(st *stream, m mark) {
	ours, twice := st.see(m)
	if twice {
		b.suspect(st, "another message has the sequence of one already delivered")
	}
	if ours {
		b.positions.saw(st.id, m)
	}
}

// see reports whether the mark is of the stream's epoch, and whether its sequence belongs to two messages.
func (st *stream) see(m mark) (ours, twice bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case m.epoch != st.epoch:
		return false, false
	case m.seq < st.seen.seq:
	case m.seq > st.seen.seq:
		st.seen = m
	case m.at == 0 || m.loose:
	case st.seen.at == 0 || st.seen.loose:
		st.seen = m
	case !st.seen.fits(m.at) && st.rewound == "":
		st.rewound = fmt.Sprintf("sequence %d belongs to two messages", m.seq)
		return true, true
	}
	return true, false
}

// given is the highest sequence that is known to have been given out in an epoch.
func (st *stream) given(epoch string) uint64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.epoch != epoch {
		return 0
	}
	return st.seen.seq
}

// condemn notes a proof that the stream has lost messages.
func (st *stream) condemn(epoch, why string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.epoch == epoch && st.rewound == "" {
		st.rewound = why
	}
}

// errUnsettled means that a stream may have lost messages, which will be known in a moment.
var errUnsettled = errors.New("the stream may have lost messages and is being checked")

// known is what was known of a stream before its leader was asked.
type known struct {
	epoch        string
	seen, anchor mark
	reserved     uint64
	doubts       uint64
}

func (st *stream) known() known {
	st.mu.Lock()
	defer st.mu.Unlock()
	return known{st.epoch, st.seen, st.anchor, st.reserved, st.doubts.Load()}
}

// contradiction says why the stream cannot be the one that was seen before, if so.
func (b *Broker) contradiction(st *stream, state streamState, old known, thorough bool) (why string, err error) {
	st.mu.Lock()
	why = st.rewound
	st.mu.Unlock()
	seen := old.seen
	highest := max(seen.seq, old.reserved)
	if old.epoch != state.epoch {
		highest = 0
	}
	switch {
	case why != "":
		return why, nil
	case state.Last < highest && (state.sole || st.wentBack(state.Last, highest)):
		if state.Last >= seen.seq {
			return fmt.Sprintf("its last sequence is %d, but up to %d may have been delivered before this machine stopped", state.Last, highest), nil
		}
		return fmt.Sprintf("its last sequence is %d, but %d was delivered", state.Last, seen.seq), nil
	case state.Last < highest:
		return "", errUnsettled
	}
	st.wentBack(state.Last, highest)
	if !thorough {
		return "", nil
	}
	for _, m := range []mark{old.anchor, seen} {
		if m.epoch != state.epoch || m.seq == 0 || m.at == 0 || m.seq < state.First || m.loose && !state.sole {
			continue // of several servers each may have led, with a clock of its own
		}
		have, err := b.askLeader(place{st: st}, map[string]any{"seq": m.seq}, time.Now().Add(infoTimeout))
		if err != nil {
			return "", err
		}
		if at, err := time.Parse(time.RFC3339Nano, have.Time); err == nil && have.Seq == m.seq && !m.fits(timeOf(at)) {
			return fmt.Sprintf("sequence %d belongs to two messages", m.seq), nil
		}
	}
	return "", nil
}

// timeOf is the time of a message in a mark.
func timeOf(t time.Time) int64 {
	if t.Year() < 1971 { // a stream that never had one
		return 0
	}
	return t.UnixNano()
}

// judge compares a stream with what is known of it, and begins a new epoch if it has lost messages.
func (b *Broker) judge(st *stream, state streamState, old known) error {
	why, err := b.contradiction(st, state, old, old.doubts != st.cleared.Load())
	if err != nil {
		return err
	}
	if why == "" {
		if err = b.count(st, state); err != nil {
			return err
		}
		b.see(st, mark{epoch: state.epoch, seq: state.Last, at: timeOf(state.LastTime)})
		st.mu.Lock()
		st.anchor = st.seen
		st.mu.Unlock()
		if !b.returning.Load() {
			st.clear(old.doubts)
			b.out.nudge()
		}
		return nil
	}
	st.doubt()
	st.judging.Lock()
	defer st.judging.Unlock()
	if !b.isStill(st, state.epoch) {
		return errUnsettled // another node has begun an epoch
	}
	b.stats.rewinds.Add(1)
	b.log.Error("a stream lost, or may have lost, its newest messages; starting a new epoch, and clients are told of a gap",
		"stream", st.name, "topics", st.match, "why", why)
	if err = b.renew(st); err != nil {
		return err
	}
	b.resync("the stream of topics " + st.match + " has lost messages")
	return errUnsettled // until it has been looked at once more
}

// clear ends the doubts that there were.
func (st *stream) clear(doubts uint64) {
	if st.cleared.Load() < doubts {
		st.cleared.Store(doubts)
	}
}

// awaitClear waits until the stream is not in doubt.
func (b *Broker) awaitClear(st *stream, deadline time.Time) error {
	for st.isDoubtful() {
		if err := b.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) || !b.sleep(10*time.Millisecond) {
			return errUnsettled
		}
	}
	return nil
}

// censusPause is how long the messages of a stream are not counted after its topics' history was changed.
const censusPause = 5 * time.Second

// count looks whether messages are missing in the middle of a stream. As long as JetStream cannot tell which, it may be
// any.
func (b *Broker) count(st *stream, state streamState) error {
	now := census{state.First, state.Last, state.Messages, state.history}
	st.mu.Lock()
	st.lost = max(st.lost, state.lost)
	short := st.census.isShort(now)
	before, times := st.census.messages, 0
	switch {
	case short:
		st.shortFor++
		times = st.shortFor
	case now.history != st.census.history && st.census.history != 0:
		st.census, st.countAgain = census{}, time.Now().Add(censusPause)
	case time.Now().After(st.countAgain):
		st.census, st.shortFor = now, 0
	}
	st.mu.Unlock()
	switch {
	case !short:
		b.positions.tidy(st.id, now, time.Now())
		return nil
	case times < 2:
		return errUnsettled
	}
	b.stats.holes.Add(1)
	b.log.Error("messages disappeared from the middle of a stream; clients whose positions are before its end are told of a gap",
		"stream", st.name, "topics", st.match, "messages", now.messages, "before", before, "last", now.last)
	if err := b.declareLost(st, state.epoch, now.last); err != nil {
		return err
	}
	st.mu.Lock()
	st.census, st.shortFor, st.lost = now, 0, max(st.lost, now.last)
	st.mu.Unlock()
	b.resync("messages disappeared from the stream of topics " + st.match)
	return nil
}

// lostKey is where a stream's metadata have a sequence up to which messages may be missing that JetStream had no reason
// to remove.
const lostKey = "carillon.lost"

// declareLost writes it, for all nodes.
func (b *Broker) declareLost(st *stream, epoch string, upTo uint64) error {
	js, err := jetstream.New(b.nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.o.Timeout)
	defer cancel()
	s, err := js.Stream(ctx, st.name)
	if err != nil {
		return err
	}
	c := s.CachedInfo().Config
	if b.names.epoch(st.id, c.Subjects) != epoch {
		return errUnsettled
	}
	if have, _ := strconv.ParseUint(c.Metadata[lostKey], 10, 64); have >= upTo {
		return nil
	}
	c.Metadata = metadata(c.Metadata[raisedKey], strconv.FormatUint(upTo, 10))
	_, err = js.UpdateStream(ctx, c)
	return err
}

// verify compares the streams with what is known of them before this node begins with them.
func (b *Broker) verify(ctx context.Context) error {
	for _, st := range b.byRule {
		b.listenFor(st)
		b.remember(st)
		for err := error(errUnsettled); err != nil; {
			if err = b.refresh(st); err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("check the stream for topics %s: %w (%v)", st.match, err, context.Cause(ctx))
			case <-time.After(jitter(probeInterval)):
			}
		}
		st.mu.Lock()
		st.reserved = 0
		seen := st.seen
		st.mu.Unlock()
		b.positions.begin(st.id, seen)
	}
	b.positions.mend()
	return nil
}

// listenFor waits a moment for what others say of a stream, when this node knows nothing of it.
func (b *Broker) listenFor(st *stream) {
	epoch := st.epochNow()
	if m, _, _, _ := b.positions.before(st.id); m.epoch == epoch {
		return
	}
	if state, err := b.awaitInfo(st); err == nil && state.Last == 0 {
		return
	}
	for end := time.Now().Add(2 * heartbeatInterval); time.Now().Before(end) && b.sleep(20*time.Millisecond); {
		b.peers.mu.Lock()
		said := false
		for _, p := range b.peers.nodes {
			one, ok := p.streams[st.id]
			said = said || ok && one.Epoch == epoch && one.Seq > 0
		}
		b.peers.mu.Unlock()
		if said {
			return
		}
	}
}

// remember takes what the file has of a stream. What the machine may have given out before it crashed counts only when
// no other node has watched the stream meanwhile: otherwise the others know.
func (b *Broker) remember(st *stream) {
	m, c, unsure, unread := b.positions.before(st.id)
	past := b.positions.past(st.id)
	watched := b.isWatched(st)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.doubts.Add(1)
	switch {
	case unread && !watched:
		st.rewound = "the positions file cannot be read"
	case slices.Contains(past, st.epoch):
		st.rewound = "its epoch has ended"
	case m.epoch != st.epoch:
	default:
		st.anchor, st.census = m, c
		if m.seq > st.seen.seq {
			st.seen = m
		}
		if !watched {
			st.reserved = unsure
		}
	}
}

// isWatched reports whether another node has known the stream for longer than this one. Where one server has all there
// is, and runs in a node, the others know a second less than it.
func (b *Broker) isWatched(st *stream) bool {
	if b.embedded != nil && b.o.Replicas < 2 {
		return false
	}
	epoch := st.epochNow()
	b.peers.mu.Lock()
	defer b.peers.mu.Unlock()
	for _, p := range b.peers.nodes {
		if one, ok := p.streams[st.id]; ok && one.Epoch == epoch && one.Sure {
			return true
		}
	}
	return false
}

// claim is what a heartbeat says of a stream.
type claim struct {
	Epoch string `json:"epoch"`
	Seq   uint64 `json:"seq"`
	At    int64  `json:"at,omitempty"`
	Loose bool   `json:"loose,omitempty"`
	Sure  bool   `json:"sure"` // it is not in doubt
}

func (b *Broker) claims() map[string]claim {
	all := map[string]claim{}
	for id, st := range b.byRule {
		sure := !st.isDoubtful() && b.ready.Load()
		st.mu.Lock()
		if st.epoch != "" {
			all[id] = claim{st.epoch, st.seen.seq, st.seen.at, st.seen.loose, sure}
		}
		st.mu.Unlock()
	}
	return all
}

// learn merges what another node has seen.
func (b *Broker) learn(claims map[string]claim) {
	for id, c := range claims {
		if st := b.byRule[id]; st != nil {
			b.see(st, mark{c.Epoch, c.Seq, c.At, c.Loose})
		}
	}
}

// doubtAll has all streams compared with what is known when the connection is back.
func (b *Broker) doubtAll() {
	for _, st := range b.byRule {
		st.doubt()
	}
}

// awaitPeers gives the others that are known time to say how far they have seen the streams, after the connection was
// lost.
func (b *Broker) awaitPeers(since time.Time) {
	for end := time.Now().Add(heartbeatInterval * 3 / 2); time.Now().Before(end) && b.sleep(20*time.Millisecond); {
		b.peers.mu.Lock()
		silent := 0
		for _, p := range b.peers.nodes {
			if p.info.Heard.Before(since) {
				silent++
			}
		}
		b.peers.mu.Unlock()
		if silent == 0 {
			return
		}
	}
}

// isStill waits for a random time and reports whether the epoch is the same after it: the nodes notice at the same time
// that messages are lost, and one of them is to begin a new epoch.
func (b *Broker) isStill(st *stream, epoch string) bool {
	b.sleep(rand.N(probeInterval))
	state, err := b.awaitInfo(st)
	if err == nil && state.epoch != epoch {
		b.changed(st, state.epoch)
	}
	return err == nil && state.epoch == epoch
}

// isPast reports whether the stream is of an epoch that this node has seen the end of. As with sequences, it takes
// several times, unless there is one server only.
func (b *Broker) isPast(st *stream, state streamState) (past, certain bool) {
	st.mu.Lock()
	past = slices.Contains(st.past, state.epoch)
	st.mu.Unlock()
	return past, past && (state.sole || st.wentBack(0, 1))
}

// renew gives the stream's offsets a new epoch.
func (b *Broker) renew(st *stream) error {
	js, err := jetstream.New(b.nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.o.Timeout)
	defer cancel()
	info, err := updated(js.UpdateStream(ctx, b.configIn(st, newEpoch())))
	if err == nil {
		st.setEpoch(b.names.epoch(st.id, info.Config.Subjects))
	}
	return err
}

// lastMark is the mark of what was loaded.
func lastMark(kept *topic.Snapshot) mark {
	m := mark{epoch: kept.Epoch, seq: kept.Last, at: timeOf(kept.Now), loose: true}
	if n := len(kept.Messages); n > 0 && kept.Messages[n-1].Offset == kept.Last {
		m.at, m.loose = timeOf(kept.Messages[n-1].Time), false
	}
	return m
}
