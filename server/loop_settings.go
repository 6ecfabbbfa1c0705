package server

import (
	"time"

	"carillon/codec"
	"carillon/server/internal/limit"
	"carillon/server/internal/listen"
	"carillon/server/internal/option"
)

// loopSettings are what event loops need of the options in force. Immutable: a reload puts others in their place, so
// that whoever loads them once sees one state.
type loopSettings struct {
	ownerData any // the settings of the server that these are a part of

	loops      int
	takeover   bool
	listeners  []listenerSettings
	endpoints  []loopEndpointSettings
	trusted    listen.Networks   // proxies, whose own connections do not count for their address
	handshakes limit.TokenBucket // of all

	// For each address.
	maxPerAddress int               // connections; negative is off
	addressShake  limit.TokenBucket // handshakes

	// For each connection.
	messages     limit.TokenBucket
	bytes        limit.TokenBucket
	decompressed limit.TokenBucket
	publishes    limit.TokenBucket
	requests     limit.TokenBucket

	maxSockets       int // that may be open at once; 0 before the server runs
	maxBacklog       int64
	maxHead          int
	maxMessage       int64
	maxFragments     int
	maxTLSHandshakes int

	// A negative time is off.
	idleTimeout  time.Duration
	writeTimeout time.Duration
	closeTimeout time.Duration
	pingInterval time.Duration
	pingEarliest time.Duration // no connection's ping interval is shorter
	pingTimeout  time.Duration
	pingJitter   float64
	maxAge       time.Duration // 0 is off
	maxAgeJitter float64
	tick         time.Duration // of the shards' sweeps
}

// loopEndpointSettings are those of one endpoint.
type loopEndpointSettings struct {
	deflater *codec.Deflater
	slow     slowConsumer
}

// listenerSettings are those of one listener.
type listenerSettings struct {
	key       string // of the address in the options
	address   string
	mode      option.FileMode // of a unix socket
	balancers listen.Networks // that may send a PROXY header; none where there are no such headers
	mustProxy bool            // each connection begins with a PROXY header

	// From accept to the end of that header. It also holds for connections that were accepted while there were such
	// headers.
	prefaceTimeout time.Duration
}

// keepsDebts reports whether a limit asks for them on an endpoint.
func (s *loopSettings) keepsDebts(ep *loopEndpoint) bool {
	return s.messages.Limited() || s.bytes.Limited() || s.publishes.Limited() || s.requests.Limited() ||
		ep.deflates && s.decompressed.Limited()
}

// settings are loaded with one atomic read.
func (e *engine) settings() *loopSettings { return e.current.Load() }
