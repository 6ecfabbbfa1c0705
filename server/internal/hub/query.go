package hub

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
	AskAboutTopic      = "topic"
	AskAboutPresence   = "presence"
	AskAboutConnection = "connection"
	AskToClose         = "close"
)

// AskTopic is a question about a topic.
type AskTopic struct {
	Topic string `json:"topic"`
}

// AskConnection is one about a connection, or asks for its end.
type AskConnection struct {
	ID     uint64          `json:"id"`
	Code   codec.CloseCode `json:"code,omitempty"`
	Reason string          `json:"reason,omitempty"`
}

// ask is answered by none without a broker that can be reached.
func (f *Follower) ask(subject string, question any, done func(answers []topic.Answer, all *bool)) {
	f.stats.Queries.Add(1)
	count := func(answers []topic.Answer, all bool) {
		if !all {
			f.stats.Partial.Add(1)
		}
		done(answers, &all)
	}
	if f.Away() != nil {
		count(nil, false)
		return
	}
	f.broker.Ask("", subject, envelope.AppendJSON(nil, question), count)
}

// answerTime is how long the answers of other servers are waited for at most.
const answerTime = 3 * time.Second

// AskAndWait asks all other servers and waits for answerTime at most. It must not be called on a loop.
func (h *Hub) AskAndWait(ctx context.Context, subject string, question any) (answers []topic.Answer, all *bool) {
	type outcome struct {
		answers []topic.Answer
		all     *bool
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	got := make(chan outcome, 1)
	h.Remote.ask(subject, question, func(answers []topic.Answer, all *bool) { got <- outcome{answers, all} })
	select {
	case o := <-got:
		return o.answers, o.all
	case <-ctx.Done():
		return nil, new(bool)
	}
}

// info is what other servers are told of this one.
func (f *Follower) info() topic.NodeInfo { return f.hub.owner.NodeInfo() }

// answer answers a question of another server.
func (f *Follower) answer(subject string, question []byte) []byte {
	return f.hub.owner.Answer(subject, question)
}

func (f *Follower) Nodes() []topic.NodeInfo { return f.broker.Nodes() }

// NodeID is the name of this server in its cluster.
func (f *Follower) NodeID() string {
	if id := f.id.Load(); id != nil {
		return *id
	}
	if list := f.broker.Nodes(); len(list) > 0 {
		f.id.Store(&list[0].ID) // it does not change
		return list[0].ID
	}
	return ""
}
