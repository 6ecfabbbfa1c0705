package reactor

import (
	"carillon/codec"
	"carillon/server/internal/envelope"
)

// Framing is how messages are written to a connection.
type Framing uint8

const (
	FramingRaw          Framing = iota // the payload in a WebSocket message
	FramingEnvelope                    // a JSON object in a WebSocket message
	FramingEvent                       // the payload in a server-sent event
	FramingEventWrapped                // a JSON object in a server-sent event
	NumFramings
)

// Payload is what is published to a source.
type Payload interface {
	// Frame returns it as it is written to connections of a framing.
	Frame(to Framing) *codec.Frame
}

// IsEvents reports whether the connection carries server-sent events.
func (c *Conn) IsEvents() bool { return c.framing >= FramingEvent }

// Event is a message as a server-sent event without an id.
func Event(op codec.Opcode, payload []byte) *codec.Frame {
	return codec.Opaque(envelope.AppendMessageEvent(nil, "", op, payload))
}
