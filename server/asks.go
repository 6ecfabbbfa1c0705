package server

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"carillon/codec"
	"carillon/server/internal/envelope"
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

// answer answers a question of another server.
func (f *follower) answer(subject string, question []byte) []byte {
	var topic askTopic
	var conn askConnection
	switch subject {
	case askAboutTopic:
		if json.Unmarshal(question, &topic) != nil {
			return nil
		}
		if info, exists := f.srv.Topic(topic.Topic); exists {
			return envelope.AppendJSON(nil, info)
		}
	case askAboutPresence:
		if json.Unmarshal(question, &topic) != nil {
			return nil
		}
		return f.srv.present(topic.Topic).AppendTo(nil)
	case askAboutConnection, askToClose:
		if json.Unmarshal(question, &conn) != nil {
			return nil
		}
		c := f.srv.roster.find(f.srv, conn.ID)
		switch {
		case c == nil:
		case subject == askAboutConnection:
			return envelope.AppendJSON(nil, c.fullInfo())
		case c.Close(conn.Code, conn.Reason) == nil:
			return []byte("{}")
		}
	}
	return nil
}

// ask is answered by none without a broker that can be reached.
func (f *follower) ask(subject string, question any, done func(answers []Answer, all *bool)) {
	f.stats.asks.Add(1)
	count := func(answers []Answer, all bool) {
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

func (h *hub) askAndWait(ctx context.Context, subject string, question any) (answers []Answer, all *bool) {
	type outcome struct {
		answers []Answer
		all     *bool
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	got := make(chan outcome, 1)
	h.remote.ask(subject, question, func(answers []Answer, all *bool) { got <- outcome{answers, all} })
	select {
	case o := <-got:
		return o.answers, o.all
	case <-ctx.Done():
		return nil, new(bool)
	}
}

// wideTopic is a topic as all servers know it.
type wideTopic struct {
	TopicInfo
	Complete *bool `json:"complete,omitempty"` // in a cluster: whether all servers have told of their subscribers
}

// topicEverywhere adds up the subscribers of all servers. What else is known of the topic is this server's, if it
// has the topic. That a topic is not there is said only when all servers have said so, and the broker, if it keeps it.
func (s *Server) topicEverywhere(ctx context.Context, name string) (t wideTopic, err error) {
	keeps := s.hub.remote.keeps(name)
	notLoaded := s.hub.waitFor(name, Start{}) // what the broker keeps; else what is known here
	known, exists := s.Topic(name)
	exists = exists && (!keeps || known.Subscribers > 0 || known.History > 0) // and not only because it was asked for
	t.TopicInfo = known
	answers, all := s.hub.askAndWait(ctx, askAboutTopic, askTopic{name})
	for _, one := range answers {
		if len(one.Body) == 0 { // it does not have the topic
			continue
		}
		var info TopicInfo
		if json.Unmarshal(one.Body, &info) != nil {
			*all = false
			continue
		}
		n := t.Subscribers + info.Subscribers
		if !exists && (n > 0 || info.History > 0 || !keeps) {
			t.TopicInfo, exists = info, true
		}
		t.Subscribers = n
	}
	t.Complete = all
	switch {
	case exists:
		return t, nil
	case notLoaded != nil:
		return t, notLoaded
	case all != nil && !*all:
		return t, problemNoCluster.because("%q is unknown here, and not every server answered", name)
	}
	return t, noTopic(name)
}

func noTopic(name string) error {
	return problemNoTopic.because("%q has no subscribers, and nothing was published to it recently", name)
}

// info is what other servers are told of this one.
func (f *follower) info() NodeInfo { return f.srv.nodeInfo() }

func (s *Server) nodeInfo() NodeInfo {
	state := "ready"
	switch {
	case s.ending.current() != nil:
		state = "draining"
	case len(s.unready()) > 0:
		state = "unready"
	}
	return NodeInfo{Version: BuildInfo().Version, Started: s.begin, Connections: s.Count(), State: state}
}

func (f *follower) nodes() []NodeInfo { return f.broker.Nodes() }

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

// nodes lists the servers of the cluster, which may be this one alone.
func (a *api) nodes(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	page := struct {
		Node  string     `json:"node"` // this one
		Nodes []NodeInfo `json:"nodes"`
	}{Nodes: a.srv.hub.remote.nodes()}
	if len(page.Nodes) > 0 {
		page.Node = page.Nodes[0].ID
	}
	slices.SortFunc(page.Nodes, func(a, b NodeInfo) int { return cmp.Compare(a.ID, b.ID) })
	return reply(w, page)
}
