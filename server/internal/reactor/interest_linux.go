package reactor

import "golang.org/x/sys/unix"

// pause has the loop not look at a socket until resume. It is taken out of the epoll instance, which would go on to
// report that a connection is lost, and nothing else: gnet takes that for the end of whichever connection has the
// descriptor when it comes to the event, which may be a new one.
func (in interest) pause(fd int32) { in.control(unix.EPOLL_CTL_DEL, fd) }

// resume has the loop read a socket again, from which it then learns what has happened meanwhile.
func (in interest) resume(fd int32) { in.control(unix.EPOLL_CTL_ADD, fd) }

func (in interest) control(op int, fd int32) {
	if in.poller > 0 {
		_ = unix.EpollCtl(in.poller, op, int(fd), &unix.EpollEvent{Fd: fd, Events: unix.EPOLLIN | unix.EPOLLPRI})
	}
}
