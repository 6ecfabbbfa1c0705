package server

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/panjf2000/gnet/v2"
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

// socketPair makes a pair of sockets that do not block: one as a connection and one as a descriptor.
func socketPair(name string) (end net.Conn, fd int, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
		_ = syscall.SetNonblock(fd, true)
	}
	file := os.NewFile(uintptr(fds[0]), name)
	end, err = net.FileConn(file)
	_ = file.Close()
	if err != nil {
		_ = syscall.Close(fds[1])
		return nil, -1, fmt.Errorf("make a connection of a socket pair: %w", err)
	}
	return end, fds[1], nil
}

func newBell(sh *shard) (*bell, error) {
	end, fd, err := socketPair("bell")
	if err != nil {
		return nil, err
	}
	b := &bell{sh: sh, fd: int32(fd)}
	enrolled, err := sh.loop.Enroll(gnet.NewContext(context.Background(), b), end)
	if err != nil {
		_ = end.Close()
		b.close()
		return nil, fmt.Errorf("enroll a socket pair: %w", err)
	}
	go func() { // the loop completes this, so it cannot be waited for here
		if r := <-enrolled; r.Err != nil {
			sh.srv.fail(fmt.Errorf("enroll a socket pair: %w", r.Err))
		}
	}()
	return b, nil
}

// ring never blocks: when the socket is full, the loop has been told often enough.
func (b *bell) ring() { _, _ = write(b.fd, stroke) }

func (b *bell) close() { _ = syscall.Close(int(b.fd)) }
