package cluster

import (
	"errors"
	"fmt"
	"time"

	"carillon/server"
)

// Load implements [server.Broker].
func (b *Broker) Load(topic string, rule int, after uint64, done func(server.Kept, error)) {
	if !b.ready.Load() || rule < 0 || rule >= len(b.streams) || b.streams[rule] == nil {
		go done(server.Kept{}, errNotStarted)
		return
	}
	st := b.streams[rule]
	b.loads.do(func() {
		kept, err := b.load(st, topic, after)
		if err != nil {
			b.stats.loadFailures.Add(1)
			err = fmt.Errorf("load topic %s: %w", topic, err)
		}
		b.stats.loads.Add(1)
		kept.Now = b.clock()
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
// Then the messages are fetched, from any replica, until the newest one is among them, so that a replica that
// is behind goes unnoticed by nobody; if it stays behind, from the leader.
//
// Last comes Since. JetStream removes a topic's messages for two reasons. For their number, when there are more
// than the rule's history: then those that are left are exactly as many as that, or became fewer because of the
// other reason. And for age, or for the size of the stream, the oldest messages of all topics first: then
// everything that was removed is before the stream's first message, and so is everything older of the topic. So:
// if a message exists, all later ones of its topic do. If there are fewer than the history, everything from the
// stream's first sequence on is there. Otherwise everything from the topic's first message on is. The first
// sequence is asked for after the messages have been fetched, since it only grows.
func (b *Broker) load(st *stream, topic string, after uint64) (server.Kept, error) {
	deadline := time.Now().Add(b.o.Timeout)
	epoch := st.epochNow()
	at := place{st, topic, b.names.store(st.id, epoch, topic)}
	newest, err := b.newest(at, deadline)
	if err != nil {
		return server.Kept{}, err
	}
	kept := server.Kept{Epoch: epoch}
	// readable takes what was fetched. If something among it could not be read, all that can honestly be had is what
	// comes after that.
	readable := func(got fetched) bool {
		kept.Messages = got.messages
		if got.lost > 0 {
			kept.Since = max(got.lost, after)
			kept.Last = max(newest, got.last(), kept.Since)
		}
		return got.lost == 0
	}
	if newest > 0 && newest >= after {
		from := max(after, 1)
		got, err := b.fetchUpTo(at, from, newest, deadline)
		if err != nil {
			return server.Kept{}, err
		}
		if !readable(got) {
			return kept, st.same(epoch)
		}
		if after > 0 && len(kept.Messages) > 0 && kept.Messages[0].Offset == after {
			kept.Messages = kept.Messages[1:]
			kept.Since, kept.Last = after, max(newest, lastOf(kept.Messages))
			return kept, st.same(epoch)
		}
		if from > 1 {
			if got, err = b.fetchUpTo(at, 1, newest, deadline); err != nil {
				return server.Kept{}, err
			}
			if !readable(got) {
				return kept, st.same(epoch)
			}
		}
	} else if newest > 0 {
		// The topic has nothing after a position that was beyond its newest message, which still exists.
		got, err := b.fetchUpTo(at, newest, newest, deadline)
		if err != nil {
			return server.Kept{}, err
		}
		if !readable(got) {
			return kept, st.same(epoch)
		}
		if len(kept.Messages) > 0 && kept.Messages[0].Offset == newest {
			kept.Messages = kept.Messages[1:]
			kept.Since, kept.Last = after, max(after, lastOf(kept.Messages))
			return kept, st.same(epoch)
		}
	}
	return b.reach(at, kept, newest, after, deadline)
}

// reach says how far back reaches what was fetched, and leaves out what is not after the position.
func (b *Broker) reach(at place, kept server.Kept, newest, after uint64, deadline time.Time) (server.Kept, error) {
	st := at.st
	state, err := b.awaitInfo(st)
	if err != nil {
		return server.Kept{}, err
	}
	if state.epoch != kept.Epoch {
		st.setEpoch(state.epoch)
		return server.Kept{}, errEpoch
	}
	kept.Last = max(newest, lastOf(kept.Messages))
	if kept.Since = max(state.First, 1) - 1; len(kept.Messages) >= st.history {
		kept.Since = kept.Messages[0].Offset - 1
	}
	if len(kept.Messages) == 0 {
		// The stream's last message may be one of the topic that has come since: it has yet to be delivered.
		last := state.Last
		if first, err := b.next(at, newest+1, deadline); err != nil {
			return server.Kept{}, err
		} else if first.Seq > 0 {
			last = min(last, first.Seq-1)
		}
		kept.Last = max(last, kept.Since)
	}
	if kept.Since <= after {
		kept.Since = after
		for len(kept.Messages) > 0 && kept.Messages[0].Offset <= after {
			kept.Messages = kept.Messages[1:]
		}
	}
	return kept, nil
}

var errEpoch = errors.New("the stream was made again meanwhile")

func (st *stream) same(epoch string) error {
	if st.epochNow() != epoch {
		return errEpoch
	}
	return nil
}

func lastOf(list []server.Message) uint64 {
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].Offset
}
