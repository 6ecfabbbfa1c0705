package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// dedupWindow is how long JetStream knows the keys of messages.
const dedupWindow = 5 * time.Minute

// stream is what JetStream keeps for a topic rule.
type stream struct {
	// Immutable.
	match   string
	id      string // of the rule, in subjects
	name    string // in JetStream
	history int
	config  jetstream.StreamConfig

	// Owned by the receiver.
	received      uint64 // the last sequence
	receivedEpoch string

	late   atomic.Int64 // when a publication timed out after which none has succeeded
	unsure atomic.Bool  // something happened to it after which it has not answered
	behind atomic.Int64 // when the replicas were given up for the leader last
	down   atomic.Pointer[error]
	since  atomic.Int64 // when the probe first saw that it is not well, after the broker was made; 0 while it is
	full   atomic.Pointer[fullness]
	tried  time.Time // when it was tried last whether there is room; owned by the probe
	fails  int       // of the probe, one after the other; owned by the probe

	doubts  atomic.Uint64 // how often something happened after which the stream is to be compared with what is known of it
	cleared atomic.Uint64 // the same when it was compared last

	judging sync.Mutex // held by the one who begins a new epoch

	// Owned by the writer.
	held []*outgoing // messages that wait while the stream is in doubt

	mu       sync.Mutex
	epoch    string    // guarded by mu
	seen     mark      // guarded by mu: the highest sequence of the epoch that is known to have been given out
	anchor   mark      // guarded by mu: the same when the stream was looked at last
	reserved uint64    // guarded by mu: what may have been given out before this node's machine crashed
	rewound  string    // guarded by mu: why it is certain that the stream has lost messages; empty if it is not
	back     int       // guarded by mu: how often in a row its leader has told a lower sequence
	backAt   time.Time // guarded by mu: when last
	census   census    // guarded by mu: its messages when it was looked at last
	shortFor int       // guarded by mu: how often in a row there were too few

	countAgain time.Time                  // guarded by mu: when they are counted again
	lost       uint64                     // guarded by mu: up to here messages may be missing
	past       []string                   // guarded by mu: epochs that this node has seen the end of
	asking     bool                       // guarded by mu
	waiting    []func(streamState, error) // guarded by mu
}

func (b *Broker) prepareStreams(rules []topic.Rule) {
	b.streams = make([]*stream, len(rules))
	for i, r := range rules {
		if r.History <= 0 {
			continue
		}
		id := ruleID(r.Match)
		if b.byRule[id] != nil {
			b.streams[i] = b.byRule[id] // no topic has it: the first rule that matches is a topic's
			continue
		}
		st := &stream{match: r.Match, id: id, name: b.names.stream(id), history: r.History}
		st.config = jetstream.StreamConfig{
			Name:              st.name,
			Description:       "carillon: topics " + r.Match,
			Retention:         jetstream.LimitsPolicy,
			Discard:           jetstream.DiscardOld,
			MaxMsgsPerSubject: int64(r.History),
			MaxBytes:          int64(b.o.MaxBytes),
			MaxMsgs:           -1,
			MaxConsumers:      -1,
			MaxMsgSize:        -1,
			Replicas:          b.o.Replicas,
			AllowDirect:       true,
			Duplicates:        dedupWindow,
			Storage:           jetstream.FileStorage,
		}
		if b.o.Storage == "memory" {
			st.config.Storage = jetstream.MemoryStorage
		}
		if r.MaxAge > 0 {
			st.config.MaxAge = r.MaxAge
			st.config.Duplicates = min(dedupWindow, r.MaxAge) // JetStream allows no more
		}
		b.streams[i], b.byRule[id] = st, st
	}
}

// configIn is the stream's configuration in an epoch.
func (b *Broker) configIn(st *stream, epoch string) jetstream.StreamConfig {
	c := st.config
	c.Subjects = []string{b.names.store(st.id, epoch, ">")}
	c.RePublish = &jetstream.RePublish{Source: c.Subjects[0], Destination: b.names.stored(st.id, epoch, ">")}
	return c
}

// setClock notes by how much JetStream's clock, of which the times of kept messages are, differs from this node's.
func (b *Broker) setClock(now time.Time) {
	if !now.IsZero() {
		b.ahead.Store(int64(time.Until(now)))
	}
}

// clock is what JetStream's clock says.
func (b *Broker) clock() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) }

func (st *stream) epochNow() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.epoch
}

// lateFor is how long after a publication that timed out the stream counts as away, unless one succeeds.
const lateFor = 10 * time.Second

// err says why messages do not pass, or nil.
func (st *stream) err() error {
	if down := st.down.Load(); down != nil {
		return *down
	}
	if at := st.late.Load(); at != 0 && time.Since(time.Unix(0, at)) < lateFor {
		return errors.New("JetStream did not acknowledge a message in time")
	}
	return nil
}

// ailing is for how long the stream has not been well, as the probe sees it.
func (st *stream) ailing(now time.Duration) time.Duration {
	if since := st.since.Load(); since != 0 {
		return now - time.Duration(since)
	}
	return 0
}

// note has the probe look whether the stream is well.
func (st *stream) note(now, timeout time.Duration) {
	switch {
	case st.err() == nil:
		st.since.Store(0)
	case st.down.Load() == nil: // it was published so much earlier
		st.since.CompareAndSwap(0, int64(max(now-timeout, 1)))
	default:
		st.since.CompareAndSwap(0, int64(now))
	}
}

// awaitStreams makes the streams, and waits for JetStream as long as ctx allows.
func (b *Broker) awaitStreams(ctx context.Context) error {
	told := time.Now()
	for _, st := range b.streams {
		var reason error // the last one but that time is up
		for st != nil && st.epochNow() == "" {
			err := b.ensure(ctx, st)
			if err == nil {
				break
			}
			if errors.Is(err, errConfig) {
				return err
			}
			if reason == nil || ctx.Err() == nil {
				reason = err
			}
			if time.Since(told) > progress {
				told = time.Now()
				b.log.Warn("waiting for JetStream", "topics", st.match, "error", err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("prepare JetStream for topics %s: %w (%v)", st.match, reason, context.Cause(ctx))
			case <-time.After(jitter(500 * time.Millisecond)):
			}
		}
	}
	return nil
}

var errConfig = errors.New("the stream has incompatible settings")

// ensure makes the stream, or gives it the configuration that this node has.
func (b *Broker) ensure(ctx context.Context, st *stream) error {
	js, err := jetstream.New(b.nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, min(b.o.Timeout, 3*time.Second)) // it is tried again
	defer cancel()
	for {
		s, err := js.Stream(ctx, st.name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			if s, err = js.CreateStream(ctx, b.configIn(st, newEpoch())); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
				continue // another node was faster
			}
			if err == nil {
				b.log.Info("created a stream in JetStream", "stream", st.name, "topics", st.match)
			}
		}
		if err != nil {
			return st.explain(err)
		}
		return b.adopt(ctx, js, st, s.CachedInfo())
	}
}

// explain tells errors that last from those that pass.
func (st *stream) explain(err error) error {
	var api *jetstream.APIError
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return fmt.Errorf("%w: topics %s are persistent, which needs JetStream: %w", errConfig, st.match, err)
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("no response, is JetStream enabled on the NATS servers? %w", err)
	}
	// 10052 is an invalid configuration, 10065 an overlap with another stream's subjects.
	if errors.As(err, &api) && (api.ErrorCode == 10052 || api.ErrorCode == 10065) {
		return fmt.Errorf("%w: stream %s for topics %s: %w", errConfig, st.name, st.match, err)
	}
	return err
}

// adopt takes a stream that exists, and changes it where it is not what this node's options say.
func (b *Broker) adopt(ctx context.Context, js jetstream.JetStream, st *stream, info *jetstream.StreamInfo) error {
	if info.Cluster != nil && info.Cluster.Leader == "" {
		return errNoLeader
	}
	b.setClock(info.TimeStamp)
	have, epoch := info.Config, b.names.epoch(st.id, info.Config.Subjects)
	if have.Storage != st.config.Storage {
		return fmt.Errorf("%w: stream %s of topics %s has storage %v, but cluster.storage is %v, and JetStream cannot change it: "+
			"use the same storage or another cluster.name, or delete the stream", errConfig, st.name, st.match, have.Storage, st.config.Storage)
	}
	// A memory stream that has lost its messages counts from 1 again, below the same name: the offsets that were given
	// out before must not pass for new ones. While it is empty, a new epoch does no harm.
	if epoch == "" || info.State.LastSeq == 0 && time.Since(info.Created) > time.Second && have.Storage == jetstream.MemoryStorage {
		epoch = newEpoch()
	}
	want := b.configIn(st, epoch)
	lost := have.Metadata[lostKey]
	want.Metadata = metadata(have.Metadata[raisedKey], lost)
	if have.MaxMsgsPerSubject > 0 && want.MaxMsgsPerSubject > have.MaxMsgsPerSubject {
		want.Metadata = metadata(beingRaised, lost)
	}
	var err error
	if !sameStream(&have, &want) {
		b.log.Info("updating a stream in JetStream to this node's options", "stream", st.name, "topics", st.match)
		if info, err = updated(js.UpdateStream(ctx, want)); err != nil {
			return st.explain(err)
		}
	}
	if info.Config.Metadata[raisedKey] == beingRaised {
		want.Metadata = metadata(strconv.FormatUint(info.State.LastSeq, 10), lost)
		if info, err = updated(js.UpdateStream(ctx, want)); err != nil {
			return st.explain(err)
		}
	}
	st.setEpoch(b.names.epoch(st.id, info.Config.Subjects))
	return nil
}

// raisedKey is where a stream's metadata have its last sequence of the time when its topics' history was raised: of
// what was before that, more may have been removed than a history of today's length explains. While that is being done
// it is not a number.
const (
	raisedKey   = "carillon.raised"
	beingRaised = "now"
)

// metadata are those of a stream, without what is empty.
func metadata(raised, lost string) map[string]string {
	m := map[string]string{}
	for key, text := range map[string]string{raisedKey: raised, lostKey: lost} {
		if text != "" {
			m[key] = text
		}
	}
	return m
}

func updated(s jetstream.Stream, err error) (*jetstream.StreamInfo, error) {
	if err != nil {
		return nil, err
	}
	return s.CachedInfo(), nil
}

// sameStream compares what nodes set.
func sameStream(a, b *jetstream.StreamConfig) bool {
	return slices.Equal(a.Subjects, b.Subjects) && a.MaxMsgsPerSubject == b.MaxMsgsPerSubject && a.MaxBytes == b.MaxBytes &&
		a.MaxAge == b.MaxAge && a.Replicas == b.Replicas && a.Duplicates == b.Duplicates && a.AllowDirect == b.AllowDirect &&
		a.RePublish != nil && *a.RePublish == *b.RePublish && a.Discard == b.Discard
}

func newEpoch() string {
	const bits = 41 // eight characters
	return strconv.FormatUint(1<<(bits-1)|rand.Uint64N(1<<(bits-1)), 36)
}

func (st *stream) setEpoch(epoch string) (changed bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if changed = st.epoch != "" && st.epoch != epoch; changed || st.epoch == "" {
		st.seen, st.anchor, st.reserved, st.back = mark{epoch: epoch}, mark{}, 0, 0 // what is known is of the other one
		st.rewound, st.lost, st.shortFor, st.census = "", 0, 0, census{}
	}
	if changed {
		st.past = append(st.past, st.epoch)
	}
	st.epoch = epoch
	return changed
}

// changed notes the stream's epoch, and reports whether it is another one: then all has to be looked at again, since
// nothing else notices the change.
func (b *Broker) changed(st *stream, epoch string) bool {
	changed := st.setEpoch(epoch)
	if changed {
		b.resync("the stream of topics " + st.match + " is a different one")
	}
	return changed
}

// refresh finds out whether the stream is still the same, and makes it again if it is gone.
func (b *Broker) refresh(st *stream) error {
	old := st.known()
	state, err := b.awaitInfo(st)
	var api *apiError
	switch {
	case errors.As(err, &api) && api.ErrCode == 10059: // there is none
		b.log.Warn("a stream and its messages are gone from JetStream", "stream", st.name, "topics", st.match)
		before := st.epochNow()
		b.sleep(graveTime)
		if err = b.ensure(context.Background(), st); err == nil && st.epochNow() != before {
			st.clear(old.doubts)
			b.resync("the stream of topics " + st.match + " was recreated")
		}
	case err == nil:
		switch past, certain := b.isPast(st, state); {
		case certain:
			st.condemn(st.epochNow(), "its epoch has ended")
		case past:
			err = errUnsettled
		default:
			b.changed(st, state.epoch)
		}
		if err == nil {
			err = b.judge(st, state, old)
		}
	}
	if err != nil {
		st.doubt()
		b.out.fail(st)
	}
	return err
}

// graveTime is how long a stream has to be gone before it is made again. NATS says that a stream is gone while it
// still removes the files; one that is made meanwhile finds some of them, and answers nothing any more.
const graveTime = time.Second

// wentBack reports whether the stream has lost messages at its end, as a memory stream does when all its
// servers restart, and a file when a machine loses power. A leader that has not noticed yet that it is
// none any more may say so, too; so it takes several times, with some time between them. Then it says so until there is
// another epoch.
func (st *stream) wentBack(last, highest uint64) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if last >= highest {
		st.back = 0
		return false
	}
	if time.Since(st.backAt) < probeInterval/2 {
		return false
	}
	st.backAt = time.Now()
	st.back++
	return st.back >= 3
}

// suspect looks at a stream after something happened to it.
func (b *Broker) suspect(st *stream, what string) {
	what = strings.ToLower(strings.ReplaceAll(what, "_", " "))
	b.log.Debug("checking a stream", "stream", st.name, "topics", st.match, "why", what)
	st.doubt()
	b.looks.do(func() {
		switch {
		case !b.ready.Load():
		case b.refresh(st) == nil:
			b.resync("stream of topics " + st.match + ": " + what)
		default:
			st.unsure.Store(true)
		}
	})
}

const storageFile = jetstream.FileStorage

// probeInterval is how often each stream's leader is asked whether it is there.
const probeInterval = time.Second

// probe watches over the streams: while a leader does not answer, messages cannot pass, and may be missed.
func (b *Broker) probe() {
	for b.sleep(probeInterval) {
		b.makeRoom()
		b.out.nudge()
		for _, st := range b.streams {
			if st == nil || !b.nc.IsConnected() {
				continue
			}
			err := b.refresh(st)
			st.note(time.Since(b.started), b.o.Timeout)
			b.tryRoom(st)
			if err == nil {
				st.fails = 0
				unsure := st.unsure.Swap(false)
				if st.down.Swap(nil) != nil {
					b.log.Info("JetStream responds again", "topics", st.match)
					unsure = true
				}
				if unsure {
					b.resync("JetStream did not respond for a while")
				}
				continue
			}
			if errors.Is(err, errUnsettled) {
				continue
			}
			if st.fails++; st.fails == 2 {
				b.log.Error("JetStream does not respond; cannot publish to persistent topics", "topics", st.match, "error", err)
				st.down.Store(&err)
			}
		}
	}
}
