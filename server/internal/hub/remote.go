package hub

import (
	"context"
	"os"
	"time"

	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// remote is what the hub has of the rest of the cluster. A server without a broker is alone: everything is ready,
// and nothing is relayed. One with a broker is a follower.
type remote interface {
	Join(ctx context.Context) error
	Leave()

	IsUp() bool     // messages pass between this server and others
	Away() error    // why messages cannot be relayed
	Unready() error // why new clients should go to another server
	Counts() *clusterStats

	Nodes() []topic.NodeInfo // this server first
	NodeID() string          // empty if there are no others

	// ask puts a question to all other servers. done gets their answers and whether all have answered, nil if there are
	// no others.
	ask(subject string, question any, done func(answers []topic.Answer, all *bool))

	// The next three may have to wait. Then they call wait, for example to reserve a slot on the connection's loop, and
	// later done, once, from any goroutine. Otherwise they return the outcome and true.

	// ready prepares a topic or a pattern for a subscriber or, if reads is set, for a reader of its history.
	ready(name string, from topic.Start, reads bool, wait func(), done func(error)) (ready bool, err error)

	// Publish is done when the broker has the message.
	Publish(p Publication, wait func(), done func(topic.Receipt, error)) (receipt topic.Receipt, ready bool, err error)

	// Present lists the subscribers of all servers. done must not change the list.
	Present(topic string, wait func(), done func(*Presence)) (p *Presence, ready bool)

	// Keeps reports whether the broker keeps a topic's messages.
	Keeps(topic string) bool

	// For what follows the caller holds the mu of the source.

	Attach(src *Source) // prepares a new source
	left(src *Source)   // notes that the last subscriber has gone
	unfollow(src *Source)
	Relay(src *Source, p reactor.Payload, sent func(error)) // sent, which may be nil, is told what became of the message
	uses(t *topicState) bool                                // the topic must not be forgotten
	knows(t *topicState) bool                               // clients may have a position in the topic
	lingers(p *Source) bool                                 // a pattern without subscribers lingers; the caller holds hub.mu, too

	// sweepTopic lets go of a topic that has not been used for long. So does sweep of patterns, with nothing locked.
	sweepTopic(t *topicState, now time.Duration)
	sweep(now time.Duration)
}

func newRemote(h *Hub, b topic.Broker) remote {
	if b == nil {
		return alone{h}
	}
	return newFollower(h, b)
}

// Nothing is the wait of callers that reserve no slot.
func Nothing() {}

// alone is the remote of a server without a broker.
type alone struct{ hub *Hub }

// untied is the link of all sources of such a server. It is never written.
var untied = &link{State: linkJoined}

var noClusterStats clusterStats

func (alone) Join(context.Context) error { return nil }
func (alone) Leave()                     {}
func (alone) IsUp() bool                 { return false }
func (alone) Away() error                { return nil }
func (alone) Unready() error             { return nil }
func (alone) Counts() *clusterStats      { return &noClusterStats }
func (alone) NodeID() string             { return "" }

func (a alone) Nodes() []topic.NodeInfo {
	own := a.hub.owner.NodeInfo()
	own.ID, own.Heard = "self", time.Now()
	own.Name, _ = os.Hostname()
	return []topic.NodeInfo{own}
}

func (alone) ask(_ string, _ any, done func([]topic.Answer, *bool)) { done(nil, nil) }

func (alone) ready(string, topic.Start, bool, func(), func(error)) (bool, error) { return true, nil }

func (a alone) Publish(p Publication, _ func(), _ func(topic.Receipt, error)) (topic.Receipt, bool, error) {
	receipt, err := a.hub.Publish(&p, nil)
	return receipt, true, err
}

func (a alone) Present(topic string, _ func(), _ func(*Presence)) (*Presence, bool) {
	return a.hub.PresentHere(topic), true
}

func (alone) Keeps(string) bool { return false }

func (alone) Attach(src *Source) { src.Link = untied }
func (alone) left(*Source)       {}
func (alone) unfollow(*Source)   {}

func (alone) Relay(_ *Source, _ reactor.Payload, sent func(error)) {
	if sent != nil {
		sent(nil)
	}
}

func (alone) uses(*topicState) bool                 { return false }
func (alone) knows(t *topicState) bool              { return t.offset > 0 }
func (alone) lingers(*Source) bool                  { return false }
func (alone) sweepTopic(*topicState, time.Duration) {}
func (alone) sweep(time.Duration)                   {}
