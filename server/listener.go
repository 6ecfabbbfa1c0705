package server

import (
	"errors"
	"fmt"
	"net"

	"carillon/server/internal/certs"
	"carillon/server/internal/listen"
	"carillon/server/internal/option"

	"github.com/panjf2000/gnet/v2"
)

// listener is one address that the server listens on, with its settings.
type listener struct {
	// Immutable.
	engine *engine
	index  int          // among engine.listeners
	hidden bool         // nobody is told of it: see hide
	certs  *certs.Store // nil without TLS

	// Set before the server has started.
	addr    net.Addr // a *net.TCPAddr, or a *net.UnixAddr
	release func()   // a port that is held for the loops
	socket  *listen.UnixSocket
}

func (e *engine) newListeners() {
	for i := range e.settings().listeners {
		e.listeners = append(e.listeners, &listener{engine: e, index: i, release: func() {}})
	}
}

// now are the listener's settings.
func (l *listener) now() *listenerSettings { return &l.engine.settings().listeners[l.index] }

// openListeners makes sure that all addresses can be listened on. The unix sockets are from then on; for the
// others it is the loops who do.
func (e *engine) openListeners() error {
	for i, l := range e.listeners {
		err := l.open(e.listeners[:i])
		if err != nil {
			e.closeListeners()
			if _, ok := errors.AsType[*option.Error](err); !ok && i > 0 {
				err = fmt.Errorf("%s: %w", l.now().key, err)
			}
			return err
		}
		if l.socket == nil {
			e.tcp = append(e.tcp, l)
		}
	}
	if len(e.tcp) == 0 {
		if err := e.hide(); err != nil {
			e.closeListeners()
			return err
		}
	}
	return nil
}

func (l *listener) open(before []*listener) (err error) {
	at, takeover := l.now(), l.engine.settings().takeover
	if path, ok := listen.UnixPath(at.address); ok {
		if l.socket, err = listen.ListenUnix(path, at.mode, takeover); err == nil {
			l.addr = l.socket.Address
		}
		return err
	}
	addr, release, err := listen.Reserve(at.address, takeover)
	if err != nil {
		return err
	}
	for _, other := range before { // whose host may be another name for the same address
		if other.addr.Network() == "tcp" && other.addr.String() == addr.String() {
			release()
			return &option.Error{Key: at.key, Problem: fmt.Sprintf("%s is %s, which is already the address of %s: expected another one", at.address, addr, other.now().key)}
		}
	}
	l.addr, l.release = addr, release
	return nil
}

// arriving is how many connections of unix sockets may be on their way to a loop.
func (e *engine) arriving() (n int) {
	for _, l := range e.listeners {
		if _, ok := listen.UnixPath(l.now().address); ok {
			n += maxArriving
		}
	}
	return n
}

// publishSockets takes the places of a predecessor's unix sockets.
func (e *engine) publishSockets() error {
	for _, l := range e.listeners {
		if l.socket == nil {
			continue
		}
		if err := l.socket.Publish(); err != nil {
			return fmt.Errorf("%s: %w", l.now().key, err)
		}
	}
	return nil
}

// hide gives the loops a TCP address when there are only unix sockets, because gnet does not run without
// any. It is given up when the loops are known.
func (e *engine) hide() error {
	addr, release, err := listen.Reserve("127.0.0.1:0", false)
	if err != nil {
		return fmt.Errorf("event engine: %w", err)
	}
	e.tcp = []*listener{{engine: e, addr: addr, release: release, hidden: true}}
	return nil
}

// closeListeners gives up what the loops do not have.
func (e *engine) closeListeners() {
	for _, l := range e.listeners {
		l.release()
		if l.socket != nil {
			l.socket.Discard()
		}
	}
	for _, l := range e.tcp {
		l.release()
	}
}

// steerAway has the kernel give new connections to a successor that listens on the same addresses, if there is one, and
// returns how many sockets that has. It is called twice: see [listen.SteerAway].
func (e *engine) steerAway(last bool) (sockets int) {
	for _, l := range e.tcp {
		sockets += listen.SteerAway(l.tcpAddr(), last, e.log)
	}
	return sockets
}

// stopListening gives up the addresses of the loops.
func (e *engine) stopListening() {
	for _, l := range e.tcp {
		if err := listen.StopListening(l.tcpAddr()); err != nil {
			e.log.Warn("keeping the listening sockets open while connections close", "address", l.addr.String(), "error", err)
		}
	}
}

// engineAddress is how gnet is told the address. It takes [::] for IPv6 alone, while everybody else takes it
// for both.
func (l *listener) engineAddress() string {
	addr := l.tcpAddr()
	switch {
	case addr.IP.To4() != nil:
		return "tcp4://" + addr.String()
	case addr.IP.IsUnspecified():
		return fmt.Sprintf("tcp://:%d", addr.Port)
	}
	return "tcp://" + addr.String()
}

func (l *listener) tcpAddr() *net.TCPAddr { return l.addr.(*net.TCPAddr) }

// entrance is a listening socket of one loop: gnet has an address of its own for each.
type entrance struct {
	addr     net.Addr
	listener *listener
}

// listenerOf says where a connection has come in that the loop has accepted.
func (sh *shard) listenerOf(gc gnet.Conn) *listener {
	if len(sh.engine.tcp) == 1 {
		return sh.engine.tcp[0]
	}
	at := gc.LocalAddr()
	for i := range sh.entrances {
		if sh.entrances[i].addr == at {
			return sh.entrances[i].listener
		}
	}
	for _, l := range sh.engine.tcp {
		if l.isAt(at.(*net.TCPAddr)) {
			sh.entrances = append(sh.entrances, entrance{at, l})
			return l
		}
	}
	panic("server: the engine listens on " + at.String() + ", which nobody has told it")
}

// isAt reports whether an address of gnet's is this one.
func (l *listener) isAt(at *net.TCPAddr) bool {
	addr := l.tcpAddr()
	if at.IP == nil {
		return at.Port == addr.Port && addr.IP.To4() == nil && addr.IP.IsUnspecified()
	}
	return at.Port == addr.Port && at.IP.Equal(addr.IP) && at.Zone == addr.Zone
}

// addr is the first address that the server listens on, and nil before started.
func (e *engine) addr() net.Addr {
	if all := e.addrs(); len(all) > 0 {
		return all[0]
	}
	return nil
}

// addrs are those of all listeners: none before started.
func (e *engine) addrs() (all []net.Addr) {
	select {
	case <-e.started:
		for _, l := range e.listeners {
			all = append(all, l.addr)
		}
	default:
	}
	return all
}
