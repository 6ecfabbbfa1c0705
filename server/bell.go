package server

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

// bell asks a loop for a turn, from any goroutine: one byte through a pair of sockets, of which the
// loop reads one end like any connection. gnet's own tasks would allocate, and they run until there
// are none left, so that a loop that asked itself for another turn would get it before any I/O that
// is ready. A bell comes after that I/O.
type bell struct {
	sh *shard
	fd int32
}

var stroke = []byte{0}

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

func newBell(sh *shard) (*bell, error) {
	fds, err := pair()
	if err != nil {
		return nil, err
	}
	b := &bell{sh: sh, fd: int32(fds[1])}
	go b.hang(fds[0]) // the loop has a part in this, so it cannot be waited for here
	return b, nil
}

// hang gives the loop its end of the pair. What is rung before waits in it. That takes descriptors for a
// moment, and when there are none it is tried again.
func (b *bell) hang(fd int) {
	defer syscall.Close(fd)
	for {
		err := b.enroll(fd)
		if err == nil || err == errStopped || b.sh.mail.isClosed() {
			return
		}
		if !isExhausted(err) {
			b.sh.srv.fail(fmt.Errorf("register a socket pair: %w", err))
			return
		}
		time.Sleep(exhaustedPause)
	}
}

func (b *bell) enroll(fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	end, err := connOf(own, "bell")
	if err != nil {
		return err
	}
	enrolled, err := b.sh.loop.Enroll(gnet.NewContext(context.Background(), b), end)
	if err != nil {
		_ = end.Close()
		return err
	}
	return b.sh.srv.awaitEnrolled(enrolled)
}

// ring never blocks: when the socket is full, the loop has been told often enough.
func (b *bell) ring() { _, _ = write(b.fd, stroke) }

func (b *bell) close() { _ = syscall.Close(int(b.fd)) }
