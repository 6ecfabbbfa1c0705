package server

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"time"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/internal/hub"
	"carillon/server/internal/limit"
	"carillon/server/internal/listen"
	"carillon/server/internal/outbox"
	"carillon/server/internal/protocol"
	"carillon/server/internal/reactor"
)

// settings are the options in force and all that follows from them. Immutable: a reload puts others in
// their place, so that loading them once gives one consistent state.
type settings struct {
	Options
	loops     reactor.LoopSettings
	hub       hub.Settings
	endpoints []*endpointSettings
}

// endpointSettings are those of one endpoint.
type endpointSettings struct {
	*Endpoint
	deflater *codec.Deflater
	origins  auth.Origins
	auth     *auth.Authenticator
	protocol protocol.Settings
}

// settings are loaded with one atomic read.
func (s *Server) settings() *settings { return s.engine.Settings().OwnerData.(*settings) }

// opts are the options in force. What it points to is immutable.
func (s *Server) opts() *Options { return &s.settings().Options }

// putInForce has set take the place of the settings before.
func (s *Server) putInForce(set *settings) {
	set.loops.OwnerData = set
	s.engine.Current.Store(&set.loops)
}

// endpoint is that of a connection whose request has named one.
func (c *Conn) endpoint() *endpoint { return c.Server().endpoints[c.core().Endpoint().Index] }

// now are the endpoint's settings.
func (ep *endpoint) now() *endpointSettings { return ep.srv.settings().endpoints[ep.Index] }

// settle finds what follows from options that Resolve has checked. What they have in common with the
// settings before, which may be nil, is taken over: the keys that authenticators have, and compressors. The error
// joins one [OptionError] for each problem; places says where each endpoint stands in what the user wrote,
// and nil that all are in order.
func (s *Server) settle(o Options, before *settings, places []int) (*settings, error) {
	o = o.clone()
	set := &settings{Options: o, loops: loopSettingsOf(&o), hub: hubSettingsOf(&o)}
	var problems []error
	for i := range o.Endpoints {
		var old *endpointSettings
		if before != nil {
			old = before.endpoints[i]
		}
		e, err := s.settleEndpoint(&o.Endpoints[i], o.PublicURL, old)
		if err != nil {
			place := i
			if places != nil {
				place = places[i]
			}
			problems = append(problems, &OptionError{Key: fmt.Sprintf("endpoints[%d].auth.jwt.key_file", place), Problem: err.Error()})
		}
		set.endpoints = append(set.endpoints, e)
		set.loops.Endpoints = append(set.loops.Endpoints, reactor.LoopEndpointSettings{Deflater: e.deflater, Slow: slowConsumerOf(&e.SlowConsumer), OwnerData: &e.protocol})
	}
	return set, errors.Join(problems...)
}

// hubSettingsOf is what the hub needs of the options.
func hubSettingsOf(o *Options) hub.Settings {
	set := hub.Settings{
		Rules:        o.Topics,
		MaxTopics:    o.Limits.MaxTopics,
		MaxMessage:   int64(o.Limits.MaxMessage),
		MaxKeyMemory: int64(o.Limits.MaxKeyMemory),
	}
	for i := range o.Endpoints {
		t := &o.Endpoints[i].Topics
		set.Endpoints = append(set.Endpoints, hub.EndpointSettings{MaxSubscriptions: t.MaxSubscriptions, MaxPatterns: t.MaxPatterns})
	}
	return set
}

// loopSettingsOf is what event loops need of the options, but for the endpoints.
func loopSettingsOf(o *Options) reactor.LoopSettings {
	set := reactor.LoopSettings{
		Loops:      o.Loops,
		Takeover:   o.Takeover,
		Trusted:    listen.NewNetworks(o.TrustedProxies),
		Handshakes: limit.NewTokenBucket(int64(o.Limits.HandshakesPerSecond), handshakeBurst),

		MaxPerAddress: o.Limits.MaxConnectionsPerAddress,
		AddressShake:  limit.NewTokenBucket(int64(o.Limits.HandshakesPerSecondPerAddress), handshakeBurst),

		Messages:     limit.NewTokenBucket(int64(o.Limits.MessagesPerSecond), messageBurst),
		Bytes:        limit.NewTokenBucket(int64(o.Limits.BytesPerSecond), messageBurst),
		Decompressed: limit.NewTokenBucket(int64(o.Limits.DecompressedBytesPerSecond), messageBurst),
		Publishes:    limit.NewTokenBucket(int64(o.Limits.PublishesPerSecond), messageBurst),
		Requests:     limit.NewTokenBucket(int64(o.Limits.RequestsPerSecond), messageBurst),

		MaxBacklog:       int64(o.Limits.MaxBacklog),
		MaxHead:          int(o.Limits.MaxHead),
		MaxMessage:       int64(o.Limits.MaxMessage),
		MaxFragments:     o.Limits.MaxFragments,
		MaxTLSHandshakes: o.Limits.MaxTLSHandshakes,

		IdleTimeout:  o.Limits.IdleTimeout,
		WriteTimeout: o.Limits.WriteTimeout,
		CloseTimeout: o.Limits.CloseTimeout,
		PingInterval: o.Ping.Interval,
		PingEarliest: o.Ping.Interval,
		PingTimeout:  o.Ping.Timeout,
		PingJitter:   max(o.Ping.Jitter, 0),
		MaxAge:       max(o.Connections.MaxAge, 0),
		MaxAgeJitter: max(o.Connections.MaxAgeJitter, 0),
		Tick:         tickOf(o),
	}
	for _, l := range o.publicListeners() {
		set.Listeners = append(set.Listeners, l.settings())
	}
	if set.MaxBacklog < 0 {
		set.MaxBacklog = math.MaxInt64 / 2
	}
	if set.PingEarliest >= 0 {
		set.PingEarliest -= time.Duration(set.PingJitter * float64(set.PingInterval))
	}
	return set
}

// slowConsumerOf is the same for those of an endpoint's connections that do not read.
func slowConsumerOf(o *SlowConsumer) reactor.SlowConsumer {
	slow := reactor.SlowConsumer{Limit: outbox.Limit{Bytes: int(o.MaxQueue)}, CloseCode: codec.CloseCode(o.CloseCode)}
	switch o.Policy {
	case PolicyDropOldest:
		slow.Policy = outbox.DropOldest
	case PolicyDropNewest:
		slow.Policy = outbox.DropNewest
	case PolicyLatest:
		slow.Policy = outbox.KeepLatest
	}
	return slow
}

// loopsOf is the number of loops, also where it is the default.
func loopsOf(o *Options) int {
	if o.Loops == 0 {
		return min(runtime.GOMAXPROCS(0), 255)
	}
	return o.Loops
}

// clone copies all lists, so that the caller cannot change what is in force.
func (o Options) clone() Options {
	cloneLists(reflect.ValueOf(&o).Elem())
	return o
}

func cloneLists(v reflect.Value) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch {
		case v.Type().Field(i).Tag.Get("yaml") == "-" || f.Kind() == reflect.Slice && f.IsNil():
		case f.Kind() == reflect.Struct:
			cloneLists(f)
		case f.Kind() == reflect.Slice:
			list := reflect.MakeSlice(f.Type(), f.Len(), f.Len())
			reflect.Copy(list, f)
			f.Set(list)
			for j := 0; f.Type().Elem().Kind() == reflect.Struct && j < f.Len(); j++ {
				cloneLists(f.Index(j))
			}
		}
	}
}

func (s *Server) settleEndpoint(e *Endpoint, publicURL string, old *endpointSettings) (now *endpointSettings, err error) {
	now = &endpointSettings{Endpoint: e, origins: auth.NewOrigins(e.Origins, publicURL)}
	if old != nil && old.Compression == e.Compression {
		now.deflater = old.deflater
	} else {
		now.deflater = codec.NewDeflater(e.Compression.Level, int(e.Compression.Threshold))
	}
	if old != nil && reflect.DeepEqual(old.Auth, e.Auth) {
		now.auth = old.auth
	} else {
		now.auth, err = auth.New((*auth.JWT)(&e.Auth.JWT), (*auth.Hook)(&e.Auth.Hook), auth.Config{Log: s.log, Wall: func() time.Time { return s.engine.Wall() }, Fetch: &s.keyFetches})
	}
	now.protocol = protocol.Settings{Access: protocol.Access(e.Topics), Auth: now.auth}
	return now, err
}

// tickOf is an eighth of the shortest time-out, within 5 ms and 1 s.
func tickOf(o *Options) time.Duration {
	l, p := &o.Limits, &o.Ping
	shortest := 8 * time.Second
	if p := &o.ProxyProtocol; p.Mode != ProxyOff {
		shortest = min(shortest, p.Timeout)
	}
	for i := range o.Listeners {
		if p := &o.Listeners[i].ProxyProtocol; p.Mode != ProxyOff {
			shortest = min(shortest, p.Timeout)
		}
	}
	for _, d := range []time.Duration{l.HandshakeTimeout, l.IdleTimeout, l.WriteTimeout, l.CloseTimeout, p.Interval, p.Timeout} {
		if d > 0 {
			shortest = min(shortest, d)
		}
	}
	return max(shortest/8, 5*time.Millisecond)
}

// How much may come at once. What a client could not send while its network was away for a moment is no
// reason to close its connection.
const (
	handshakeBurst = time.Second
	messageBurst   = 10 * time.Second
)
