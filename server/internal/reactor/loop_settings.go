package reactor

import (
	"time"

	"carillon/codec"
	"carillon/server/internal/limit"
	"carillon/server/internal/listen"
	"carillon/server/internal/option"
)

// LoopSettings are what event loops need of the options in force. Immutable: a reload puts others in their place, so
// that loading them once gives one consistent state.
type LoopSettings struct {
	OwnerData any // the settings of the server that these are a part of

	Loops      int
	Takeover   bool
	Listeners  []ListenerSettings
	Endpoints  []LoopEndpointSettings
	Trusted    listen.Networks   // proxies, whose own connections do not count for their address
	Handshakes limit.TokenBucket // of all

	// For each address.
	MaxPerAddress int               // connections; negative is off
	AddressShake  limit.TokenBucket // handshakes

	// For each connection.
	Messages     limit.TokenBucket
	Bytes        limit.TokenBucket
	Decompressed limit.TokenBucket
	Publishes    limit.TokenBucket
	Requests     limit.TokenBucket

	MaxSockets       int // that may be open at once; 0 before the server runs
	MaxBacklog       int64
	MaxHead          int
	MaxMessage       int64
	MaxFragments     int
	MaxTLSHandshakes int

	// A negative time is off.
	IdleTimeout  time.Duration
	WriteTimeout time.Duration
	CloseTimeout time.Duration
	PingInterval time.Duration
	PingEarliest time.Duration // no connection's ping interval is shorter
	PingTimeout  time.Duration
	PingJitter   float64
	MaxAge       time.Duration // 0 is off
	MaxAgeJitter float64
	Tick         time.Duration // of the shards' sweeps
}

// LoopEndpointSettings are those of one endpoint.
type LoopEndpointSettings struct {
	Deflater *codec.Deflater
	Slow     SlowConsumer

	OwnerData any // of the server
}

// ListenerSettings are those of one listener.
type ListenerSettings struct {
	Key       string // of the address in the options
	Address   string
	Mode      option.FileMode // of a unix socket
	Balancers listen.Networks // that may send a PROXY header; none where there are no such headers
	MustProxy bool            // each connection begins with a PROXY header

	// From accept to the end of that header. It also holds for connections that were accepted while there were such
	// headers.
	PrefaceTimeout time.Duration
}

// keepsDebts reports whether a limit asks for them on an endpoint.
func (s *LoopSettings) keepsDebts(ep *LoopEndpoint) bool {
	return s.Messages.Limited() || s.Bytes.Limited() || s.Publishes.Limited() || s.Requests.Limited() ||
		ep.Deflates && s.Decompressed.Limited()
}

// Settings are loaded with one atomic read.
func (e *Engine) Settings() *LoopSettings { return e.Current.Load() }
