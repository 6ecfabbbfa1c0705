package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"carillon/server"

	"github.com/nats-io/nats.go"
)

// Load implements [server.Broker].
func (b *Broker) Load(topic string, rule int, after uint64, done func(server.Kept, error)) {
	st := b.streamOf(rule)
	if !b.ready.Load() || st == nil {
		go done(server.Kept{}, errNotStarted)
		return
	}
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
// is behind goes unnoticed by nobody.
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
	return b.reach(st, kept, newest, after)
}

// reach says how far back reaches what was fetched, and leaves out what is not after the position.
func (b *Broker) reach(st *stream, kept server.Kept, newest, after uint64) (server.Kept, error) {
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
		kept.Last = max(state.Last, kept.Since)
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

// newest asks the stream's leader for the sequence of the newest message of a subject; 0 is none.
func (b *Broker) newest(at place, deadline time.Time) (uint64, error) {
	question, _ := json.Marshal(map[string]any{"last_by_subj": at.subject})
	m, err := b.await("$JS.API.STREAM.MSG.GET."+at.st.name, question, time.Until(deadline))
	if err != nil {
		return 0, err
	}
	if isStatus(m, "503") {
		return 0, errNoLeader
	}
	var answer struct {
		Message struct {
			Seq uint64 `json:"seq"`
		} `json:"message"`
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return 0, fmt.Errorf("JetStream's answer: %w", err)
	}
	if answer.Error != nil {
		if answer.Error.ErrCode == 10037 { // no message found
			return 0, nil
		}
		return 0, answer.Error
	}
	return answer.Message.Seq, nil
}

// One request fetches at most this much.
const (
	batchMessages = 512
	batchBytes    = 4 << 20
)

// fetched are messages of a topic, in their order.
type fetched struct {
	messages []server.Message
	lost     uint64 // the last offset of what could not be read, such as of another version; what came before it is left out
}

func (f *fetched) last() uint64 { return max(lastOf(f.messages), f.lost) }

// fetchUpTo fetches the messages of a topic from a sequence on. The newest one has to be among them, or one
// that is newer still.
func (b *Broker) fetchUpTo(at place, from, newest uint64, deadline time.Time) (fetched, error) {
	for {
		got, err := b.fetch(at, from, deadline)
		if err == nil && got.last() >= newest {
			return got, nil
		}
		if time.Now().After(deadline) || !b.nc.IsConnected() {
			if err == nil {
				err = errors.New("the replica is behind")
			}
			return fetched{}, err
		}
		if err == nil {
			// Either the replica is behind, or the newest message has been removed meanwhile.
			if now, err := b.newest(at, deadline); err == nil && now < newest {
				newest = now
				continue
			}
		}
		if !b.sleep(20 * time.Millisecond) {
			return fetched{}, server.ErrNoCluster
		}
	}
}

func (b *Broker) fetch(at place, from uint64, deadline time.Time) (all fetched, err error) {
	for {
		part, more, err := b.fetchBatch(at, from, deadline)
		if err != nil {
			return fetched{}, err
		}
		if part.lost > 0 {
			all = fetched{lost: part.lost}
		}
		all.messages = append(all.messages, part.messages...)
		if !more || part.last() == 0 {
			return all, nil
		}
		from = part.last() + 1
	}
}

// fetchBatch makes one batched direct get.
func (b *Broker) fetchBatch(at place, from uint64, deadline time.Time) (part fetched, more bool, err error) {
	question, _ := json.Marshal(map[string]any{"seq": from, "next_by_subj": at.subject, "batch": batchMessages, "max_bytes": batchBytes})
	ended := make(chan error, 1)
	reply, token := b.calls.open(time.Until(deadline), func(m *nats.Msg, err error) bool {
		switch {
		case err != nil:
		case isStatus(m, "404"):
		case isStatus(m, "204"):
			more = m.Header.Get("Nats-Num-Pending") != "0"
		case m.Header.Get("Status") != "":
			err = fmt.Errorf("JetStream: %s %s", m.Header.Get("Status"), m.Header.Get("Description"))
		default:
			var offset uint64
			if offset, err = strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64); err != nil {
				break
			}
			if one, problem := openKept(at.topic, offset, m.Header.Get("Nats-Time-Stamp"), m.Data); problem == nil {
				part.messages = append(part.messages, one)
			} else {
				b.foreign("a stored message")
				part = fetched{lost: offset}
			}
			return true
		}
		ended <- err
		return false
	})
	if err := b.nc.PublishMsg(&nats.Msg{Subject: "$JS.API.DIRECT.GET." + at.st.name, Reply: reply, Data: question}); err != nil && b.calls.close(token) {
		return fetched{}, false, b.publishError(err)
	}
	err = <-ended
	return part, more, err
}
