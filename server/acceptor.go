package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"carillon/server/internal/listen"
	"carillon/server/stats"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// gnet listens on a unix socket anew for each loop and removes the file of the one before, so that only its
// last loop would get connections. So each unix socket has an acceptor, which hands connections to the loops
// in turn.

// acceptor accepts the connections of one unix socket.
type acceptor struct {
	listener *listener
	moving   chan struct{} // has a value for each connection on its way to a loop: see maxArriving
	ending   atomic.Bool   // the file is gone: only those who have connected already are accepted
	closed   chan struct{} // when no more are
}

// maxArriving bounds how many connections of a socket are on their way to a loop, because each takes a second
// descriptor for that moment, which maxConnections sets aside.
const maxArriving = 16

// arrival is a connection on its way from a unix socket to its loop.
type arrival struct {
	sh      *shard
	entered *listener
	place   int64       // among all sockets when it was accepted
	settled atomic.Bool // by the loop, or by who has found out that it does not come there
}

// enrollee is a connection that [engine.enroll] has given to a loop.
type enrollee interface {
	opened(gc gnet.Conn) gnet.Action // called on the loop
}

// greeting is a connection that makes a loop known.
type greeting struct{}

// startAcceptors begins to accept on unix sockets, once the loops are known.
func (e *engine) startAcceptors() {
	for _, l := range e.listeners {
		if l.socket != nil {
			e.acceptors = append(e.acceptors, &acceptor{listener: l, moving: make(chan struct{}, maxArriving), closed: make(chan struct{})})
		}
	}
	if len(e.acceptors) == 0 {
		return
	}
	go func() {
		if !e.meetLoops() {
			for _, a := range e.acceptors {
				close(a.closed)
			}
			return
		}
		for _, a := range e.acceptors {
			go a.serve()
		}
	}()
}

// meetLoops makes the shards of all loops, which would otherwise be made when a loop accepts its first
// connection. It returns false when there will be none.
func (e *engine) meetLoops() bool {
	select {
	case <-e.looping:
	case <-e.loopsEnded:
		return false
	}
	var ours []int
	defer func() {
		for _, fd := range ours {
			_ = unix.Close(fd)
		}
	}()
	for range e.settings().loops { // each goes to the loop with the fewest connections, so to another
		fd, err := e.greet()
		if err != nil {
			e.fail(fmt.Errorf("connect to the event loops: %w", err))
			return false
		}
		ours = append(ours, fd)
	}
	if hidden := e.tcp[0]; hidden.hidden {
		if err := listen.StopListening(hidden.tcpAddr()); err != nil {
			e.log.Warn("could not close the placeholder port", "address", hidden.addr.String(), "error", err)
		}
	}
	return true
}

// greet sends a loop one end of a pair of sockets, and returns the other.
func (e *engine) greet() (fd int, err error) {
	end, fd, err := socketPair("greeting")
	if err != nil {
		return -1, err
	}
	ctx := gnet.NewContext(context.Background(), greeting{})
	enrolled, err := e.gnet.Register(gnet.NewNetConnContext(ctx, end))
	if err == nil {
		err = e.awaitEnrolled(enrolled)
	} else {
		_ = end.Close()
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// serve accepts until the socket is closed. No error ends it: what is lacking, such as a descriptor, will be
// there again.
func (a *acceptor) serve() {
	defer close(a.closed)
	e, pause := a.listener.engine, time.Duration(0)
	for turn := uint64(a.listener.index); ; turn++ {
		a.moving <- struct{}{}
		if a.ending.Load() {
			_ = a.listener.socket.SetDeadline(time.Now().Add(lastCall))
		}
		conn, err := a.listener.socket.AcceptUnix()
		if err == nil {
			pause = 0
			place := e.sockets.Add(1)
			shards := e.allShards()
			go a.move(conn, &arrival{sh: shards[turn%uint64(len(shards))], entered: a.listener, place: place})
			continue
		}
		<-a.moving
		if errors.Is(err, net.ErrClosed) || a.ending.Load() {
			return
		}
		e.acceptErrors.Add(1)
		if pause == 0 {
			e.log.Warn("cannot accept connections", "address", a.listener.addr.String(), "error", err)
		}
		pause = min(max(2*pause, acceptPause), maxAcceptPause)
		time.Sleep(pause)
	}
}

// lastCall is how long the acceptor waits for one more connection of those that wait in the kernel's queue.
const lastCall = 50 * time.Millisecond

// The time between tries when accepting fails.
const (
	acceptPause    = 5 * time.Millisecond
	maxAcceptPause = 500 * time.Millisecond
)

// move returns when the loop has the connection, or never will.
func (a *acceptor) move(conn *net.UnixConn, to *arrival) {
	e := a.listener.engine
	err := e.enroll(to.sh, to, conn)
	<-a.moving
	if to.settled.Swap(true) {
		return
	}
	_ = conn.Close()
	to.sh.stats.Accepted.Add(1)
	to.sh.stats.Refusals[lossReason(err)].Add(1)
	e.logLoss("connection lost while being passed to a loop", (*net.TCPAddr)(nil).AddrPort(), err)
	e.socketClosed()
}

// opened is called on the loop.
func (to *arrival) opened(gc gnet.Conn) gnet.Action {
	if to.settled.Swap(true) || !to.sh.accept(gc, to.entered, to.place) {
		return gnet.Close
	}
	return gnet.None
}

// close takes no more connections but for those that wait in the kernel's queue. It returns when their loops have
// them, or have ended.
func (a *acceptor) close() {
	a.listener.socket.Unpublish()
	a.ending.Store(true)
	_ = a.listener.socket.SetDeadline(time.Now().Add(lastCall))
	<-a.closed
	for range maxArriving {
		a.moving <- struct{}{}
	}
	_ = a.listener.socket.Close()
}

// enroll gives a connection to a loop. gnet duplicates the descriptor and closes the connection's own, when
// OnOpen has been called; it also may not call it, and have no error to tell.
func (e *engine) enroll(sh *shard, what any, conn net.Conn) error {
	for _, addr := range []net.Addr{conn.LocalAddr(), conn.RemoteAddr()} {
		if addr == nil {
			return net.ErrClosed // the peer has reset the connection, and gnet would not expect that
		}
		if a, ok := addr.(*net.TCPAddr); ok { // gnet puts the zone's memory into a pool in the end; net has given it to others as well
			a.Zone = strings.Clone(a.Zone)
		}
	}
	enrolled, err := sh.loop.Enroll(gnet.NewContext(context.Background(), what), conn)
	if err != nil {
		return err
	}
	return e.awaitEnrolled(enrolled)
}

// awaitEnrolled waits for a loop to take a connection, or for the end of all loops.
func (e *engine) awaitEnrolled(enrolled <-chan gnet.RegisteredResult) error {
	select {
	case result := <-enrolled:
		return result.Err
	case <-e.loopsEnded:
		return errStopped
	}
}

// lossReason is how a connection counts that has not come to its loop. Nobody can be told, because gnet has
// closed the socket.
func lossReason(err error) stats.RefuseReason {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return stats.RefuseDescriptors
	}
	return stats.RefuseLost
}
