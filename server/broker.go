package server

import (
	"context"
	"errors"
	"time"
)

// ErrNoCluster is returned for a message that the broker cannot take now, because it is not connected. Nobody gets
// the message.
var ErrNoCluster = errors.New("the cluster cannot be reached")

// ErrStoreFull is returned for a message that the broker has no room for. Nobody gets the message. It is an [ErrNoCluster],
// too.
var ErrStoreFull error = storeFull{}

type storeFull struct{}

func (storeFull) Error() string        { return "the cluster's store is full" }
func (storeFull) Is(target error) bool { return target == ErrNoCluster }

// Broker joins servers to a cluster: what is published at one of them reaches the subscribers at all. It is given by
// [Options.Broker]; package cluster has the one on NATS. Without a broker a server is alone, and pays nothing for it.
//
// There are two kinds of topics. One that a [TopicRule] with history matches is kept: its messages, their order and
// their offsets live in the broker, so they mean the same at every server. A message for it goes to the broker, and
// comes to every server that follows the topic, the one that published it included, by [Node.Kept]. Every other topic
// is passing: the server at which a message is published hands it to its own subscribers at once, with offsets and an
// epoch of its own, and the broker carries it to the other servers that follow the topic, at most once and in each
// publisher's order, by [Node.Passing]. Broadcasts are passing, too.
//
// All methods but Start and Stop may be called from any goroutine, event loops included, and wait for nobody: not for
// a method of Node either, since the server may have something locked that those need. Functions that they are given
// are called once, from any goroutine, perhaps before the method returns, and after about ten seconds at the latest,
// with an error if nothing came of it until then. They wait for nobody either.
//
// Payloads are shared in both directions: nobody changes them.
type Broker interface {
	// Start connects, and returns when messages pass, or ctx has ended, or with the reason why that cannot be hoped
	// for. Later interruptions are the broker's to mend. It is called once, before the server listens.
	Start(ctx context.Context, node Node) error

	// Stop leaves the cluster. What was published before is handed over as far as ctx allows.
	Stop(ctx context.Context)

	// Err is nil while messages pass between this server and others, and otherwise says why not. It is asked for every
	// message.
	Err() error

	// KeptErr is the same for the kept topics that a rule is for: nil while messages can be published to them, and
	// loaded.
	KeptErr(rule int) error

	// Ready is nil unless new clients should rather go to another server, and then says why. What all servers suffer
	// is no reason as long as it will soon be over: they would refuse everybody at once.
	Ready() error

	// PublishKept hands over a message for a kept topic. done gets the message's position when the broker has it for
	// certain, or an error; [ErrNoCluster], of which [ErrStoreFull] is one, [ErrOverloaded] and [ErrTooLarge], for one that is larger than the broker
	// takes, mean that nobody gets the message, any other one that this is not known. A publication with a key that the
	// broker has had within five minutes, by the same publisher, is not stored again and gets the position of the first.
	PublishKept(p Publication, rule int, done func(Position, error))

	// PublishPassing does the same for a passing topic; the broker has it when other servers' brokers can get it from
	// there. What done gets is about other servers: this one's subscribers have the message. seq counts this server's
	// messages to the topic without a hole, within an incarnation of it.
	PublishPassing(p Publication, incarnation, seq uint64, done func(error))

	// Broadcast does the same for all connections of an endpoint. seq counts this server's messages to the endpoint
	// without a hole.
	Broadcast(path string, op Opcode, payload []byte, seq uint64, done func(error))

	// Follow has the messages come of a topic, or of all topics that match a pattern, and Unfollow ends that. A message
	// that several names match comes once. joined is called when no later message can be missed, apart from
	// failures; after an error the name is not followed, unless Follow is called again. The calls for one name come
	// one after the other.
	Follow(name string, joined func(error))
	Unfollow(name string)

	// Load fetches what is kept of a topic: the messages after an offset or, after 0, all. What it gets is at least
	// as new as the call: it has all that PublishKept has said before to be there, at whatever server.
	Load(topic string, rule int, after uint64, done func(Kept, error))

	// Nodes lists the servers of the cluster that have been heard of lately, this one first.
	Nodes() []NodeInfo

	// Ask puts a question to all other servers, or to one if node is not empty. done gets what they answered within a
	// second or so, and whether all did.
	Ask(node, subject string, question []byte, done func(answers []Answer, all bool))
}

// Node is what a [Broker] sees of its server. Its methods may be called from any goroutine.
type Node interface {
	// Passing takes a message for a passing topic from another server. Messages of one publisher come in its order.
	// from is another one each time that a server is started.
	Passing(from string, incarnation, seq uint64, p Publication, at time.Time)

	// Broadcast takes one for an endpoint.
	Broadcast(from string, path string, op Opcode, payload []byte, seq uint64)

	// Kept takes a message for a kept topic. prev is the offset of the one before it in the same topic, 0 if none is
	// kept: it is the first that ever was, or those before it have become too old, or are gone for the space that they
	// took. It may come twice, and after later ones.
	Kept(m Message, epoch string, prev uint64)

	// Resync says that messages may have been lost, so that what is kept has to be looked at again.
	Resync(why string)

	// Answer answers a question of another server, or with nothing if it has no answer. It may take a second, so it
	// is for a goroutine of its own.
	Answer(subject string, question []byte) []byte

	// Info is what other servers are told of this one. ID, Name, Heard and Lag are the broker's to fill in.
	Info() NodeInfo

	// Options are those of the server.
	Options() Options
}

// Kept is what a broker keeps of a topic.
type Kept struct {
	Epoch    string
	Messages []Message // the oldest first

	// Since is the offset after which Messages are all there are: nothing is missing for who has had all up to
	// Since, or any later offset.
	Since uint64

	// Last is an offset that no message of the topic up to now is beyond: those that are kept up to it are all in
	// Messages. It may be that of a message of another topic.
	Last uint64

	// Now is what the clock that the messages' times are of said when they were loaded. By it they are as old as they
	// are, whatever this server's clock says. Zero means that the two agree.
	Now time.Time
}

// NodeInfo is a server of the cluster.
type NodeInfo struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"` // for people
	Version     string    `json:"version"`
	Started     time.Time `json:"started"`
	Connections int       `json:"connections"`
	State       string    `json:"state"` // ready, unready, draining
	Heard       time.Time `json:"heard"` // when it was last heard of, by the clock of who tells
	Lag         float64   `json:"lag"`   // seconds that it is behind with messages, about
}

// Answer is one to [Broker.Ask].
type Answer struct {
	Node string
	Body []byte
}
