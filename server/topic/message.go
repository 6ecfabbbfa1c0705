package topic

import (
	"time"

	"carillon/codec"
)

// Format says what the payload of a message is.
type Format uint8

const (
	FormatText   Format = iota // any text, in UTF-8
	FormatJSON                 // a JSON value
	FormatBinary               // any bytes
)

// String is "text", "json" or "binary".
func (f Format) String() string { return [...]string{"text", "json", "binary"}[f] }

// Opcode returns the kind of WebSocket message that carries the payload.
func (f Format) Opcode() codec.Opcode {
	if f == FormatBinary {
		return codec.OpBinary
	}
	return codec.OpText
}

// MaxKey is the length of the longest idempotency key, in bytes.
const MaxKey = 128

// Publication is a message for a topic.
type Publication struct {
	Topic   string // of a topic, not a pattern: see [Check]
	Format  Format
	Payload []byte // copied; for FormatText and FormatJSON it must be UTF-8

	// Key, at most 128 bytes, makes a publication safe to repeat: within five minutes one by the same
	// publisher to the same topic with the same key is not delivered again, and gets the same receipt. Empty is
	// none. With a [Broker] this holds at all servers for topics with history, and otherwise at each by
	// itself. Limits.MaxKeyMemory may end the five minutes earlier.
	Key string

	// Publisher is the namespace of Key: keys of different publishers have nothing to do with each other. Empty,
	// the default, is the application, for which the HTTP interface speaks as well. What a client publishes itself
	// has "client:", the path of its endpoint and, if it has a subject, "#" and the subject. So all anonymous
	// clients of an endpoint are one publisher, and a key that another one guesses is used up: theirs have to be
	// random.
	Publisher string
}

// Receipt is the result of a publication.
type Receipt struct {
	Offset      uint64 `json:"offset"`
	Epoch       string `json:"epoch"`
	Subscribers int    `json:"subscribers"` // connections of this server that it was for
}

// Message is a message that a topic keeps.
type Message struct {
	Topic   string
	Offset  uint64
	Time    time.Time // when it was published
	Format  Format
	Payload []byte // shared: it must not be changed
}
