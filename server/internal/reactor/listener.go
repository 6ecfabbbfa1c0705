package reactor

import (
	"errors"
	"fmt"
	"net"

	"github.com/panjf2000/gnet/v2"

	"carillon/server/internal/certs"
	"carillon/server/internal/listen"
	"carillon/server/internal/option"
)

// Listener is one address that the server listens on, with its settings.
type Listener struct {
	// Immutable.
	engine *Engine
	index  int          // among engine.listeners
	hidden bool         // not announced: see hide
	Certs  *certs.Store // nil without TLS

	// Set before the server has started.
	Addr    net.Addr // a *net.TCPAddr, or a *net.UnixAddr
	release func()   // a port that is held for the loops
	socket  *listen.UnixSocket
}

// NewListeners makes the listeners of the settings, which do not listen yet.
func (e *Engine) NewListeners() {
	for i := range e.Settings().Listeners {
		e.Listeners = append(e.Listeners, &Listener{engine: e, index: i, release: func() {}})
	}
}

// Now are the listener's settings.
func (l *Listener) Now() *ListenerSettings { return &l.engine.Settings().Listeners[l.index] }

// OpenListeners makes sure that all addresses can be listened on. The unix sockets are from then on; for the
// others it is the loops who do.
func (e *Engine) OpenListeners() error {
	for i, l := range e.Listeners {
		err := l.open(e.Listeners[:i])
		if err != nil {
			e.CloseListeners()
			if _, ok := errors.AsType[*option.Error](err); !ok && i > 0 {
				err = fmt.Errorf("%s: %w", l.Now().Key, err)
			}
			return err
		}
		if l.socket == nil {
			e.TCP = append(e.TCP, l)
		}
	}
	if len(e.TCP) == 0 {
		if err := e.hide(); err != nil {
			e.CloseListeners()
			return err
		}
	}
	return nil
}

func (l *Listener) open(before []*Listener) (err error) {
	at, takeover := l.Now(), l.engine.Settings().Takeover
	if path, ok := listen.UnixPath(at.Address); ok {
		if l.socket, err = listen.ListenUnix(path, at.Mode, takeover); err == nil {
			l.Addr = l.socket.Address
		}
		return err
	}
	addr, release, err := listen.Reserve(at.Address, takeover)
	if err != nil {
		return err
	}
	for _, other := range before { // whose host may be another name for the same address
		if other.Addr.Network() == "tcp" && other.Addr.String() == addr.String() {
			release()
			return &option.Error{Key: at.Key, Problem: fmt.Sprintf("%s is %s, which is already the address of %s: expected another one", at.Address, addr, other.Now().Key)}
		}
	}
	l.Addr, l.release = addr, release
	return nil
}

// Arriving is how many connections of unix sockets may be on their way to a loop.
func (e *Engine) Arriving() (n int) {
	for _, l := range e.Listeners {
		if _, ok := listen.UnixPath(l.Now().Address); ok {
			n += MaxArriving
		}
	}
	return n
}

// publishSockets takes the places of a predecessor's unix sockets.
func (e *Engine) publishSockets() error {
	for _, l := range e.Listeners {
		if l.socket == nil {
			continue
		}
		if err := l.socket.Publish(); err != nil {
			return fmt.Errorf("%s: %w", l.Now().Key, err)
		}
	}
	return nil
}

// hide gives the loops a TCP address when there are only unix sockets, because gnet does not run without
// any. It is given up when the loops are known.
func (e *Engine) hide() error {
	addr, release, err := listen.Reserve("127.0.0.1:0", false)
	if err != nil {
		return fmt.Errorf("event engine: %w", err)
	}
	e.TCP = []*Listener{{engine: e, Addr: addr, release: release, hidden: true}}
	return nil
}

// CloseListeners gives up what the loops do not have.
func (e *Engine) CloseListeners() {
	for _, l := range e.Listeners {
		l.release()
		if l.socket != nil {
			l.socket.Discard()
		}
	}
	for _, l := range e.TCP {
		l.release()
	}
}

// SteerAway has the kernel give new connections to a successor that listens on the same addresses, if there is one, and
// returns how many sockets that has. It is called twice: see [listen.SteerAway].
func (e *Engine) SteerAway(last bool) (sockets int) {
	for _, l := range e.TCP {
		sockets += listen.SteerAway(l.TCPAddr(), last, e.Log)
	}
	return sockets
}

// StopListening gives up the addresses of the loops.
func (e *Engine) StopListening() {
	for _, l := range e.TCP {
		if err := listen.StopListening(l.TCPAddr()); err != nil {
			e.Log.Warn("keeping the listening sockets open while connections close", "address", l.Addr.String(), "error", err)
		}
	}
}

// engineAddress is how gnet is told the address. It takes [::] for IPv6 alone, while everybody else takes it
// for both.
func (l *Listener) engineAddress() string {
	addr := l.TCPAddr()
	switch {
	case addr.IP.To4() != nil:
		return "tcp4://" + addr.String()
	case addr.IP.IsUnspecified():
		return fmt.Sprintf("tcp://:%d", addr.Port)
	}
	return "tcp://" + addr.String()
}

// TCPAddr is the address of a TCP listener; it panics for a unix socket.
func (l *Listener) TCPAddr() *net.TCPAddr { return l.Addr.(*net.TCPAddr) }

// entrance is a listening socket of one loop: gnet has an address of its own for each.
type entrance struct {
	addr     net.Addr
	listener *Listener
}

// listenerOf says where a connection has come in that the loop has accepted.
func (sh *Shard) listenerOf(gc gnet.Conn) *Listener {
	if len(sh.Engine.TCP) == 1 {
		return sh.Engine.TCP[0]
	}
	at := gc.LocalAddr()
	for i := range sh.entrances {
		if sh.entrances[i].addr == at {
			return sh.entrances[i].listener
		}
	}
	for _, l := range sh.Engine.TCP {
		if l.isAt(at.(*net.TCPAddr)) {
			sh.entrances = append(sh.entrances, entrance{at, l})
			return l
		}
	}
	panic("server: the engine listens on " + at.String() + ", which is not among its listeners")
}

// isAt reports whether an address of gnet's is this one.
func (l *Listener) isAt(at *net.TCPAddr) bool {
	addr := l.TCPAddr()
	if at.IP == nil {
		return at.Port == addr.Port && addr.IP.To4() == nil && addr.IP.IsUnspecified()
	}
	return at.Port == addr.Port && at.IP.Equal(addr.IP) && at.Zone == addr.Zone
}

// Addr is the first address that the server listens on, and nil before started.
func (e *Engine) Addr() net.Addr {
	if all := e.Addrs(); len(all) > 0 {
		return all[0]
	}
	return nil
}

// Addrs are those of all listeners: none before started.
func (e *Engine) Addrs() (all []net.Addr) {
	select {
	case <-e.Started:
		for _, l := range e.Listeners {
			all = append(all, l.Addr)
		}
	default:
	}
	return all
}
