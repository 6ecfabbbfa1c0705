package generator

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// poller reports which connections can be read or written. It is edge-triggered (EV_CLEAR), so
// registrations never change.
type poller struct {
	fd     int
	events [512]unix.Kevent_t
	owners map[uint64][2]int32 // slot and generation by descriptor
}

func newPoller() (*poller, error) {
	fd, err := unix.Kqueue()
	if err != nil {
		return nil, fmt.Errorf("kqueue: %w", err)
	}
	unix.CloseOnExec(fd)
	return &poller{fd: fd, owners: map[uint64][2]int32{}}, nil
}

// add watches a descriptor until it is closed. Its events carry slot and generation.
func (p *poller) add(fd int32, slot, generation int32) error {
	p.owners[uint64(fd)] = [2]int32{slot, generation}
	_, err := unix.Kevent(p.fd, []unix.Kevent_t{
		{Ident: uint64(fd), Filter: unix.EVFILT_READ, Flags: unix.EV_ADD | unix.EV_CLEAR},
		{Ident: uint64(fd), Filter: unix.EVFILT_WRITE, Flags: unix.EV_ADD | unix.EV_CLEAR},
	}, nil, nil)
	return err
}

// wait waits for events and returns their number.
func (p *poller) wait(timeout time.Duration) int {
	ts := unix.NsecToTimespec(int64(max(timeout, 0)))
	n, _ := unix.Kevent(p.fd, nil, p.events[:], &ts)
	return max(n, 0)
}

// event returns the i-th event of the last wait.
func (p *poller) event(i int) (slot, generation int32, readable, writable, ended bool) {
	e := &p.events[i]
	owner := p.owners[e.Ident]
	ended = e.Flags&unix.EV_EOF != 0
	return owner[0], owner[1], e.Filter == unix.EVFILT_READ, e.Filter == unix.EVFILT_WRITE && !ended, ended
}

func read(fd int32, b []byte) (int, syscall.Errno) { return result(unix.Read(int(fd), b)) }

func write(fd int32, b []byte) (int, syscall.Errno) { return result(unix.Write(int(fd), b)) }

func result(n int, err error) (int, syscall.Errno) {
	if err == nil {
		return n, 0
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return 0, e
	}
	return 0, unix.EIO
}

// socket creates a non-blocking TCP socket that returns an error instead of raising SIGPIPE.
func socket(family int) (int32, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(fd)
	if err = unix.SetNonblock(fd, true); err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NOSIGPIPE, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return int32(fd), nil
}

// bindLate does nothing: here the port is chosen by bind(2).
func bindLate(int32) error { return nil }
