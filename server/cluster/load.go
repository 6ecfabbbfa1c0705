package cluster

import (
	"errors"
	"fmt"
	"time"

	"carillon/server/topic"
)

// Load implements [topic.Broker].
func (b *Broker) Load(name string, rule int, after uint64, done func(topic.Snapshot, error)) {
	st := b.streamOf(rule)
	if !b.ready.Load() || st == nil {
		go done(topic.Snapshot{}, errNotStarted)
		return
	}
	b.loads.do(func() {
		kept, err := b.load(st, name, after)
		if err == nil {
			st.leaveOut(&kept)
			kept.Now = b.clock()
			b.see(st, lastMark(&kept))
		}
		if err != nil {
			b.stats.loadFailures.Add(1)
			err = fmt.Errorf("load topic %s: %w", name, err)
		}
		b.stats.loads.Add(1)
		done(kept, err)
	})
}

// place is where the messages of a topic are.
type place struct {
	st             *stream
	topic, subject string
}

// load takes three steps, and their order is what makes the result honest.
//
// First the stream's leader says which message of the topic is the newest one. Its answer also means that its
// server knows what this node follows: what the leader stores later comes by itself.
//
// Then the messages are fetched, from any replica, until the newest one is among them, so that a replica that is behind
// is always noticed; if it stays behind, they are fetched from the leader.
//
// Last comes Since. When the message at the position is there, so are all behind it. Otherwise it has to be found out
// what behind the position has been removed. JetStream removes a topic's messages for two reasons. For their number,
// when there are more than the rule's history: then those that are left are exactly as many as that, or became fewer
// because of the other reason. And for age, or for the size of the stream, the oldest messages of all topics first:
// then everything that a replica has removed is before its first message, and so is everything older of the topic.
// So: if a message exists, all later ones of its topic do. If the leader has fewer than the history, everything from
// its first sequence on is there, with what the leader has that the replica has not. Otherwise everything from the
// topic's first message on is. The first sequence is asked for after the messages have been fetched, since it only
// grows.
func (b *Broker) load(st *stream, name string, after uint64) (topic.Snapshot, error) {
	deadline := time.Now().Add(b.o.Timeout)
	if err := b.awaitClear(st, deadline); err != nil {
		return topic.Snapshot{}, err
	}
	epoch := st.epochNow()
	at := place{st, name, b.names.store(st.id, epoch, name)}
	newest, err := b.newest(at, deadline)
	if err != nil {
		return topic.Snapshot{}, err
	}
	kept := topic.Snapshot{Epoch: epoch}
	if newest > 0 && newest >= after {
		got, err := b.fetchUpTo(at, max(after, 1), newest, deadline)
		if err != nil {
			return topic.Snapshot{}, err
		}
		kept.Messages = got.messages
		if got.lost > 0 { // all that can honestly be had is what comes after what could not be read
			kept.Since = max(got.lost, after)
			kept.Last = max(newest, got.last(), kept.Since)
			return kept, st.same(epoch)
		}
		if after > 0 && len(kept.Messages) > 0 && kept.Messages[0].Offset == after {
			kept.Messages = kept.Messages[1:]
			kept.Since, kept.Last = after, max(newest, lastOf(kept.Messages))
			return kept, st.same(epoch)
		}
	}
	return b.reach(at, kept, newest, after, deadline)
}

// reach says how far back reaches what was fetched, and leaves out what is not after the position.
func (b *Broker) reach(at place, kept topic.Snapshot, newest, after uint64, deadline time.Time) (topic.Snapshot, error) {
	var state streamState
	var since uint64
	var err error
	if len(kept.Messages) >= at.st.history {
		since = kept.Messages[0].Offset - 1
		state, err = b.awaitInfo(at.st)
	} else {
		state, since, err = b.toHead(at, &kept, newest, after, deadline)
	}
	if err != nil {
		return topic.Snapshot{}, err
	}
	if state.epoch != kept.Epoch {
		b.changed(at.st, state.epoch)
		return topic.Snapshot{}, errEpoch
	}
	kept.Since = max(since, after)
	if kept.Last = max(newest, lastOf(kept.Messages), since); len(kept.Messages) == 0 {
		kept.Last = max(state.Last, since)
	}
	for len(kept.Messages) > 0 && kept.Messages[0].Offset <= kept.Since {
		kept.Messages = kept.Messages[1:]
	}
	return kept, nil
}

// toHead puts before the messages what the stream's leader still has there, and asks it since when everything is there.
//
// Each replica removes what is too old by its own clock, and when its timer goes off, so the one that was fetched from
// may be ahead of the leader. How many messages of the topic the leader has is asked for after that, and the stream's
// first sequence last: if there are fewer than the topic's history, then what was removed for their number is older
// than something that was removed for its age, and so is before the first sequence. Of what the stream had when the
// history was raised, that is not certain, but only that everything from the topic's first message on is there. Answers
// of two leaders do not go together.
//
// The last sequence that it returns is one that the stream had before all that: whether a later one is the topic's has
// not been checked.
func (b *Broker) toHead(at place, kept *topic.Snapshot, newest, after uint64, deadline time.Time) (state streamState, since uint64, err error) {
	for lost := uint64(0); ; {
		before, err := b.awaitInfo(at.st)
		if err != nil {
			return state, 0, err
		}
		unreadable, err := b.fillHead(at, kept, max(after, lost), before.Last, deadline)
		if err != nil {
			return state, 0, err
		}
		lost = max(lost, unreadable)
		counted, err := b.awaitCount(at)
		if err != nil {
			return state, 0, err
		}
		if state, err = b.awaitInfo(at.st); err != nil {
			return state, 0, err
		}
		if state.leader != before.leader || state.leader != counted.leader {
			if time.Now().After(deadline) {
				return state, 0, errNoLeader
			}
			continue
		}
		if newest == 0 && counted.Subjects[at.subject] > 0 {
			if now, err := b.newest(at, deadline); err != nil {
				return state, 0, err
			} else if now == 0 { // it is there, and cannot be read
				b.unreadable(at.topic)
				lost = before.Last
			}
		}
		since = max(state.First, 1, lost+1) - 1
		full := counted.Subjects[at.subject] >= counted.history
		if full || max(since, after) < counted.raised {
			first, err := b.next(at, 1, deadline)
			switch {
			case err != nil:
				return state, 0, err
			case full:
				since = max(since+1, first.Seq) - 1
			case first.Seq == 0:
				since = max(since, min(counted.raised, before.Last))
			default:
				since = max(since, min(counted.raised, first.Seq-1))
			}
		}
		state.Last = before.Last
		return state, since, nil
	}
}

// fillHead puts before the messages what the leader has between the position and them, or the stream's last sequence if
// there are none. What could not be read among that is lost, and so is everything before it.
func (b *Broker) fillHead(at place, kept *topic.Snapshot, after, last uint64, deadline time.Time) (lost uint64, err error) {
	if len(kept.Messages) > 0 {
		last = kept.Messages[0].Offset - 1
	}
	first, err := b.next(at, after+1, deadline)
	if err != nil || first.Seq == 0 || first.Seq > last {
		return 0, err
	}
	head, err := b.fetchParts(at, first.Seq, last, deadline)
	if err != nil {
		return 0, err
	}
	kept.Messages = append(head.messages, kept.Messages...)
	return head.lost, nil
}

// leaveOut leaves out what is before a place up to which messages may be missing.
func (st *stream) leaveOut(kept *topic.Snapshot) {
	st.mu.Lock()
	lost := st.lost
	st.mu.Unlock()
	if lost <= kept.Since || st.epochNow() != kept.Epoch {
		return
	}
	kept.Since, kept.Last = lost, max(kept.Last, lost)
	for len(kept.Messages) > 0 && kept.Messages[0].Offset <= lost {
		kept.Messages = kept.Messages[1:]
	}
}

var errEpoch = errors.New("the stream was recreated meanwhile")

func (st *stream) same(epoch string) error {
	if st.epochNow() != epoch {
		return errEpoch
	}
	return nil
}

func lastOf(list []topic.Message) uint64 {
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].Offset
}
