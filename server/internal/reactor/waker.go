package reactor

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// waker wakes a loop from any goroutine: it writes one byte to a pair of sockets, and the loop reads the other end like
// any connection. gnet's own tasks would allocate. They also run until none are left, so a loop that asked itself for
// another turn would get it before any I/O that is ready. A waker comes after that I/O.
type waker struct {
	sh *Shard
	fd int32
}

var wakeByte = []byte{0}

// pair makes a pair of sockets that do not block.
func pair() (fds [2]int, err error) {
	fds, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return fds, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
		_ = syscall.SetNonblock(fd, true)
	}
	return fds, nil
}

// connOf makes a connection of a descriptor, which is closed.
func connOf(fd int, name string) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("create a connection from a socket pair: %w", err)
	}
	return conn, nil
}

// socketPair makes a pair of sockets that do not block: one as a connection and one as a descriptor.
func socketPair(name string) (end net.Conn, fd int, err error) {
	fds, err := pair()
	if err != nil {
		return nil, -1, err
	}
	if end, err = connOf(fds[0], name); err != nil {
		_ = syscall.Close(fds[1])
		return nil, -1, err
	}
	return end, fds[1], nil
}

func newWaker(sh *Shard) (*waker, error) {
	fds, err := pair()
	if err != nil {
		return nil, err
	}
	w := &waker{sh: sh, fd: int32(fds[1])}
	go w.register(fds[0]) // the loop has a part in this, so it cannot be waited for here
	return w, nil
}

// register gives the loop its end of the pair, in which bytes that were written before wait. It needs descriptors for a
// moment, and tries again if there are none.
func (w *waker) register(fd int) {
	defer syscall.Close(fd)
	for {
		err := w.enroll(fd)
		if err == nil || err == ErrStopped || w.sh.Mail.IsClosed() {
			return
		}
		if !isExhausted(err) {
			w.sh.Engine.Fail(fmt.Errorf("register a socket pair: %w", err))
			return
		}
		time.Sleep(exhaustedPause)
	}
}

func (w *waker) enroll(fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	end, err := connOf(own, "waker")
	if err != nil {
		return err
	}
	enrolled, err := w.sh.loop.Enroll(gnet.NewContext(context.Background(), w), end)
	if err != nil {
		_ = end.Close()
		return err
	}
	return w.sh.Engine.awaitEnrolled(enrolled)
}

// wake never blocks: when the socket is full, the loop has been woken often enough.
func (w *waker) wake() { _, _ = Write(w.fd, wakeByte) }

func (w *waker) close() { _ = syscall.Close(int(w.fd)) }
