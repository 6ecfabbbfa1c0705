package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"carillon/server/internal/logs"
	"carillon/server/internal/reactor"
)

// plainHTTP serves Options.HTTP, off the loops. It gets the connections whose first request is for no
// endpoint, and gives those back on which one for an endpoint comes later.
//
// A socket moves as a duplicate of its descriptor: the side that gives closes its own, which does
// nothing to the TCP connection while the duplicate is open. It counts in Engine.Sockets throughout.
type plainHTTP struct {
	srv      *Server
	listener *plainListener
	served   chan struct{} // closed when the http.Server accepts no more
	moving   chan struct{} // has a value for each connection on its way back: see maxMoving
	turn     atomic.Uint64 // for choosing the loop of one that comes back
	turns    *httpTurns
	entrance httpEntrance
	idle     idleConns

	mu       sync.Mutex
	servers  []*plainServer // guarded by mu: the last one accepts, see renew
	draining bool           // guarded by mu
}

// plainServer serves the connections that it has accepted, with the options of that time.
type plainServer struct {
	http.Server
	open atomic.Int64 // connections
}

// plainIdle is longer than the 60 seconds for which most balancers keep a connection that is idle: the
// one that they send a request on must not be closed just then.
const plainIdle = 2 * time.Minute

// maxIdle is how many connections without a request are kept: each costs a goroutine and 22 KB. Of more, the one
// that has been idle for longest is closed.
const maxIdle = 1024

// maxMoving bounds how many connections come back at once, because each takes a second descriptor for
// that moment, and maxConnections has set aside 32.
const maxMoving = 16

var errPlainHTTP = errors.New("a request for Options.HTTP")

func newPlainHTTP(s *Server) *plainHTTP {
	return &plainHTTP{
		srv:      s,
		listener: newPlainListener(s),
		served:   make(chan struct{}),
		moving:   make(chan struct{}, maxMoving),
		turns:    newHTTPTurns(),
	}
}

// serve ends when it is told to.
func (p *plainHTTP) serve() {
	defer close(p.served)
	for {
		turn := p.listener.newTurn()
		server := p.next()
		if server == nil {
			_ = p.listener.Close()
			return
		}
		_ = server.Serve(turn)
		if !turn.over() {
			return
		}
	}
}

// next makes an http.Server for what is accepted from now on, and forgets those that have nothing left to
// do. It is nil when nothing is to be accepted.
func (p *plainHTTP) next() *plainServer {
	l := &p.srv.opts().Limits
	server := &plainServer{Server: http.Server{
		Handler:           p,
		ReadHeaderTimeout: max(l.HandshakeTimeout, 0),
		IdleTimeout:       plainIdle,
		MaxHeaderBytes:    int(l.MaxHead),
		ConnContext:       withConn,
		ErrorLog:          p.srv.netLog, // panics, mostly
	}}
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			server.open.Add(1)
		case http.StateHijacked, http.StateClosed:
			server.open.Add(-1)
		}
		if state != http.StateNew && state != http.StateActive {
			plain, _, _ := lowest(conn)
			p.turns.leave(&plain.turn)
		}
		p.follow(conn, state == http.StateIdle)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return nil
	}
	p.servers = append(slices.DeleteFunc(p.servers, func(s *plainServer) bool { return s.open.Load() == 0 }), server)
	return server
}

// follow notes whether a connection carries a request.
func (p *plainHTTP) follow(conn net.Conn, idle bool) {
	if n := p.idle.set(conn, idle); idle {
		plain, _, _ := lowest(conn)
		plain.limitWrites()
		if n > maxIdle {
			p.evictIdle(0)
		}
	}
}

// evictIdle has the connection closed that has carried no request for longest, and at least for so long, and reports
// whether there is one.
func (p *plainHTTP) evictIdle(atLeast time.Duration) bool {
	conn := p.idle.take(atLeast)
	if conn == nil {
		return false
	}
	plain, _, _ := lowest(conn)
	plain.sh.Stats.CutHTTP(PlainCutIdle)
	go conn.Close() // waits for the goroutine that reads from it
	return true
}

// renew has the options of now hold for connections that are accepted from now on: net/http reads them
// whenever it likes, so those of an http.Server that runs cannot be changed.
func (p *plainHTTP) renew() { p.listener.endTurn() }

// each calls a function for all http.Servers at once, and waits. No other one comes after that.
func (p *plainHTTP) each(do func(*http.Server)) {
	p.mu.Lock()
	p.draining = true
	servers := slices.Clone(p.servers)
	p.mu.Unlock()
	var all sync.WaitGroup
	for _, server := range servers {
		all.Go(func() { do(&server.Server) })
	}
	all.Wait()
}

// drain closes the connections that carry no request, and the others when theirs is answered.
func (p *plainHTTP) drain(ctx context.Context) {
	p.each(func(server *http.Server) { _ = server.Shutdown(ctx) })
}

// close cuts what is left, also connections that the application has hijacked. The loops have ended.
func (p *plainHTTP) close() {
	p.each(func(server *http.Server) { _ = server.Close() })
	_ = p.listener.Close()
	<-p.served
	for _, c := range p.listener.members() {
		_ = c.Close()
	}
}

// ServeHTTP is the http.Server's handler.
func (p *plainHTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := servedOn(r)
	p.turns.take(&c.plain.turn)
	c.plain.enters()
	yieldToLoops() // pipelined requests come without a read between them
	c.tellTLS(r)
	if r.ContentLength != 0 {
		c.plain.limitBody()
	}
	path := rawPath(r.RequestURI)
	if p.srv.isHealthPath(path) {
		p.srv.serveHealth(w, r)
		return
	}
	if p.srv.byPath[path] != nil {
		p.reattach(w, r)
		return
	}
	if r.URL.Path == "" && r.URL.Host != "" { // GET http://host HTTP/1.1 (RFC 9110, section 4.2.3)
		r.URL.Path = "/"
	}
	if client, ok := p.srv.clientOf(r); ok {
		r.RemoteAddr = client
	}
	p.srv.opts().HTTP.ServeHTTP(w, r)
}

// passToHTTP gives the connection, with what was read from it, to Options.HTTP, when there is a place for it.
func (c *Conn) passToHTTP(head, rest []byte) {
	entrance := &c.Server().plain.entrance
	if !entrance.enter() {
		entrance.wait(c, c.awaitTurn(head, rest))
		return
	}
	c.handOver(head, rest)
}

// handOver gives the connection, which has a place, to Options.HTTP. For the loop it is gone: gnet closes its own
// descriptor, and nothing is written, shut down or counted as lost.
func (c *Conn) handOver(head, rest []byte) {
	entrance := &c.Server().plain.entrance
	sh, s := c.shard(), c.core().Session()
	if s != nil {
		if c.core().Outbox() != nil { // its client does not even read the handshake
			c.core().Abort(errPlainHTTP)
			entrance.leave()
			return
		}
		s.In = slices.Concat(s.In, s.Waiting)
		s.DropWaiting()
	}
	fd, err := unix.FcntlInt(uintptr(c.core().FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		sh.Engine.LogLoss("request refused: no file descriptors left", c.RemoteAddr(), err)
		c.refuse(RefuseDescriptors, reactor.RejectDescriptors)
		entrance.leave()
		return
	}
	if !c.Server().plain.listener.put(detachedConn{sh: sh, entered: c.core().Entered(), fd: fd, remote: c.core().Remote(), counted: c.core().Is(reactor.MarkCounted), early: slices.Concat(head, rest), session: s}) {
		_ = unix.Close(fd)
		c.refuse(RefuseDraining, reactor.RejectDraining)
		entrance.leave()
		return
	}
	c.core().LeaveLoop()
}

// netLog takes what net/http has to say about connections: mostly panics, with their stacks.
type netLog struct{ engine *reactor.Engine }

const maxNetworkLog = 8 << 10

func (l netLog) Write(p []byte) (int, error) {
	l.engine.LogGrave("net/http", "says", logs.ShortenTo(string(p), maxNetworkLog))
	return len(p), nil
}
