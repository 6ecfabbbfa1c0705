//go:build !linux

package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// poller is a kqueue instance.
type poller struct {
	fd     int
	wake   [2]int // a pipe: a byte in it ends the wait
	events []unix.Kevent_t
	fds    []int32
}

func newPoller() (poller, error) {
	p := poller{events: make([]unix.Kevent_t, 256)}
	var err error
	if p.fd, err = unix.Kqueue(); err != nil {
		return p, os.NewSyscallError("kqueue", err)
	}
	unix.CloseOnExec(p.fd)
	if err = unix.Pipe(p.wake[:]); err != nil {
		_ = unix.Close(p.fd)
		return p, os.NewSyscallError("pipe", err)
	}
	p.add(p.wake[0], unix.EVFILT_READ, unix.EV_ADD)
	return p, nil
}

func (p *poller) add(fd, filter, flags int) {
	var ev [1]unix.Kevent_t
	unix.SetKevent(&ev[0], fd, filter, flags)
	_, _ = unix.Kevent(p.fd, ev[:], nil, nil)
}

// once asks for one event when the socket takes bytes.
func (p *poller) once(fd int32) { p.add(int(fd), unix.EVFILT_WRITE, unix.EV_ADD|unix.EV_ONESHOT) }

// wait returns the sockets that take bytes. They are valid until the next call.
func (p *poller) wait() ([]int32, error) {
	p.fds = p.fds[:0]
	for len(p.fds) == 0 {
		n, err := unix.Kevent(p.fd, nil, p.events, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("kevent", err)
		}
		for _, ev := range p.events[:n] {
			if int(ev.Ident) == p.wake[0] {
				for _, fd := range []int{p.fd, p.wake[0]} {
					_ = unix.Close(fd)
				}
				return nil, os.ErrClosed
			}
			p.fds = append(p.fds, int32(ev.Ident))
		}
	}
	return p.fds, nil
}

func (p *poller) close() { _ = unix.Close(p.wake[1]) }
