package topic

import (
	"context"
	"time"

	"carillon/codec"
)

// Broker joins servers to a cluster: a message that is published at one of them reaches the subscribers at all of them.
// Options.Broker of package server takes it; package server/cluster has the one on NATS. Without a broker a server is
// alone, and pays nothing for it.
//
// There are two kinds of topics. A topic that matches a [Rule] with history is persistent: its messages, their order
// and their offsets live in the broker, so they mean the same at every server. A message for it goes to the broker, and
// comes to every server that follows the topic, the publishing one included, by [Node.Persistent]. Every other topic is
// transient: the server at which a message is published delivers it to its own subscribers at once, with offsets and an
// epoch of its own. The broker relays it to the other servers that follow the topic, at most once and in each
// publisher's order, by [Node.Transient]. Broadcasts are transient, too.
//
// All methods except Start and Stop may be called from any goroutine, event loops included, and do not block. They do
// not wait for a method of Node either, since the server may hold locks that those need. The functions that they are
// given are called once, from any goroutine, perhaps before the method returns, and after about ten seconds at the
// latest, with an error if there is no result by then. These functions do not block either.
//
// Payloads are shared in both directions and must not be changed.
type Broker interface {
	// Start connects. It returns when messages can pass, when ctx ends, or with the reason why it cannot succeed. Later
	// interruptions are the broker's to repair. It is called once, before the server listens.
	Start(ctx context.Context, node Node) error

	// Stop leaves the cluster. It hands over what was published before, as far as ctx allows.
	Stop(ctx context.Context)

	// Err is nil while messages pass between this server and others, and otherwise says why not. It is called for every
	// message.
	Err() error

	// PersistentErr is the same for the persistent topics of one rule: nil while messages can be published to them, and
	// loaded.
	PersistentErr(rule int) error

	// Ready is nil unless new clients should go to another server, and then says why. A short failure that all servers
	// share is no reason: they would refuse every client at once.
	Ready() error

	// PublishPersistent hands over a message for a persistent topic. done gets the message's position when the broker
	// has certainly stored it, or an error. [ErrNoCluster], which includes [ErrStoreFull], [ErrOverloaded] and
	// [ErrTooLarge], if it is larger than the broker takes, mean that the message goes to no subscriber; with any other
	// error that is unknown. If the broker has had a publication of the same publisher with the same key within five
	// minutes, it does not store this one and returns the position of the first.
	PublishPersistent(p Publication, rule int, done func(Position, error))

	// PublishTransient does the same for a transient topic; the broker has the message when other servers' brokers can
	// get it from there. The result is about other servers: this one's subscribers have the message. seq counts this
	// server's messages to the topic without a gap, within an incarnation of it.
	PublishTransient(p Publication, incarnation, seq uint64, done func(error))

	// Broadcast does the same for all connections of an endpoint. seq counts this server's messages to the endpoint
	// without a gap.
	Broadcast(path string, op codec.Opcode, payload []byte, seq uint64, done func(error))

	// Follow starts the messages of a topic, or of all topics that match a pattern; Unfollow ends them. A message that
	// several names match comes once. joined is called when no later message can be missed, apart from failures. After
	// an error the name is not followed until Follow is called again. The calls for one name come one after the other.
	Follow(name string, joined func(error))
	Unfollow(name string)

	// Load fetches the stored messages of a topic: those after an offset or, after 0, all. The result is at least as
	// new as the call: it contains every message that PublishPersistent has confirmed before, at any server.
	Load(topic string, rule int, after uint64, done func(Snapshot, error))

	// Nodes lists the servers of the cluster that have been heard from recently, this one first.
	Nodes() []NodeInfo

	// Ask sends a question to all other servers, or to one if node is not empty. done gets their answers within about a
	// second, and whether all of them answered.
	Ask(node, subject string, question []byte, done func(answers []Answer, all bool))
}

// Node is what a [Broker] sees of its server. Its methods may be called from any goroutine.
type Node interface {
	// Transient takes a message for a transient topic from another server. The messages of one publisher come in its
	// order. from is different each time that a server is started.
	Transient(from string, incarnation, seq uint64, p Publication, at time.Time)

	// Broadcast takes a message for all connections of an endpoint.
	Broadcast(from string, path string, op codec.Opcode, payload []byte, seq uint64)

	// Persistent takes a message for a persistent topic. prev is the offset of the message before it in the same topic.
	// It is 0 if none is stored: this is the first message, or the earlier ones were removed for their age or their
	// size. A message may come twice, and after later ones.
	Persistent(m Message, epoch string, prev uint64)

	// Resync says that messages may have been lost, so that the stored ones have to be loaded again.
	Resync(why string)

	// Answer answers a question of another server; the result is empty if it has no answer. It may take a second, so it
	// needs a goroutine of its own.
	Answer(subject string, question []byte) []byte

	// Info describes this server to others. The broker fills in ID, Name, Heard and Lag.
	Info() NodeInfo

	// Rules returns the server's rules. The methods of [Broker] get indexes into it.
	Rules() []Rule

	// MaxMessage returns the size of the largest message, in bytes; negative is no limit.
	MaxMessage() int64
}

// Snapshot is what a broker has stored of a topic.
type Snapshot struct {
	Epoch    string
	Messages []Message // the oldest first

	// Since is the offset after which Messages is complete: a client that has everything up to Since, or any later
	// offset, misses nothing.
	Since uint64

	// Last is an offset that no message of the topic exceeds so far: all stored messages up to it are in Messages. It
	// may be that of a message of another topic.
	Last uint64

	// Now is the broker's clock at load time. Ages are measured against it, not against the local clock. Zero means
	// that the two agree.
	Now time.Time
}

// NodeInfo describes a server of the cluster.
type NodeInfo struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"` // for people
	Version     string    `json:"version"`
	Started     time.Time `json:"started"`
	Connections int       `json:"connections"`
	State       string    `json:"state"` // ready, unready, draining
	Heard       time.Time `json:"heard"` // when it was last heard from, by the clock of the reporting server
	Lag         float64   `json:"lag"`   // about how many seconds its messages are behind
}

// Answer is an answer to [Broker.Ask].
type Answer struct {
	Node string
	Body []byte
}
