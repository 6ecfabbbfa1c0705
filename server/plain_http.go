package server

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"carillon/codec"
)

// plainHTTP serves Options.HTTP, off the loops. It gets the connections whose first request is for no
// endpoint, and gives those back on which one for an endpoint comes later.
//
// A socket moves as a duplicate of its descriptor: the side that gives closes its own, which does
// nothing to the TCP connection while the duplicate is open. It counts in Server.sockets throughout.
type plainHTTP struct {
	srv      *Server
	server   http.Server
	listener *plainListener
	served   chan struct{} // closed when the http.Server accepts no more
	moving   chan struct{} // has a value for each connection on its way back: see maxMoving
	turn     atomic.Uint64 // for choosing the loop of one that comes back
}

// plainIdle is longer than the 60 seconds for which most balancers keep a connection that is idle: the
// one that they send a request on must not be closed just then.
const plainIdle = 2 * time.Minute

// maxMoving bounds how many connections come back at once, because each takes a second descriptor for
// that moment, and maxConnections has set aside 32.
const maxMoving = 16

var errPlainHTTP = errors.New("a request for Options.HTTP")

var rejectDescriptors = &codec.Rejection{Status: 503, Reason: "server has no descriptor left", Header: [][2]string{{"Retry-After", "5"}}}

func newPlainHTTP(s *Server) *plainHTTP {
	p := &plainHTTP{
		srv:      s,
		listener: newPlainListener(s),
		served:   make(chan struct{}),
		moving:   make(chan struct{}, maxMoving),
	}
	p.server = http.Server{
		Handler:           p,
		ReadHeaderTimeout: max(s.opts().Limits.HandshakeTimeout, 0),
		IdleTimeout:       plainIdle,
		MaxHeaderBytes:    int(s.opts().Limits.MaxHead),
		ErrorLog:          s.netLog, // panics, mostly
	}
	return p
}

func (p *plainHTTP) serve() {
	defer close(p.served)
	_ = p.server.Serve(p.listener) // ends when it is told to
}

// drain closes the connections that carry no request, and the others when theirs is answered.
func (p *plainHTTP) drain(ctx context.Context) { _ = p.server.Shutdown(ctx) }

// close cuts what is left, also connections that the application has hijacked. The loops have ended.
func (p *plainHTTP) close() {
	_ = p.server.Close()
	<-p.served
	for _, c := range p.listener.members() {
		_ = c.Close()
	}
}

// ServeHTTP is the http.Server's handler.
func (p *plainHTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := rawPath(r.RequestURI)
	if p.srv.isHealthPath(path) {
		p.srv.serveHealth(w, r)
		return
	}
	if p.srv.byPath[path] != nil {
		p.giveBack(w, r)
		return
	}
	if client, ok := p.srv.clientOf(r); ok {
		r.RemoteAddr = client
	}
	p.srv.opts().HTTP.ServeHTTP(w, r)
}

// handOver gives the connection, with what was read from it, to Options.HTTP. For the loop it is gone:
// gnet closes its own descriptor, and nothing is written, shut down or counted as lost.
func (c *Conn) handOver(head, rest []byte) {
	sh := c.sh
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		sh.srv.logLoss("request refused: no descriptor", c.RemoteAddr(), err)
		c.refuse(RefuseDescriptors, rejectDescriptors)
		return
	}
	if !sh.srv.plain.listener.put(handed{sh: sh, entered: c.entered(), fd: fd, remote: c.remote, counted: c.is(markCounted), early: slices.Concat(head, rest)}) {
		_ = unix.Close(fd)
		c.refuse(RefuseDraining, rejectDraining)
		return
	}
	c.group.remove(c)
	c.dropInbound()
	c.state.Store(stateClosed)
	c.gc.SetContext(nil) // so that OnClose finds nobody to tell
	_ = sh.loop.Close(c.gc)
}
