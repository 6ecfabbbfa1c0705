package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"carillon/internal/redact"
	"carillon/server/internal/admin"
	"carillon/server/internal/certs"
	"carillon/server/internal/listen"
	"carillon/server/internal/option"
)

// Internal is the HTTP interface for the application's own services and its operators: publishing, topics, connections.
// Its reference is openapi.json. Any client that reaches it may do everything that it offers, so it stands on an
// address of its own.
type Internal struct {
	// Listen is the address of the interface, as in [Options].Listen: host:port, where port 0 lets the kernel choose
	// (see [Server.InternalAddr]), or unix:/path. "off" opens no port, which is the default: [Server.API] can be
	// mounted elsewhere. The program's default is 127.0.0.1:8081.
	Listen string `yaml:"listen"`

	// Mode is who may connect when Listen is a unix socket with a path. Default 0600: the server's user.
	Mode FileMode `yaml:"mode"`

	// Token, if it is set, must come with every request, as "Authorization: Bearer TOKEN". It has at least
	// [MinSecret] characters. Without one the address must be of the loopback interface, or a unix socket. Default:
	// none.
	Token Secret `yaml:"token"`

	// TLS makes the interface speak it. Default: it does not.
	TLS TLS `yaml:"tls"`

	// Debug, which may be nil, serves the paths below /debug/, such as those of net/http/pprof. That
	// package puts its handlers into [http.DefaultServeMux] too, which must then not be public: so this
	// one leaves it to the program.
	Debug http.Handler `yaml:"-"`
}

// optionOff switches off what would else have an address or a path.
const optionOff = "off"

func (i *Internal) resolve(c *checker, taken []namedAddress) {
	i.TLS.resolve(c, "internal.tls.")
	if err := i.Token.Check(); err != nil && i.Token != redact.Hidden {
		c.Add("internal.token", "%v", err)
	}
	if i.Token == redact.Hidden {
		c.Add("internal.token", "%s is a placeholder for a hidden token: expected the token itself, or CARILLON_INTERNAL_TOKEN instead", redact.Hidden)
	}
	c.FileMode("internal.mode", &i.Mode, internalMode)
	if i.Listen == "" || i.Listen == optionOff {
		i.Listen = optionOff
		return
	}
	if _, ok := listen.UnixPath(i.Listen); ok {
		c.unixAddress("internal.listen", i.Listen)
		c.distinct("internal.listen", i.Listen, taken)
		return
	}
	if !c.Address("internal.listen", i.Listen, "127.0.0.1:8081, unix:/path, or "+optionOff) {
		return
	}
	c.distinct("internal.listen", i.Listen, taken)
	if host, _, _ := net.SplitHostPort(i.Listen); i.Token == "" && !isLoopback(host) {
		c.Add("internal.listen", "%s is reachable from other machines: expected internal.token (CARILLON_INTERNAL_TOKEN) as well, or an address such as 127.0.0.1:8081", i.Listen)
	}
}

// isLoopback reports whether a host is this machine, for this machine only.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// Secret is a text that prints as "(set)", or as nothing when it is empty.
type Secret = option.Secret

// MinSecret is the least number of characters of a secret that protects something from other machines.
const MinSecret = option.MinSecret

// What the interface takes of a client, and for how long. A request is small and its sender is near.
const (
	maxInternalConns   = 256
	internalMaxHead    = 16 << 10
	internalHeadTime   = 5 * time.Second
	internalReadTime   = 30 * time.Second
	internalWriteTime  = 60 * time.Second // from the end of the request's head
	internalIdleTime   = 2 * time.Minute
	internalFewOpen    = maxInternalConns / 2
	internalDescriptor = 16 // at most this part of the descriptors is for the interface
)

// most is how many connections the interface may have.
func (i *Internal) most() int {
	total, err := listen.DescriptorLimit()
	if i.Listen == optionOff || err != nil {
		return 0
	}
	return min(maxInternalConns, max(total/internalDescriptor, 4))
}

// internal is the interface's own HTTP server. A nil one is off.
type internal struct {
	srv  *Server
	http http.Server
	addr net.Addr

	socket *listen.UnixSocket // nil with TCP
	most   int64
	open   atomic.Int64
	idle   idleConns
	full   atomic.Bool // it was said that there are as many connections as there may be
}

// listenInternal begins to serve: requests that come before the server has started find no connections.
func (s *Server) listenInternal() (*internal, error) {
	o := &s.opts().Internal
	if o.Listen == optionOff {
		return nil, nil
	}
	i := &internal{srv: s, most: int64(o.most())}
	l, err := i.listen(o, s.opts().Takeover)
	if err != nil {
		if _, ok := errors.AsType[*OptionError](err); !ok {
			err = fmt.Errorf("internal.listen: %w", err) // "listen tcp 127.0.0.1:8081: bind: address already in use"
		}
		return nil, err
	}
	handler := s.API()
	if i.socket == nil {
		handler = s.localOnly(handler)
		s.reloads.mu.Lock()
		s.reloads.exposed = isExposed(l.Addr())
		s.reloads.mu.Unlock()
	}
	if s.internalCerts != nil {
		l = &secureListener{l, s.internalCerts}
	}
	i.http = http.Server{
		Handler:                      handler,
		ReadHeaderTimeout:            internalHeadTime,
		ReadTimeout:                  internalReadTime,
		WriteTimeout:                 internalWriteTime,
		IdleTimeout:                  internalIdleTime,
		MaxHeaderBytes:               internalMaxHead,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     s.netLog,
		ConnState:                    i.connState,
	}
	go func() {
		if err := i.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.engine.Fail(fmt.Errorf("internal.listen: %w", err))
		}
	}()
	return i, nil
}

func (i *internal) listen(o *Internal, takeover bool) (net.Listener, error) {
	if path, ok := listen.UnixPath(o.Listen); ok {
		socket, err := listen.ListenUnix(path, o.Mode, takeover)
		if err != nil {
			return nil, err
		}
		i.socket, i.addr = socket, socket.Address
		return socket, nil
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, err
	}
	if o.Token == "" && isExposed(l.Addr()) { // localhost may be anything
		_ = l.Close()
		return nil, &OptionError{Key: "internal.listen", Problem: fmt.Sprintf("%s is %s, which is reachable from other machines: expected internal.token as well", o.Listen, l.Addr())}
	}
	i.addr = l.Addr()
	return l, nil
}

// secureListener is tls.NewListener with certificates that may change.
type secureListener struct {
	net.Listener
	certs *certs.Store
}

func (l *secureListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(c, l.certs.Config()), nil
}

// connState bounds the descriptors that the interface takes, which the public connections need. Beyond that the
// connection goes that has been without a request for longest: a new one, when all others carry some.
func (i *internal) connState(conn net.Conn, state http.ConnState) {
	i.idle.set(conn, state == http.StateNew || state == http.StateIdle)
	switch state {
	case http.StateNew:
		if n := i.open.Add(1); n > i.most {
			if victim := i.idle.take(0); victim != nil {
				go victim.Close()
			}
			if !i.full.Swap(true) {
				i.srv.log.Warn("internal interface at its connection limit; closing idle connections", "limit", i.most)
			}
		}
	case http.StateClosed:
		if n := i.open.Add(-1); n < internalFewOpen {
			i.full.Store(false)
		}
	}
}

// localOnly keeps out, where no token does, what a browser on this machine is made to send by a page from
// elsewhere: a name that the page's owner has pointed to 127.0.0.1 (DNS rebinding).
func (s *Server) localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if s.opts().Internal.Token == "" && !isLoopback(host) {
			admin.Misdirected(w, r.Host)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// InternalAddr is the address of the internal interface: see [Internal]. It is nil before Started, and
// when the interface is off.
func (s *Server) InternalAddr() net.Addr {
	select {
	case <-s.engine.Started:
		if s.internal != nil {
			return s.internal.addr
		}
	default:
	}
	return nil
}

// shutdown takes no more requests and lets those that run come to their end until ctx ends. The function
// that it returns waits for that.
func (i *internal) shutdown(ctx context.Context) (wait func()) {
	if i == nil {
		return func() {}
	}
	done := make(chan struct{})
	if i.socket != nil {
		i.socket.Unpublish()
	}
	go func() {
		defer close(done)
		if err := i.http.Shutdown(ctx); err != nil {
			i.close()
		}
	}()
	return func() { <-done }
}

func (i *internal) close() {
	if i == nil {
		return
	}
	if i.socket != nil {
		i.socket.Unpublish()
	}
	_ = i.http.Close()
}
