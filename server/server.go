package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"carillon/codec"
	"carillon/server/internal/admin"
	"carillon/server/internal/auth"
	"carillon/server/internal/certs"
	"carillon/server/internal/hub"
	"carillon/server/internal/protocol"
	"carillon/server/internal/reactor"
)

var (
	// ErrNoEndpoint is returned by Broadcast for a path that no endpoint has.
	ErrNoEndpoint = admin.ErrNoEndpoint

	// ErrStarted is returned by a second Run.
	ErrStarted = errors.New("the server was already run")
)

// Server serves WebSockets. Its methods may be called from any goroutine, also from handlers.
type Server struct {
	engine reactor.Engine // the event loops

	// Immutable.
	log           *slog.Logger
	netLog        *log.Logger // for net/http
	endpoints     []*endpoint
	byPath        map[string]*endpoint
	plain         *plainHTTP      // nil without Options.HTTP
	internalCerts *certs.Store    // nil without Options.Internal.TLS
	keyFetches    auth.FetchTimes // of the keys of tokens; zero but in tests

	// Set before started is closed.
	internal *internal // nil when it is off
	agent    *agent    // nil when it is off

	reloads reloads
	running atomic.Bool

	ops        ops
	drainState drainState
	hub        *hub.Hub // immutable
	index      connIndex
	memory     memoryGuard

	mu       sync.Mutex // guards what follows
	stop     context.CancelCauseFunc
	shutdown context.Context // how long connections may take to close, once Shutdown has said so
}

// endpoint is an Endpoint that is being served: what of it stays as it is while the server runs, and see
// now for the rest. Immutable, but for the source of its broadcasts and published.
type endpoint struct {
	hub.EndpointSource
	reactor.LoopEndpoint
	srv      *Server
	Mode     Mode
	handler  Handler
	upgrader codec.Upgrader
}

// New makes a server that does not listen yet. The error, if any, joins one [OptionError] for each
// problem with the options.
func New(options Options) (*Server, error) {
	opts, err := options.Resolve()
	if err != nil {
		return nil, err
	}
	s := &Server{
		log:        opts.Logger,
		ops:        newOps(),
		byPath:     map[string]*endpoint{},
		drainState: newDrainState(),
	}
	s.engine.Init((*loopsOwner)(s), s.log)
	s.memory = newMemoryGuard(s)
	opts.Loops = loopsOf(&opts)
	set, err := s.settle(opts, nil, nil)
	if err != nil {
		return nil, err
	}
	s.putInForce(set)
	s.reloads.begin(time.Now())
	s.netLog = log.New(netLog{&s.engine}, "", 0)
	s.engine.NewListeners()
	groups := 0
	for i, e := range opts.Endpoints {
		ep := &endpoint{
			EndpointSource: hub.EndpointSource{Source: hub.Source{Name: e.Path}},
			LoopEndpoint: reactor.LoopEndpoint{
				Path:         e.Path,
				Subprotocols: e.Subprotocols,
				Engine:       &s.engine,
				Index:        i,
				FirstTable:   groups,
				Framings:     1,
				Deflates:     e.Compression.Enabled,
				Sites:        reactor.SitesOf(e.Path),
				IsCustom:     e.Mode == "",
				IsSteady:     e.Mode == ModeEcho || e.Mode == ModeBroadcast,
			},
			srv:      s,
			Mode:     e.Mode,
			handler:  e.Handler,
			upgrader: codec.Upgrader{Subprotocols: e.Subprotocols, Deflate: e.Compression.Enabled},
		}
		if message := e.Mode.message(s); message != nil {
			ep.handler.Message = message
		}
		if e.Mode == ModeTopics {
			ep.upgrader.Subprotocols = append([]string{protocol.Subprotocol}, ep.Subprotocols...)
			ep.Subprotocols = ep.upgrader.Subprotocols
			ep.Framings = int(reactor.NumFramings)
		}
		groups += ep.Framings
		s.endpoints = append(s.endpoints, ep)
		s.engine.Endpoints = append(s.engine.Endpoints, &ep.LoopEndpoint)
		s.byPath[e.Path] = ep
	}
	if err := s.loadCertificates(); err != nil {
		return nil, err
	}
	s.hub = hub.New((*hubServer)(s), &s.engine, func() *hub.Settings { return &s.settings().hub }, s.opts().Broker)
	for _, ep := range s.endpoints {
		s.hub.Remote.Attach(&ep.Source)
	}
	if opts.HTTP != nil {
		s.plain = newPlainHTTP(s)
	}
	return s, nil
}

// Started is closed when the server listens.
func (s *Server) Started() <-chan struct{} { return s.engine.Started }

// MaxConnections is how many sockets may be open at once, 0 before Started.
func (s *Server) MaxConnections() int {
	select {
	case <-s.engine.Started:
		return s.settings().loops.MaxSockets
	default:
		return 0
	}
}

// Addr is the address that the server listens on: that of Options.Listen, a [*net.TCPAddr] or a
// [*net.UnixAddr]. It is nil before Started.
func (s *Server) Addr() net.Addr { return s.engine.Addr() }

// Addrs are all addresses that the server listens on: that of Options.Listen and then those of
// Options.Listeners. There are none before Started.
func (s *Server) Addrs() []net.Addr { return s.engine.Addrs() }

// MaxMemory is what Limits.MaxMemory comes to, and where the value comes from, for people. A negative size is
// off. The default follows the cgroup's limit when that changes, within ten seconds.
func (s *Server) MaxMemory() (Size, string) {
	l := s.memory.current()
	return Size(l.mark), l.source
}

// Options returns the options that are in force, defaults filled in.
func (s *Server) Options() Options { return s.opts().clone() }

// Broadcast sends one message to every connection of the endpoint with this path. The payload is
// copied and encoded once. All connections of an endpoint get its broadcasts in one order.
//
// It does not wait for delivery. It fails with [ErrNoEndpoint], [ErrOpcode], [ErrOverloaded] or, with [Options.Broker],
// [ErrNoCluster]; then no connection gets the message. Connections of other servers get it at most once, in the order
// of each server that broadcasts.
func (s *Server) Broadcast(path string, op Opcode, payload []byte) error {
	if op != Text && op != Binary {
		return ErrOpcode
	}
	return s.BroadcastFrame(path, codec.NewFrame(op, payload))
}

// BroadcastFrame is Broadcast for a message that is prepared already.
func (s *Server) BroadcastFrame(path string, f *codec.Frame) error {
	ep := s.byPath[path]
	if ep == nil {
		return fmt.Errorf("%w: %s", ErrNoEndpoint, path)
	}
	_, err := s.broadcast(f, nil, ep)
	return err
}

// broadcast hands a message to all connections of some endpoints, which are in the order of their indices, or to none.
// It returns how many of this server's these are. sent, which may be nil, gets for each endpoint the outcome of the
// message at the broker, if there is no error.
func (s *Server) broadcast(f *codec.Frame, sent func(error), to ...*endpoint) (connections int, err error) {
	at := s.engine.Stamp()
	if err := s.hub.Remote.Away(); err != nil {
		return 0, err
	}
	for _, ep := range to {
		ep.Mu.Lock()
	}
	defer func() {
		for _, ep := range to {
			ep.Mu.Unlock()
		}
	}()
	for _, ep := range to {
		if sh := ep.Overloaded((*hub.Broadcast)(f), len(to)); sh != nil {
			return 0, sh.Refuse()
		}
	}
	for _, ep := range to {
		connections += ep.Issue(f, at)
		s.hub.Remote.Relay(&ep.Source, (*hub.Broadcast)(f), sent)
	}
	return connections, nil
}

// Conns walks over the open connections, in no order. Connections may open and close meanwhile: one
// that stays open throughout is seen exactly once.
func (s *Server) Conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for c := range s.engine.Conns() {
			if !yield((*Conn)(c)) {
				return
			}
		}
	}
}

// Count is the number of open connections.
func (s *Server) Count() int { return s.engine.Count() }
