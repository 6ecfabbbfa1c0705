package hub

import (
	"cmp"
	"log/slog"
	"slices"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// replica is what a server knows of a topic whose messages the broker keeps. Its subscribers are served from what was
// loaded and what came since; those of patterns from what comes, whether the topic was loaded or not. Guarded by
// the topic's mu.
type replica struct {
	epoch  *string // nil while nothing is known
	loaded bool    // the topic's offset, floor and history are those of the broker, as far as has been heard
	fed    uint64  // patterns have had all up to this offset; means something while link.feeder does
	seen   uint64  // the highest offset that came

	// Loads: one at a time.
	loads   uint64 // that were begun
	looked  uint64 // how often a resync had been asked for when the last one was
	loading bool
	resting bool // the next one waits a moment
	stale   bool // there has to be a next one
	whole   bool // of all that is kept
	tries   int  // in a row that failed or were of no use
	useless int  // in a row that filled no hole although there was one

	early      []early // what came behind a hole
	earlyBytes int
}

// early is a message that cannot be delivered before others.
type early struct {
	*Message
	prev uint64
}

// What waits behind a hole of one topic. What comes beyond that is loaded again.
const (
	maxEarly      = 256
	maxEarlyBytes = 1 << 20
)

// maxFruitless is how many loads may fail to fill a hole before it is considered permanent.
const maxFruitless = 8

// isIncomplete reports whether something may be missing, which is to be loaded.
func (f *Follower) isIncomplete(k *replica) bool {
	return k.loading || k.stale || f.isStale(k)
}

// isStale reports whether a resync has been asked for since the last load was begun.
func (f *Follower) isStale(k *replica) bool { return k.looked < f.stats.Resyncs.Load() }

func (k *replica) epochText() string {
	if k.epoch == nil {
		return ""
	}
	return *k.epoch
}

func (k *replica) hold(m *Message, prev uint64) {
	n := len(m.Raw().Payload())
	if len(k.early) < maxEarly && k.earlyBytes+n <= maxEarlyBytes {
		k.early = append(k.early, early{m, prev})
		k.earlyBytes += n
	}
}

// awaitReplica brings the topic up to date, so that a subscription can begin, and calls done when that is so: not with
// anything locked, or when it returns true, which means that there is nothing to wait for. A client that has been
// further than this server was at another one, and waits for what that one had. Subscribers get later what may be
// missing; history reads wait for it, for waitTime at most. The caller holds mu.
func (f *Follower) awaitReplica(t *topicState, from topic.Start, reads bool, done func(error)) (ready bool, err error) {
	return f.awaitFor(t, visitor{from: from, reads: reads, until: f.hub.engine.Uptime() + waitTime, done: done})
}

// visitor is a client that begins in a topic.
type visitor struct {
	from   topic.Start
	reads  bool
	until  time.Duration // it waits, after the server was made
	doubts int           // loads that have shown less than it has had
	done   func(error)
}

// maxDoubts is how often more is loaded for a client that has been further in this epoch than a load shows: for 3 to 6
// seconds. The leader of a stream that has stood still believes for a moment that it leads, and says what it had. That
// is all that a client's word is worth: it may be a lie.
const maxDoubts = 6

// awaitFor is awaitReplica for a visitor.
func (f *Follower) awaitFor(t *topicState, v visitor) (ready bool, err error) {
	k, now := t.Link.replica, f.hub.engine.Uptime()
	t.Link.wanted = now
	known := v.from.Since == nil || k.loaded && !t.isBehind(v.from)
	if k.loaded && known && !(v.reads && f.isIncomplete(k)) {
		return true, nil
	}
	if err := f.awayFor(f.ruleOf(t)); err != nil {
		return false, err
	}
	joined, number := t.Link.State == linkJoined, k.loads+1
	if joined && known && k.loading && !k.stale && !f.isStale(k) {
		number = k.loads
	}
	done := v.done
	if !known && v.doubts < maxDoubts {
		v.doubts++
		done = func(err error) { f.doubt(t, v, err) }
	}
	f.enlist(&t.Source, &waiter{load: number, done: done}, v.until-now)
	switch {
	case !joined:
		f.follow(&t.Source)
	case number > k.loads:
		k.resting = false
		f.load(t)
	}
	return false, nil
}

// isBehind reports whether a client has been further than the topic's copy here. The caller holds mu.
func (t *topicState) isBehind(from topic.Start) bool {
	return from.Since != nil && from.Since.Epoch == t.Link.replica.epochText() && from.Since.Offset > t.offset
}

// doubt ends a visitor's wait, unless the topic is still behind: then it begins again after a while.
func (f *Follower) doubt(t *topicState, v visitor, err error) {
	t.Mu.Lock()
	behind := t.Link.replica.loaded && t.isBehind(v.from)
	t.Mu.Unlock()
	if err != nil || !behind {
		v.done(err)
		return
	}
	time.AfterFunc(backoff(v.doubts), func() {
		now, err := f.hub.open(t.Name) // it may have been forgotten
		if err != nil {
			v.done(err)
			return
		}
		ready, err := f.awaitFor(now, v)
		now.Mu.Unlock()
		if ready || err != nil {
			v.done(err)
		}
	})
}

// load has what this server may not have of a topic loaded. The caller holds mu.
func (f *Follower) load(t *topicState) {
	t.Link.replica.stale = true
	f.beginLoad(t)
}

func (f *Follower) beginLoad(t *topicState) {
	k := t.Link.replica
	full := k.whole || !k.loaded && t.Link.State == linkJoined
	if k.loading || k.resting || !k.stale || t.Forgotten || !k.loaded && t.Link.State != linkJoined && t.Link.coveringPattern == nil {
		return
	}
	k.loading, k.stale, k.whole = true, false, false
	k.loads++
	k.looked = f.stats.Resyncs.Load()
	f.stats.Loads.Add(1)
	number, after := k.loads, uint64(0)
	switch {
	case full:
	case !k.loaded:
		after = k.fed
	case t.Link.coveringPattern != nil:
		after = min(k.fed, t.offset)
	default:
		after = t.offset
	}
	f.order(func() {
		f.broker.Load(t.Name, f.ruleOf(t), after, func(got topic.Snapshot, err error) { f.loaded(t, number, full, &got, err) })
	})
}

func (f *Follower) loaded(t *topicState, number uint64, full bool, got *topic.Snapshot, err error) {
	if err != nil && f.awayFor(f.ruleOf(t)) == nil { // otherwise it is known, and has been said
		f.hub.engine.LogSome(f.unloads, slog.LevelWarn, "could not load a persistent topic", []any{"topic", t.Name, "error", err})
	}
	t.Mu.Lock()
	defer t.Mu.Unlock()
	k := t.Link.replica
	if !k.loading || k.loads != number {
		return // the topic was let go of meanwhile
	}
	k.loading = false
	if err != nil {
		f.stats.LoadFailures.Add(1)
		k.whole = k.whole || full && k.loaded
		f.release(&t.Source, number, unavailable(err))
		f.backOff(t) // even without subscribers: the next one must not take a partial history for all of it
		return
	}
	if !full && k.epochText() != got.Epoch { // an offset of another epoch was asked for
		k.whole = true
		f.postpone(t)
		f.load(t)
		return
	}
	offset, fed, epoch := t.offset, k.fed, k.epoch
	whole := f.apply(t, got, full) && f.drain(t)
	switch useful := t.offset != offset || k.fed != fed || k.epoch != epoch; {
	case !whole: // too much to do
		if useful {
			k.tries = 0
		}
		f.postpone(t)
		f.backOff(t)
	case len(k.early) > 0 || k.loaded && t.offset < k.seen:
		k.stale = true
		k.useless++
		if useful {
			k.useless = 0
		} else {
			f.backOff(t)
		}
		if k.useless > maxFruitless {
			f.giveUp(t)
		}
	default:
		k.tries, k.useless = 0, 0
	}
	f.release(&t.Source, number, nil)
	k.stale = k.stale || len(t.Link.waiters) > 0
	f.beginLoad(t)
}

// postpone has all who wait go on waiting for the next load. The caller holds mu.
func (f *Follower) postpone(t *topicState) {
	for _, w := range t.Link.waiters {
		w.load = max(w.load, t.Link.replica.loads+1)
	}
}

// backOff has the next load wait, because the last one was of no use. The caller holds mu.
func (f *Follower) backOff(t *topicState) {
	k := t.Link.replica
	k.stale, k.resting = true, true
	k.tries++
	number := k.loads
	time.AfterFunc(backoff(k.tries), func() {
		t.Mu.Lock()
		defer t.Mu.Unlock()
		if k.loads == number { // otherwise a load did not wait, and there is another timer if that was of no use
			k.resting = false
			f.beginLoad(t)
		}
	})
}

// giveUp goes on behind a hole that the broker does not fill. The caller holds mu.
func (f *Follower) giveUp(t *topicState) {
	k := t.Link.replica
	to := k.seen
	if len(k.early) > 0 {
		to = k.early[0].prev // they are in order
	}
	k.useless, k.seen = 0, to
	f.apply(t, &topic.Snapshot{Epoch: k.epochText(), Since: to, Last: to}, false)
	f.drain(t)
}

// apply takes what was loaded, and delivers what is news of it. It returns false if it had to stop because of
// overload. The caller holds mu.
func (f *Follower) apply(t *topicState, got *topic.Snapshot, full bool) (whole bool) {
	k, at := t.Link.replica, f.hub.engine.Stamp()
	patterns := f.hub.PatternsOf(t)
	fed := t.Link.isCovered(patterns)
	other := k.epoch != nil && *k.epoch != got.Epoch
	if other || k.epoch == nil {
		epoch := got.Epoch
		k.epoch = &epoch
	}
	if other {
		k.seen = 0
	}
	if fed && (other || got.Since > k.fed) {
		f.missed(1)
		k.fed = got.Since
	}
	switch {
	case k.loaded && (other || got.Since > t.offset):
		f.begin(t, got.Since)
		f.tellGap(t, got, at)
	case full && !k.loaded && t.Link.State == linkJoined:
		f.begin(t, got.Since)
		k.loaded = true
	}
	now := got.Now
	if now.IsZero() {
		now = f.hub.engine.Wall()
	}
	for i := range got.Messages {
		one := &got.Messages[i]
		direct, pattern := k.loaded && one.Offset > t.offset, fed && one.Offset > k.fed
		if !direct && !pattern {
			continue
		}
		m := t.persistentMessage(one, k.epoch, now)
		if (pattern || t.Subscribers > 0) && f.hub.overloaded(t, patterns, m) != nil {
			return false
		}
		f.deliver(t, m, direct, pattern, patterns, at)
	}
	if k.loaded {
		t.offset = max(t.offset, got.Last)
	}
	if fed {
		k.fed = max(k.fed, got.Last)
	}
	return true
}

// begin empties a topic, which is complete from now on for clients that have everything up to an offset. The
// caller holds mu.
func (f *Follower) begin(t *topicState, since uint64) {
	for t.history.len() > 0 {
		t.dropOldest()
	}
	t.offset, t.floor = since, since
}

// tellGap tells subscribers that something is missing before what follows. Subscribers that get only the newest message
// of a topic are not told. The caller holds mu.
func (f *Follower) tellGap(t *topicState, got *topic.Snapshot, at reactor.Stamp) {
	f.stats.Gaps.Add(1)
	if t.Subscribers == 0 || t.latest() {
		return
	}
	last := max(got.Last, got.Since)
	if n := len(got.Messages); n > 0 {
		last = max(last, got.Messages[n-1].Offset)
	}
	gap := &Message{Topic: t, Gap: true, Offset: last, after: got.Since, Epoch: t.Link.replica.epoch}
	t.post(reactor.CommandGap, gap.WithRaw(codec.NewFrame(codec.OpText, nil)), at)
}

// missed counts messages with receivers here that did not get them.
func (f *Follower) missed(n uint64) { f.stats.Lost.Add(n) }

// persistentMessage is a message of the broker's, whose clock says now.
func (t *topicState) persistentMessage(m *topic.Message, epoch *string, now time.Time) *Message {
	own := &Message{Topic: t, Offset: m.Offset, Time: m.Time.UnixMilli(), born: t.hub.engine.BornMillis(m.Time, now), Format: m.Format, Epoch: epoch}
	return own.WithRaw(codec.NewFrame(m.Format.Opcode(), m.Payload))
}

// deliver hands a message to the subscribers of its topic, of patterns, or both. The caller holds mu.
func (f *Follower) deliver(t *topicState, m *Message, direct, pattern bool, patterns []*Source, at reactor.Stamp) {
	t.used = f.hub.engine.Uptime()
	if direct {
		t.issue(m, at)
	}
	if pattern {
		issueAll(patterns, m, at)
		t.Link.replica.fed = m.Offset
	}
}

// receivePersistent takes a message from the broker.
func (f *Follower) receivePersistent(got topic.Message, epoch string, prev uint64) {
	f.stats.PersistentIn.Add(1)
	t := f.taker(got.Topic)
	if t == nil {
		return
	}
	defer t.Mu.Unlock()
	k := t.Link.replica
	if k == nil { // by the rules of this server it is not kept
		f.missed(1)
		return
	}
	patterns := f.hub.PatternsOf(t)
	fed := t.Link.isCovered(patterns)
	pending := !k.loaded && t.Link.State != LinkNone
	if k.epoch == nil || *k.epoch != epoch && !k.loaded && !fed && !pending {
		k.epoch, k.seen = &epoch, 0
	}
	if *k.epoch != epoch {
		k.hold(t.persistentMessage(&got, &epoch, got.Time), prev)
		k.whole = true
		f.load(t)
		return
	}
	k.seen = max(k.seen, got.Offset)
	if !fed && len(patterns) > 0 {
		t.Link.coveringPattern, k.fed, fed = patterns[0], prev, true
	}
	direct, pattern := k.loaded && got.Offset > t.offset, fed && got.Offset > k.fed
	if !direct && !pattern && !pending {
		return // it has come before
	}
	m := t.persistentMessage(&got, k.epoch, got.Time)
	// Where prev is 0, what may be missing is kept no more, and the broker cannot tell whether there was anything. It
	// is no hole: every topic that was quiet for max_age would have one.
	hole := direct && prev > t.offset || pattern && prev > k.fed
	if hole {
		f.stats.SequenceGaps.Add(1)
	}
	if hole || f.hub.overloaded(t, patterns, m) != nil {
		k.hold(m, prev)
		if !hole && !k.loading && !k.resting {
			f.backOff(t)
		}
		f.load(t)
		return
	}
	f.deliver(t, m, direct, pattern, patterns, f.hub.engine.Stamp())
	if pending {
		k.hold(t.persistentMessage(&got, k.epoch, got.Time), prev) // the other one is with the loops
	}
	if !f.drain(t) && !k.loading && !k.resting {
		f.backOff(t)
	}
}

// taker returns, locked, the topic that takes a message from another node, or nil if there is none.
func (f *Follower) taker(name string) *topicState {
	if t := f.hub.Find(name); t != nil {
		return t
	}
	if !f.hub.matched(name) {
		return nil
	}
	t, err := f.hub.open(name)
	if err != nil {
		f.missed(1)
		return nil
	}
	return t
}

// drain delivers what came early and is not any more. It returns false if it had to stop because of overload. The
// caller holds mu.
func (f *Follower) drain(t *topicState) (whole bool) {
	k := t.Link.replica
	if len(k.early) == 0 || !k.loaded && t.Link.State != LinkNone {
		return true
	}
	slices.SortStableFunc(k.early, func(a, b early) int { return cmp.Compare(a.Offset, b.Offset) })
	patterns := f.hub.PatternsOf(t)
	fed, at := t.Link.isCovered(patterns), f.hub.engine.Stamp()
	n := 0
	whole = true
	for ; n < len(k.early); n++ {
		e := k.early[n]
		if *e.Epoch != *k.epoch {
			continue
		}
		direct, pattern := k.loaded && e.Offset > t.offset, fed && e.Offset > k.fed
		if direct && e.prev > t.offset || pattern && e.prev > k.fed {
			break
		}
		if whole = f.hub.overloaded(t, patterns, e.Message) == nil; !whole {
			break
		}
		if direct || pattern {
			f.deliver(t, e.Message, direct, pattern, patterns, at)
		}
	}
	k.early = slices.Delete(k.early, 0, n)
	k.earlyBytes = 0
	for _, e := range k.early {
		k.earlyBytes += len(e.Raw().Payload())
	}
	if len(k.early) == 0 {
		k.early = nil
	}
	return whole
}

// unload forgets what was loaded of a topic that is not followed any more. The caller holds mu.
func (f *Follower) unload(t *topicState) {
	k := t.Link.replica
	f.begin(t, 0)
	owed := t.Link.isCovered(f.hub.PatternsOf(t)) && f.mustReload(k)
	k.loads++ // what is under way is not waited for
	*k = replica{epoch: k.epoch, fed: k.fed, loads: k.loads, looked: k.looked, stale: owed}
	if t.Link.coveringPattern == nil {
		k.epoch = nil
	}
	f.beginLoad(t)
}

// mustReload reports whether something is to be loaded, or has come that cannot be delivered yet.
func (f *Follower) mustReload(k *replica) bool { return f.isIncomplete(k) || len(k.early) > 0 }

// mayOwe reports whether patterns may lack messages of a topic that only they have here: it must not be forgotten,
// since what they have had would be. The caller holds mu.
func (f *Follower) mayOwe(t *topicState) bool {
	return t.Link.replica != nil && t.Link.isCovered(f.hub.PatternsOf(t)) && (f.mustReload(t.Link.replica) || f.awayFor(f.ruleOf(t)) != nil)
}
