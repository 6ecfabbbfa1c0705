package server

import (
	"carillon/server/internal/hub"
	"carillon/server/topic"
)

// Broker joins servers to a cluster.
type Broker = topic.Broker

// Node is what a [Broker] sees of its server.
type Node = topic.Node

// Kept is what a [Broker] has stored of a topic.
type Kept = topic.Snapshot

// NodeInfo describes a server of the cluster.
type NodeInfo = topic.NodeInfo

// Answer is an answer to [topic.Broker.Ask].
type Answer = topic.Answer

// TopicRule says what a topic keeps.
type TopicRule = topic.Rule

// Publication is a message for a topic.
type Publication = topic.Publication

// Receipt is the result of a publication.
type Receipt = topic.Receipt

// Message is a message that a topic keeps.
type Message = topic.Message

// Position is a place in a topic's stream: after the message with this offset.
type Position = topic.Position

// Start is where a subscriber begins: after a position, with the newest messages, or with the next message.
type Start = topic.Start

// Past is a part of a topic's history.
type Past = topic.HistoryPage

// Subscribed says where a subscription began.
type Subscribed = topic.Subscribed

// TopicInfo describes a topic at one moment.
type TopicInfo = topic.Info

// TopicError describes a name that is not a topic, or not a pattern.
type TopicError = topic.NameError

// Format says what the payload of a message is.
type Format = topic.Format

const (
	FormatText   = topic.FormatText   // any text, in UTF-8
	FormatJSON   = topic.FormatJSON   // a JSON value
	FormatBinary = topic.FormatBinary // any bytes
)

var (
	// ErrTooManyTopics is returned when Limits.MaxTopics topics exist and another one is asked for.
	ErrTooManyTopics = topic.ErrTooMany

	// ErrTooLarge is returned for a message that is larger than Limits.MaxMessage, or than the broker takes for a
	// persistent topic.
	ErrTooLarge = topic.ErrTooLarge

	// ErrNotJSON is returned for a message of [FormatJSON] that is not JSON.
	ErrNotJSON = topic.ErrNotJSON

	// ErrNotText is returned for a message of [FormatText] or [FormatJSON] that is not UTF-8.
	ErrNotText = topic.ErrNotText

	// ErrKey is returned for an idempotency key that is too long.
	ErrKey = topic.ErrKey

	// ErrOverloaded is returned when a loop has more than Limits.MaxBacklog bytes to look at. The message goes to no
	// connection and is counted as [DropOverloaded].
	ErrOverloaded = topic.ErrOverloaded

	// ErrNoCluster is returned for a message that the broker cannot take now, because it is not connected. The message
	// goes to no connection.
	ErrNoCluster = topic.ErrNoCluster

	// ErrStoreFull is returned for a message that the broker has no room for. The message goes to no connection. It is
	// an [ErrNoCluster], too.
	ErrStoreFull = topic.ErrStoreFull

	// ErrUncertain means that the broker did not acknowledge the message in time, or not all of it. It may or may not
	// have been stored.
	ErrUncertain = topic.ErrUncertain

	// ErrSubscribed is returned for a topic that the connection has.
	ErrSubscribed = hub.ErrSubscribed

	// ErrOverlap is returned for a subscription that would bring messages which another one of the
	// connection brings already.
	ErrOverlap = hub.ErrOverlap

	// ErrNotSubscribed is returned when there is nothing to unsubscribe from.
	ErrNotSubscribed = hub.ErrNotSubscribed

	// ErrTooManySubscriptions is returned when the connection has as many as its endpoint allows.
	ErrTooManySubscriptions = hub.ErrTooManySubscriptions

	// ErrNoPosition is returned when a subscription to a pattern asks for a start: positions belong to
	// single topics.
	ErrNoPosition = hub.ErrNoPosition

	// ErrOnLoop is returned by what would have to wait for the cluster and was called on an event loop.
	ErrOnLoop = hub.ErrOnLoop
)

// CheckTopic reports what is wrong with the name of a topic: it has levels of at least one allowed character,
// separated by dots, and at most 255 bytes. The error is a *[TopicError].
func CheckTopic(name string) error { return topic.Check(name) }

// CheckPattern reports what is wrong with a name that may be that of a topic or a pattern. A pattern has "*" for any
// one level, or ">" as its last level for one or more. The error is a *[TopicError].
func CheckPattern(name string) error { return topic.CheckPattern(name) }

// IsPattern reports whether a name is a pattern. It must be one that [CheckPattern] accepts.
func IsPattern(name string) bool { return topic.IsPattern(name) }

// Covers reports whether every topic that matches inner also matches outer. Either may be the name of a topic.
// Both must be names that [CheckPattern] accepts.
func Covers(outer, inner string) bool { return topic.Covers(outer, inner) }
