package reactor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"carillon/server/internal/listen"
	"carillon/server/internal/sys"
	"carillon/server/stats"
)

// gnet listens on a unix socket anew for each loop and removes the file of the one before, so that only its
// last loop would get connections. So each unix socket has an acceptor, which hands connections to the loops
// in turn.

// Acceptor accepts the connections of one unix socket.
type Acceptor struct {
	Listener *Listener
	Moving   chan struct{} // has a value for each connection on its way to a loop: see MaxArriving
	ending   atomic.Bool   // the file is gone: only those who have connected already are accepted
	closed   chan struct{} // when no more are
}

// MaxArriving bounds how many connections of a socket are on their way to a loop, because each takes a second
// descriptor for that moment, which maxConnections sets aside.
const MaxArriving = 16

// Arrival is a connection on its way from a unix socket to its loop.
type Arrival struct {
	Shard   *Shard
	Entered *Listener
	Place   int64       // among all sockets when it was accepted
	settled atomic.Bool // by the loop, or by the goroutine that finds out that it does not come there
}

// Enrollee is a connection that [Engine.Enroll] gives to a loop.
type Enrollee interface {
	Opened(s Socket) bool // called on the loop; false closes the socket
}

// greeting is a connection that makes a loop known.
type greeting struct{}

// startAcceptors begins to accept on unix sockets, once the loops are known.
func (e *Engine) startAcceptors() {
	for _, l := range e.Listeners {
		if l.socket != nil {
			e.Acceptors = append(e.Acceptors, &Acceptor{Listener: l, Moving: make(chan struct{}, MaxArriving), closed: make(chan struct{})})
		}
	}
	if len(e.Acceptors) == 0 {
		return
	}
	go func() {
		if !e.meetLoops() {
			for _, a := range e.Acceptors {
				close(a.closed)
			}
			return
		}
		for _, a := range e.Acceptors {
			go a.serve()
		}
	}()
}

// meetLoops makes the shards of all loops, which would otherwise be made when a loop accepts its first
// connection. It returns false when there will be none.
func (e *Engine) meetLoops() bool {
	select {
	case <-e.looping:
	case <-e.LoopsEnded:
		return false
	}
	var ours []int
	defer func() {
		for _, fd := range ours {
			_ = unix.Close(fd)
		}
	}()
	for range e.Settings().Loops { // each goes to the loop with the fewest connections, so to another
		fd, err := e.greet()
		if err != nil {
			e.Fail(fmt.Errorf("connect to the event loops: %w", err))
			return false
		}
		ours = append(ours, fd)
	}
	if hidden := e.TCP[0]; hidden.hidden {
		if err := listen.StopListening(hidden.TCPAddr()); err != nil {
			e.Log.Warn("could not close the placeholder port", "address", hidden.Addr.String(), "error", err)
		}
	}
	return true
}

// greet sends a loop one end of a pair of sockets, and returns the other.
func (e *Engine) greet() (fd int, err error) {
	end, fd, err := sys.SocketPair("greeting")
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
func (a *Acceptor) serve() {
	defer close(a.closed)
	e, pause := a.Listener.engine, time.Duration(0)
	for turn := uint64(a.Listener.index); ; turn++ {
		a.Moving <- struct{}{}
		if a.ending.Load() {
			_ = a.Listener.socket.SetDeadline(time.Now().Add(LastCall))
		}
		conn, err := a.Listener.socket.AcceptUnix()
		if err == nil {
			pause = 0
			place := e.Sockets.Add(1)
			shards := e.AllShards()
			go a.Move(conn, &Arrival{Shard: shards[turn%uint64(len(shards))], Entered: a.Listener, Place: place})
			continue
		}
		<-a.Moving
		if errors.Is(err, net.ErrClosed) || a.ending.Load() {
			return
		}
		e.AcceptErrors.Add(1)
		if pause == 0 {
			e.Log.Warn("cannot accept connections", "address", a.Listener.Addr.String(), "error", err)
		}
		pause = min(max(2*pause, acceptPause), maxAcceptPause)
		time.Sleep(pause)
	}
}

// LastCall is how long the acceptor waits for one more connection of those that wait in the kernel's queue.
const LastCall = 50 * time.Millisecond

// The time between tries when accepting fails.
const (
	acceptPause    = 5 * time.Millisecond
	maxAcceptPause = 500 * time.Millisecond
)

// Move returns when the loop has the connection, or never will.
func (a *Acceptor) Move(conn *net.UnixConn, to *Arrival) {
	e := a.Listener.engine
	err := e.Enroll(to.Shard, to, conn)
	<-a.Moving
	if to.settled.Swap(true) {
		return
	}
	_ = conn.Close()
	to.Shard.Stats.Accepted.Add(1)
	to.Shard.Stats.Refusals[LossReason(err)].Add(1)
	e.LogLoss("connection lost while being passed to a loop", (*net.TCPAddr)(nil).AddrPort(), err)
	e.SocketClosed()
}

// Opened is called on the loop.
func (to *Arrival) Opened(s Socket) bool {
	return !to.settled.Swap(true) && to.Shard.accept(s, to.Entered, to.Place)
}

// Close takes no more connections but for those that wait in the kernel's queue. It returns when their loops have
// them, or have ended.
func (a *Acceptor) Close() {
	a.Listener.socket.Unpublish()
	a.ending.Store(true)
	_ = a.Listener.socket.SetDeadline(time.Now().Add(LastCall))
	<-a.closed
	for range MaxArriving {
		a.Moving <- struct{}{}
	}
	_ = a.Listener.socket.Close()
}

// Enroll gives a connection to a loop. gnet duplicates the descriptor and closes the connection's own, when
// OnOpen has been called; it also may not call it, and have no error to tell.
func (e *Engine) Enroll(sh *Shard, what Enrollee, conn net.Conn) error {
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
func (e *Engine) awaitEnrolled(enrolled <-chan gnet.RegisteredResult) error {
	select {
	case result := <-enrolled:
		return result.Err
	case <-e.LoopsEnded:
		return ErrStopped
	}
}

// LossReason is how a connection counts that has not come to its loop. Its client gets no answer, because gnet has
// closed the socket.
func LossReason(err error) stats.RefuseReason {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return stats.RefuseDescriptors
	}
	return stats.RefuseLost
}
