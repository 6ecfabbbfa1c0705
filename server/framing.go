package server

import "carillon/codec"

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
