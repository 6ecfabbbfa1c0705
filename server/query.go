package server

import (
	"context"
	"time"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/topic"
)

// Servers of a cluster ask each other about what only one of them can know. The bodies are JSON; servers of other
// versions may know more fields, or not the subject.

// The subjects of questions.
const (
	askAboutTopic      = "topic"
	askAboutPresence   = "presence"
	askAboutConnection = "connection"
	askToClose         = "close"
)

// askTopic is a question about a topic.
type askTopic struct {
	Topic string `json:"topic"`
}

// askConnection is one about a connection, or asks for its end.
type askConnection struct {
	ID     uint64          `json:"id"`
	Code   codec.CloseCode `json:"code,omitempty"`
	Reason string          `json:"reason,omitempty"`
}

// ask is answered by none without a broker that can be reached.
func (f *follower) ask(subject string, question any, done func(answers []topic.Answer, all *bool)) {
	f.stats.queries.Add(1)
	count := func(answers []topic.Answer, all bool) {
		if !all {
			f.stats.partial.Add(1)
		}
		done(answers, &all)
	}
	if f.away() != nil {
		count(nil, false)
		return
	}
	f.broker.Ask("", subject, envelope.AppendJSON(nil, question), count)
}

// answerTime is how long the answers of other servers are waited for at most.
const answerTime = 3 * time.Second

func (h *hub) askAndWait(ctx context.Context, subject string, question any) (answers []topic.Answer, all *bool) {
	type outcome struct {
		answers []topic.Answer
		all     *bool
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	got := make(chan outcome, 1)
	h.remote.ask(subject, question, func(answers []topic.Answer, all *bool) { got <- outcome{answers, all} })
	select {
	case o := <-got:
		return o.answers, o.all
	case <-ctx.Done():
		return nil, new(bool)
	}
}

// info is what other servers are told of this one.
func (f *follower) info() topic.NodeInfo { return f.hub.owner.nodeInfo() }

// answer answers a question of another server.
func (f *follower) answer(subject string, question []byte) []byte {
	return f.hub.owner.answer(subject, question)
}

func (f *follower) nodes() []topic.NodeInfo { return f.broker.Nodes() }

// nodeID is the name of this server in its cluster.
func (f *follower) nodeID() string {
	if id := f.id.Load(); id != nil {
		return *id
	}
	if list := f.broker.Nodes(); len(list) > 0 {
		f.id.Store(&list[0].ID) // it does not change
		return list[0].ID
	}
	return ""
}
