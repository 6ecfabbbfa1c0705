//go:build !linux

package reactor

import "golang.org/x/sys/unix"

// pause has the loop not read a socket until resume.
func (in interest) pause(fd int32) { in.modify(fd, unix.EV_DISABLE) }

// resume has the loop read a socket again.
func (in interest) resume(fd int32) { in.modify(fd, unix.EV_ENABLE) }

func (in interest) modify(fd int32, flags int) {
	if in.poller > 0 {
		var ev [1]unix.Kevent_t
		unix.SetKevent(&ev[0], int(fd), unix.EVFILT_READ, flags)
		_, _ = unix.Kevent(in.poller, ev[:], nil, nil)
	}
}
