package generator

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// poller says which connections can be read or written. A connection is reported once for each change
// (EV_CLEAR), so none of them ever has to be told what to watch for next.
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

// add watches a descriptor until it is closed. Slot and generation come back with its events.
func (p *poller) add(fd int32, slot, generation int32) error {
	p.owners[uint64(fd)] = [2]int32{slot, generation}
	_, err := unix.Kevent(p.fd, []unix.Kevent_t{
		{Ident: uint64(fd), Filter: unix.EVFILT_READ, Flags: unix.EV_ADD | unix.EV_CLEAR},
		{Ident: uint64(fd), Filter: unix.EVFILT_WRITE, Flags: unix.EV_ADD | unix.EV_CLEAR},
	}, nil, nil)
	return err
}

// wait returns how many events there are, after at most the given time.
func (p *poller) wait(most time.Duration) int {
	ts := unix.NsecToTimespec(int64(max(most, 0)))
	n, _ := unix.Kevent(p.fd, nil, p.events[:], &ts)
	return max(n, 0)
}

// event is one of those that wait has found.
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

// socket makes a TCP socket that does not block. A broken connection gives an error and no signal.
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

// bindLate does nothing: this system chooses the port when it binds.
func bindLate(int32) error { return nil }
