package server

import (
	"carillon/codec"
	"carillon/server/internal/envelope"
)

// framing is how messages are written to a connection.
type framing uint8

const (
	framingRaw          framing = iota // the payload in a WebSocket message
	framingEnvelope                    // a JSON object in a WebSocket message
	framingEvent                       // the payload in a server-sent event
	framingEventWrapped                // a JSON object in a server-sent event
	numFramings
)

// payload is what is published to a source.
type payload interface {
	// frame returns it as it is written to connections of a framing.
	frame(to framing) *codec.Frame
}

// isEvents reports whether the connection carries server-sent events.
func (c *Conn) isEvents() bool { return c.framing >= framingEvent }

// event is a message as a server-sent event without an id.
func event(op codec.Opcode, payload []byte) *codec.Frame {
	return codec.Opaque(envelope.AppendMessageEvent(nil, "", op, payload))
}
