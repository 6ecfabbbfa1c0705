//go:build linux

// Floor is what the kernel alone costs: one thread with epoll_wait(2), read(2) and a bare loop of write(2). It is no
// WebSocket server. It answers an upgrade, then takes whole text and binary frames of up to 32 KiB and writes them back
// unmasked, one write(2) for each frame and receiver. There is no check of UTF-8, no fragment, no compression, no limit
// of time, and no queue: a client that does not take a whole frame at once is closed.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"carillon/loadtest/peers/internal/peer"
)

func main() { peer.Main(peer.Has{}, serve) }

func serve(ctx context.Context, ln net.Listener, _ peer.Options) error {
	// A descriptor of our own, which Go's poller does not watch.
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer file.Close()
	_ = ln.Close()
	f := &floor{listener: int(file.Fd())}
	if err := unix.SetNonblock(f.listener, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	if f.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(f.epoll)
	if f.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	defer context.AfterFunc(ctx, func() { _, _ = unix.Write(f.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })()
	for _, fd := range []int{f.listener, f.bell} {
		if err := f.watch(fd); err != nil {
			return err
		}
	}
	return f.run()
}

// floor is owned by the goroutine of run.
type floor struct {
	epoll, listener, bell int

	conns   []*conn // by descriptor
	members []*conn // those of /broadcast
	buffer  [64 << 10]byte
}

func (f *floor) watch(fd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(f.epoll, unix.EPOLL_CTL_ADD, fd, &ev))
}

// run returns nil when the bell has rung.
func (f *floor) run() error {
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(f.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		for _, ev := range events[:max(n, 0)] {
			switch fd := int(ev.Fd); fd {
			case f.bell:
				return nil
			case f.listener:
				if err := f.accept(); err != nil {
					return err
				}
			default:
				// Nil if an event before this one closed it.
				if c := f.conns[fd]; c != nil {
					f.read(c)
				}
			}
		}
	}
}

func (f *floor) accept() error {
	for {
		fd, _, err := unix.Accept4(f.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
		case unix.EAGAIN:
			return nil
		case unix.EINTR, unix.ECONNABORTED:
			continue
		default:
			return fmt.Errorf("accept4 with %d connections of /broadcast: %w", len(f.members), err)
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if err := f.watch(fd); err != nil {
			return err
		}
		if fd >= len(f.conns) {
			f.conns = append(f.conns, make([]*conn, fd+1)...)
		}
		f.conns[fd] = &conn{fd: fd}
	}
}

// read and write are system calls that Go's scheduler is not told of, since they cannot block.
func read(fd int, b []byte) (int, unix.Errno) { return call(unix.SYS_READ, fd, b) }

func write(fd int, b []byte) (int, unix.Errno) { return call(unix.SYS_WRITE, fd, b) }

func call(number uintptr, fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
