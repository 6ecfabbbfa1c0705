package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// poller is an epoll instance that Go's own poller watches, so that waiting for it costs no thread and
// closing it ends the wait.
type poller struct {
	file   *os.File
	events []unix.EpollEvent
	fds    []int32
}

func newPoller() (poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return poller{}, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return poller{}, os.NewSyscallError("fcntl", err)
	}
	return poller{file: os.NewFile(uintptr(fd), "epoll"), events: make([]unix.EpollEvent, 256)}, nil
}

// once asks for one event when the socket takes bytes.
func (p *poller) once(fd int32) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(epoll uintptr) {
		ev := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT, Fd: fd}
		if unix.EpollCtl(int(epoll), unix.EPOLL_CTL_MOD, int(fd), &ev) == unix.ENOENT {
			_ = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, int(fd), &ev)
		}
	})
}

// wait returns the sockets that take bytes. They are valid until the next call.
func (p *poller) wait() ([]int32, error) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	p.fds = p.fds[:0]
	err = raw.Read(func(epoll uintptr) bool {
		n, err := unix.EpollWait(int(epoll), p.events, 0)
		if err != nil {
			return err != unix.EINTR && err != unix.EAGAIN
		}
		for _, ev := range p.events[:n] {
			p.fds = append(p.fds, ev.Fd)
		}
		return n > 0
	})
	return p.fds, err
}

func (p *poller) close() { _ = p.file.Close() }
