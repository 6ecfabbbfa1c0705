package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// streamState is what the stream's leader says of it.
type streamState struct {
	First uint64 `json:"first_seq"` // what was before it was removed, from all subjects
	Last  uint64 `json:"last_seq"`

	LastTime time.Time `json:"last_ts"`
	Messages uint64    `json:"messages"`

	Subjects map[string]uint64 `json:"subjects"` // how many messages there are, of those that were asked for

	epoch   string
	now     time.Time // by its clock
	history uint64    // how many messages of a subject it keeps at most
	raised  uint64    // its last sequence when that was less
	lost    uint64    // up to here messages may be missing, for whatever reason

	leader string // its name; empty if there is one server only
	sole   bool   // no other server has the stream: what this one says is so
}

// info asks the stream's leader. The question is sent after the call, so that the answer holds for some
// moment after it; questions that wait at the same time are asked once.
//
// While there is no leader, any replica answers, which may lack what has been acknowledged. Such an answer is none.
//
// When the leader's answer is there, the leader's NATS server knows what this node has subscribed to before the
// call: interest and question went the same way, in this order. So what the leader stores from then on comes
// here.
func (b *Broker) info(st *stream, done func(streamState, error)) {
	st.mu.Lock()
	st.waiting = append(st.waiting, done)
	ask := !st.asking
	st.asking = true
	st.mu.Unlock()
	if ask {
		b.askInfo(st)
	}
}

func (b *Broker) askInfo(st *stream) {
	st.mu.Lock()
	list := st.waiting
	st.waiting = nil
	st.asking = len(list) > 0
	st.mu.Unlock()
	if len(list) == 0 {
		return
	}
	b.askState(st, nil, func(state streamState, err error) {
		if err == nil {
			b.setClock(state.now)
		}
		for _, done := range list {
			done(state, err)
		}
		go b.askInfo(st)
	})
}

// leaderGrace is how long the leader's answer is waited for when a server has answered that knows of no leader: one
// that was cut off may say so for a minute after it is back, while there is one.
const leaderGrace = 300 * time.Millisecond

// askState sends a question to the stream's leader and calls done with the answer.
func (b *Broker) askState(st *stream, question []byte, done func(streamState, error)) {
	var once sync.Once
	end := func(state streamState, err error) { once.Do(func() { done(state, err) }) }
	waits := false
	b.exchange("$JS.API.STREAM.INFO."+st.name, question, infoTimeout, func(m *nats.Msg, err error) bool {
		state, err := b.readState(st, m, err)
		if !knowsNoLeader(err) {
			end(state, err)
			return false
		}
		if !waits {
			waits = true
			time.AfterFunc(leaderGrace, func() { end(streamState{}, err) })
		}
		return true
	})
}

func (b *Broker) readState(st *stream, m *nats.Msg, err error) (streamState, error) {
	if err != nil {
		return streamState{}, err
	}
	if isStatus(m, "503") {
		return streamState{}, errNoLeader
	}
	var answer struct {
		Config struct {
			Subjects []string          `json:"subjects"`
			History  uint64            `json:"max_msgs_per_subject"`
			Metadata map[string]string `json:"metadata"`
		} `json:"config"`
		State   streamState `json:"state"`
		Cluster *struct {
			Leader   string     `json:"leader"`
			Replicas []struct{} `json:"replicas"`
		} `json:"cluster"`
		Now   time.Time `json:"ts"`
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return streamState{}, fmt.Errorf("response from JetStream: %w", err)
	}
	if answer.Error != nil {
		return streamState{}, answer.Error
	}
	if cluster := answer.Cluster; cluster != nil {
		if cluster.Leader == "" {
			return streamState{}, errLeaderless
		}
		answer.State.leader = cluster.Leader
	}
	answer.State.sole = answer.Cluster == nil || len(answer.Cluster.Replicas) == 0
	answer.State.lost, _ = strconv.ParseUint(answer.Config.Metadata[lostKey], 10, 64)
	answer.State.epoch, answer.State.now = b.names.epoch(st.id, answer.Config.Subjects), answer.Now
	answer.State.history = answer.Config.History
	if raised := answer.Config.Metadata[raisedKey]; raised != "" {
		if answer.State.raised, err = strconv.ParseUint(raised, 10, 64); err != nil {
			answer.State.raised = math.MaxUint64 // it is being raised
		}
	}
	return answer.State, nil
}

var (
	errNoLeader   = errors.New("JetStream does not respond")
	errLeaderless = fmt.Errorf("%w: the stream has no leader", errNoLeader)
)

// knowsNoLeader reports whether a server has answered that knows of no leader, of the stream or of JetStream.
func knowsNoLeader(err error) bool {
	var api *apiError
	return errors.Is(err, errLeaderless) || errors.As(err, &api) && api.ErrCode == 10008
}

// infoTimeout is how long the leader has for its answer.
const infoTimeout = 2 * time.Second

func (b *Broker) awaitInfo(st *stream) (streamState, error) {
	return wait(func(done func(streamState, error)) { b.info(st, done) })
}

// wait makes a call that waits of one that does not.
func wait[T any](call func(done func(T, error))) (T, error) {
	type answer struct {
		value T
		err   error
	}
	c := make(chan answer, 1)
	call(func(value T, err error) { c <- answer{value, err} })
	a := <-c
	return a.value, a.err
}

// awaitCount is awaitInfo with the number of messages of a topic.
func (b *Broker) awaitCount(at place) (streamState, error) {
	question, _ := json.Marshal(map[string]any{"subjects_filter": at.subject})
	return wait(func(done func(streamState, error)) { b.askState(at.st, question, done) })
}
