package reactor

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	gneterrors "github.com/panjf2000/gnet/v2/pkg/errors"
	"golang.org/x/sys/unix"

	"carillon/codec"
	"carillon/server/internal/listen"
	"carillon/server/internal/sys"
	"carillon/server/stats"
)

// The table of descriptors belongs to the whole process, so limits.max_connections alone cannot keep it
// from being full: the application may open files until nothing is left. gnet ends its engine, and with it
// every connection, when accept(2) fails. It tells its logger first and then compares the error that it
// returns with this variable, so one that is equal to nothing keeps it alive, and what is to be done is
// decided in [Engine.acceptFailed]. Tests fail if a later gnet does it in another way.
func init() { gneterrors.ErrAcceptSocket = unequal{} }

// unequal is an error that [errors.Is] does not find: its values cannot be compared.
type unequal struct{ _ []struct{} }

func (unequal) Error() string { return "accept failed" }

// acceptFailed is called on the loop whose accept has failed, which tries again when it returns.
func (e *Engine) acceptFailed(err error) {
	switch {
	case sys.IsExhausted(err):
		if !e.FDReserve.turnAway() {
			time.Sleep(exhaustedPause)
		}
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
		time.Sleep(exhaustedPause) // nothing can be freed here; the connection waits in the kernel
	case sys.IsNetworkError(err):
		// The connection was lost before it was accepted (accept(2), "Error handling").
	case !e.stopping.Load():
		e.Fail(err)
		time.Sleep(exhaustedPause)
	}
}

// exhaustedPause is for a loop that can do nothing about a connection which waits: it serves the others
// in between.
const exhaustedPause = 5 * time.Millisecond

// fdReserve is one descriptor in hand, which is given up to accept a connection, to tell it that there is no
// room, and to close it. A connection that stayed in the kernel's queue would wake its loop for ever.
type fdReserve struct {
	engine *Engine

	Mu        sync.Mutex
	FD        int   // guarded by mu; -1 when another goroutine was faster
	listening []int // guarded by mu; the sockets of all loops, once they were needed
	short     bool  // guarded by mu; there was no other descriptor when we looked last

	Away atomic.Bool // it is given up, until it is taken back
}

// maxTurnedAway bounds what one loop does for others that wait.
const maxTurnedAway = 64

// take gets the descriptor back. The caller holds mu.
func (r *fdReserve) take() bool {
	if r.FD < 0 {
		fd, err := listen.UnixStream()
		if err != nil {
			r.FD = -1
			return false
		}
		r.FD = fd
	}
	r.Away.Store(false)
	return true
}

// admits is asked about each connection that a loop has accepted. It is false for one that came to have the
// reserve descriptor while it was given up: if that stayed, those who come next could not even be told. The
// descriptor is free again when the connection is closed.
func (r *fdReserve) admits() bool {
	if !r.Away.Load() {
		return true
	}
	r.Mu.Lock()
	defer r.Mu.Unlock()
	return r.take()
}

// turnAway refuses the connections that wait to be accepted. It is false when there was no descriptor for
// that.
func (r *fdReserve) turnAway() bool {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	r.setShort(true)
	for range maxTurnedAway {
		if !r.take() {
			return false
		}
		if !r.turnOneAway() {
			break
		}
	}
	return true
}

func (r *fdReserve) turnOneAway() bool {
	r.Away.Store(true)
	_ = unix.Close(r.FD)
	r.FD = -1
	defer r.take()
	for _, fd := range r.sockets() {
		conn, _, err := unix.Accept(fd)
		if err != nil {
			continue // no connection waits, or the descriptor has been taken
		}
		_, _ = sys.Write(int32(conn), RejectDescriptors.AppendResponse(nil))
		_ = unix.Close(conn)
		r.engine.Unowned.Accepted.Add(1)
		r.engine.Unowned.Refusals[stats.RefuseDescriptors].Add(1)
		return true
	}
	return false
}

// sockets are those that listen. To list the open descriptors would take one. The caller holds mu.
func (r *fdReserve) sockets() []int {
	if len(r.listening) == 0 {
		limit, _ := listen.DescriptorLimit()
		for fd := range min(limit, 1<<16) {
			for _, l := range r.engine.TCP {
				if listen.ListensOn(fd, l.TCPAddr()) {
					r.listening = append(r.listening, fd)
				}
			}
		}
	}
	return r.listening
}

const descriptorsEvery = time.Second

// look finds out whether descriptors are left.
func (r *fdReserve) look() {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	probe := -1
	if r.take() {
		var err error
		if probe, err = unix.FcntlInt(uintptr(r.FD), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			_ = unix.Close(probe)
		}
	}
	r.setShort(probe < 0)
}

// setShort notes whether there are descriptors, and tells it when that has changed. The caller holds mu.
func (r *fdReserve) setShort(short bool) {
	if r.short == short {
		return
	}
	r.short = short
	if short {
		r.engine.Log.Warn("no file descriptors left; refusing new connections until some close")
	} else {
		r.engine.Log.Info("file descriptors are available again")
	}
}

// IsShort reports whether the process has no file descriptor left.
func (r *fdReserve) IsShort() bool {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	return r.short
}

func (r *fdReserve) close() {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	if r.FD >= 0 {
		_ = unix.Close(r.FD)
		r.FD = -1
	}
}

// refuseUnknown refuses a connection that no shard gets to know.
func (e *Engine) refuseUnknown(fd int, why stats.RefuseReason, r *codec.Rejection) {
	e.Unowned.Accepted.Add(1)
	e.Unowned.Refusals[why].Add(1)
	_, _ = sys.Write(int32(fd), r.AppendResponse(nil))
}
