package server

import (
	"context"
	"os"
	"time"

	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// remote is what the hub has of the rest of the cluster. A server without a [Broker] is [alone]: everything is ready,
// and nothing is relayed. One with a broker is a [follower].
type remote interface {
	join(ctx context.Context) error
	leave()

	isUp() bool     // messages pass between this server and others
	away() error    // why messages cannot be relayed
	unready() error // why new clients should go to another server
	counts() *clusterStats

	nodes() []topic.NodeInfo // this server first
	nodeID() string          // empty if there are no others

	// ask puts a question to all other servers. done gets their answers and whether all have answered, nil if there are
	// no others.
	ask(subject string, question any, done func(answers []topic.Answer, all *bool))

	// The next three may have to wait. Then they call wait, for example to reserve a slot on the connection's loop, and
	// later done, once, from any goroutine. Otherwise they return the outcome and true.

	// ready prepares a topic or a pattern for a subscriber or, if reads is set, for a reader of its history.
	ready(name string, from topic.Start, reads bool, wait func(), done func(error)) (ready bool, err error)

	// publish is done when the broker has the message.
	publish(p publication, wait func(), done func(topic.Receipt, error)) (receipt topic.Receipt, ready bool, err error)

	// present lists the subscribers of all servers. done must not change the list.
	present(topic string, wait func(), done func(*presence)) (p *presence, ready bool)

	// keeps reports whether the broker keeps a topic's messages.
	keeps(topic string) bool

	// For what follows the caller holds the mu of the source.

	attach(src *source) // prepares a new source
	left(src *source)   // notes that the last subscriber has gone
	unfollow(src *source)
	relay(src *source, p reactor.Payload, sent func(error)) // sent, which may be nil, learns what became of the message
	uses(t *topicState) bool                                // the topic must not be forgotten
	knows(t *topicState) bool                               // clients may have a position in the topic
	lingers(p *source) bool                                 // a pattern without subscribers lingers; the caller holds hub.mu, too

	// sweepTopic lets go of a topic that has not been used for long. So does sweep of patterns, with nothing locked.
	sweepTopic(t *topicState, now time.Duration)
	sweep(now time.Duration)
}

func newRemote(h *hub, b topic.Broker) remote {
	if b == nil {
		return alone{h}
	}
	return newFollower(h, b)
}

// nothing is the wait of callers that reserve no slot.
func nothing() {}

// alone is the remote of a server without a broker.
type alone struct{ hub *hub }

// untied is the link of all sources of such a server. It is never written.
var untied = &link{state: linkJoined}

var noClusterStats clusterStats

func (alone) join(context.Context) error { return nil }
func (alone) leave()                     {}
func (alone) isUp() bool                 { return false }
func (alone) away() error                { return nil }
func (alone) unready() error             { return nil }
func (alone) counts() *clusterStats      { return &noClusterStats }
func (alone) nodeID() string             { return "" }

func (a alone) nodes() []topic.NodeInfo {
	own := a.hub.owner.nodeInfo()
	own.ID, own.Heard = "self", time.Now()
	own.Name, _ = os.Hostname()
	return []topic.NodeInfo{own}
}

func (alone) ask(_ string, _ any, done func([]topic.Answer, *bool)) { done(nil, nil) }

func (alone) ready(string, topic.Start, bool, func(), func(error)) (bool, error) { return true, nil }

func (a alone) publish(p publication, _ func(), _ func(topic.Receipt, error)) (topic.Receipt, bool, error) {
	receipt, err := a.hub.publish(&p, nil)
	return receipt, true, err
}

func (a alone) present(topic string, _ func(), _ func(*presence)) (*presence, bool) {
	return a.hub.presentHere(topic), true
}

func (alone) keeps(string) bool { return false }

func (alone) attach(src *source) { src.link = untied }
func (alone) left(*source)       {}
func (alone) unfollow(*source)   {}

func (alone) relay(_ *source, _ reactor.Payload, sent func(error)) {
	if sent != nil {
		sent(nil)
	}
}

func (alone) uses(*topicState) bool                 { return false }
func (alone) knows(t *topicState) bool              { return t.offset > 0 }
func (alone) lingers(*source) bool                  { return false }
func (alone) sweepTopic(*topicState, time.Duration) {}
func (alone) sweep(time.Duration)                   {}
