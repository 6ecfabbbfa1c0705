package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

// fetched are messages of a topic, in their order and without a hole.
type fetched struct {
	messages []topic.Message
	lost     uint64 // the last offset of what could not be read, such as of another version; what came before it is left out
	tail     int    // bytes of the last one

	// Of an answer of a replica.
	count uint64 // its messages
	left  uint64 // how many more it said to have when it sent the last one
	vague bool   // it may have some that it did not send
}

func (f *fetched) last() uint64 { return max(lastOf(f.messages), f.lost) }

// add takes the next message as JetStream has it.
func (b *Broker) add(f *fetched, topic string, offset uint64, at string, data []byte) {
	if one, err := openKept(topic, offset, at, data); err == nil {
		f.messages = append(f.messages, one)
	} else {
		b.foreign("a stored message")
		f.messages, f.lost = nil, offset
	}
	f.tail = len(data)
}

// resume adds what was fetched from the last message on, with that one once more. If it is gone, others behind it may
// be, too, and all that is there without a hole is what has come now.
func (f *fetched) resume(next fetched) {
	switch last := f.last(); {
	case next.last() <= last: // nothing new; a replica may not even know the last one
	case next.lost > 0 || next.messages[0].Offset != last:
		f.messages, f.lost, f.tail = next.messages, next.lost, next.tail
	default:
		f.messages, f.tail = append(f.messages, next.messages[1:]...), next.tail
	}
}

const (
	replicaPatience = time.Second      // how long replicas may stay where they are, behind, until the leader is asked instead
	leaderTime      = 10 * time.Second // how long it then is asked without such a wait
)

var (
	errBehind    = errors.New("the replica is behind")
	errHole      = errors.New("part of JetStream's response was lost")
	errNoBatches = errors.New("the NATS server does not support batch requests")
)

// fetchUpTo fetches the messages of a topic from a sequence on. The newest one has to be among them, or one
// that is newer still.
//
// Replicas answer, and the one of the NATS server that gets the request before all others. That one may be behind for
// long, as when it catches up after an outage; the stream's leader is not.
func (b *Broker) fetchUpTo(at place, from, newest uint64, deadline time.Time) (all fetched, err error) {
	half := time.Now().Add(time.Until(deadline) / 2)
	patience := min(replicaPatience, time.Until(half))
	if time.Now().UnixNano()-at.st.behind.Load() < int64(leaderTime) {
		patience = 0
	}
	replicas, vague, progress := true, false, time.Now()
	for all.last() < newest && from <= newest {
		var part fetched
		if begin := max(from, all.last()); replicas {
			part, err = b.fetchFromReplicas(at, begin, deadline)
		} else {
			part, err = b.fetchFromLeader(at, begin, newest, deadline)
		}
		before := all.last()
		vague = vague || part.vague
		if all.resume(part); all.last() > before {
			progress = time.Now()
		}
		if err == nil && all.last() < newest {
			// Either it is behind, or the newest message has been removed meanwhile, perhaps because there are newer
			// ones.
			err = errBehind
			if now, problem := b.newest(at, deadline); problem == nil && (now < newest || now > newest && !replicas) {
				newest = now
				continue
			}
		}
		switch now := time.Now(); {
		case err == nil:
		case now.After(deadline) || !b.nc.IsConnected():
			return fetched{}, err
		case replicas && errors.Is(err, errNoBatches):
			replicas = false
		case replicas && (now.Sub(progress) >= patience || now.After(half)):
			replicas = false
			at.st.behind.Store(now.UnixNano())
			b.stats.leaderLoads.Add(1)
		case !b.sleep(20 * time.Millisecond):
			return fetched{}, topic.ErrNoCluster
		}
	}
	if vague || replicas && all.last() > newest {
		return b.whole(at, all, deadline)
	}
	return all, nil
}

// One request fetches at most this much.
const (
	batchMessages = 512
	batchBytes    = 4 << 20
)

// fetchFromReplicas makes batched direct gets, each from the last message of the one before on.
func (b *Broker) fetchFromReplicas(at place, from uint64, deadline time.Time) (all fetched, err error) {
	for more, first := true, true; more; first = false {
		var part fetched
		before := all.last()
		part, more, err = b.fetchBatch(at, max(from, before), all.tail, batchMessages, deadline)
		if err != nil {
			return all, err
		}
		more = more && part.last() > before
		// The replica counts what it has, and leaves out what it cannot read.
		again := part.count > 0 && !first // the last message has come once more
		all.vague = all.vague || again && part.left+part.count != all.left+1 || !more && part.left > 0
		all.left = part.left
		all.resume(part)
	}
	return all, nil
}

// fetchBatch makes one batched direct get, which may take half of the time that is left. The first message is known to
// have so many bytes.
func (b *Broker) fetchBatch(at place, from uint64, first, batch int, deadline time.Time) (part fetched, more bool, err error) {
	return b.askBatch(at, from, first, batch, deadline)()
}

// askBatch asks what fetchBatch does, and returns what waits for the answer.
func (b *Broker) askBatch(at place, from uint64, first, batch int, deadline time.Time) func() (fetched, bool, error) {
	var part fetched
	var more bool
	question, _ := json.Marshal(map[string]any{"seq": from, "next_by_subj": at.subject, "batch": batch, "max_bytes": batchBytes + first})
	ended := make(chan error, 1)
	b.exchange("$JS.API.DIRECT.GET."+at.st.name, question, time.Until(deadline)/2, func(m *nats.Msg, err error) bool {
		if err == nil && m.Header.Get("Nats-Sequence") != "" {
			if err = b.takeBatched(&part, at.topic, m); err == nil {
				return true
			}
		}
		switch {
		case err != nil:
		case isStatus(m, "404"):
		case isStatus(m, "204"):
			if more = m.Header.Get("Nats-Num-Pending") != "0"; m.Header.Get("Nats-Last-Sequence") != strconv.FormatUint(part.last(), 10) {
				err = errHole
			}
		default:
			err = fmt.Errorf("JetStream: %s %s", m.Header.Get("Status"), m.Header.Get("Description"))
		}
		ended <- err
		return false
	})
	return func() (fetched, bool, error) {
		if err := <-ended; err != nil {
			return fetched{}, false, err
		}
		return part, more, nil
	}
}

// takeBatched takes one message of a batch, which tells the sequence of the one before it.
func (b *Broker) takeBatched(part *fetched, topic string, m *nats.Msg) error {
	left, err := strconv.ParseUint(m.Header.Get("Nats-Num-Pending"), 10, 64)
	if err != nil {
		return errNoBatches // it has answered with one message, and nothing follows
	}
	offset, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil || m.Header.Get("Nats-Last-Sequence") != strconv.FormatUint(part.last(), 10) {
		return errHole
	}
	part.count++
	part.left = left
	b.add(part, topic, offset, m.Header.Get("Nats-Time-Stamp"), m.Data)
	return nil
}

// minAsk is how long an answer is waited for at least.
const minAsk = 100 * time.Millisecond

// storedMessage is a message as the stream's leader has it.
type storedMessage struct {
	Seq  uint64 `json:"seq"` // 0 is none
	Time string `json:"time"`
	Data []byte `json:"data"`
}

// askLeader asks the stream's leader for a message. A question may be lost, such as while servers find each other
// again, so it is asked anew when a third of the time has gone.
func (b *Broker) askLeader(at place, what map[string]any, deadline time.Time) (storedMessage, error) {
	question, _ := json.Marshal(what)
	m, err := storedMessage{}, errTimeout
	for left := time.Until(deadline); left > 0 && errors.Is(err, errTimeout); left = time.Until(deadline) {
		m, err = b.askLeaderOnce(at, question, max(left/3, minAsk))
	}
	return m, err
}

// askLeaderOnce waits for the leader's answer. Servers that know of no leader answer, too, and first: one that was cut
// off may say so for a minute after it is back, while the leader has answered all the time.
func (b *Broker) askLeaderOnce(at place, question []byte, timeout time.Duration) (m storedMessage, err error) {
	var unavailable error
	ended := make(chan error, 1)
	b.exchange("$JS.API.STREAM.MSG.GET."+at.st.name, question, timeout, func(answer *nats.Msg, err error) bool {
		switch {
		case errors.Is(err, errTimeout) && unavailable != nil:
			err = unavailable
		case err != nil:
		case isStatus(answer, "503"):
			err = errNoLeader
		default:
			if m, err = readStored(answer.Data); knowsNoLeader(err) {
				unavailable = err
				return true
			}
		}
		ended <- err
		return false
	})
	err = <-ended
	return m, err
}

func readStored(data []byte) (storedMessage, error) {
	var answer struct {
		Message storedMessage `json:"message"`
		Error   *apiError     `json:"error"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return storedMessage{}, fmt.Errorf("response from JetStream: %w", err)
	}
	if answer.Error != nil && answer.Error.ErrCode == 10037 { // no message found
		return storedMessage{}, nil
	}
	if answer.Error != nil {
		return storedMessage{}, answer.Error
	}
	return answer.Message, nil
}

// newest asks for the sequence of the newest message of a topic; 0 is none.
func (b *Broker) newest(at place, deadline time.Time) (uint64, error) {
	m, err := b.askLeader(at, map[string]any{"last_by_subj": at.subject}, deadline)
	return m.Seq, err
}

// next asks for the first message of a topic from a sequence on.
func (b *Broker) next(at place, from uint64, deadline time.Time) (storedMessage, error) {
	return b.askLeader(at, map[string]any{"seq": from, "next_by_subj": at.subject}, deadline)
}

// What the leader is asked for at the same time: by so many loads of this node, each in so many parts of the stream.
const (
	leaderLoads = 4
	lanes       = 8
	laneWidth   = 64 // sequences, at least
)

// fetchFromLeader asks the stream's leader for one message after the other. Meanwhile the oldest may be removed, and
// some of a later part before they were asked for; but what is the first in the end was there all the time, and so was
// all that is behind it.
func (b *Broker) fetchFromLeader(at place, from, newest uint64, deadline time.Time) (all fetched, err error) {
	parts, err := b.fetchParts(at, from, newest, deadline)
	if err != nil {
		return fetched{}, err
	}
	first, err := b.next(at, from, deadline)
	if err != nil || first.Seq == 0 {
		return fetched{}, err
	}
	if parts.lost >= first.Seq {
		all.lost = parts.lost
	}
	for _, m := range parts.messages {
		if m.Offset >= first.Seq {
			all.messages = append(all.messages, m)
		}
	}
	return all, nil
}

// fetchParts fetches the messages between two sequences from the leader, in several parts of the stream at the same
// time.
func (b *Broker) fetchParts(at place, from, to uint64, deadline time.Time) (all fetched, err error) {
	select {
	case b.leader <- struct{}{}:
		defer func() { <-b.leader }()
	case <-time.After(time.Until(deadline)):
		return fetched{}, errTimeout
	}
	var parts [lanes]fetched
	var errs [lanes]error
	var wait sync.WaitGroup
	width := max((to-from)/lanes+1, laneWidth)
	for i := range parts {
		begin := from + uint64(i)*width
		wait.Go(func() { parts[i], errs[i] = b.walk(at, begin, min(begin+width-1, to), deadline) })
	}
	wait.Wait()
	for i, part := range parts {
		if errs[i] != nil {
			return fetched{}, errs[i]
		}
		if part.lost > 0 {
			all = fetched{lost: part.lost}
		}
		all.messages = append(all.messages, part.messages...)
	}
	return all, nil
}

// walk fetches them one after the other.
func (b *Broker) walk(at place, from, to uint64, deadline time.Time) (part fetched, err error) {
	for from <= to {
		m, err := b.next(at, from, deadline)
		if err != nil || m.Seq == 0 || m.Seq > to {
			return part, err
		}
		b.add(&part, at.topic, m.Seq, m.Time, m.Data)
		from = m.Seq + 1
	}
	return part, nil
}
