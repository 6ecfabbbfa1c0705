package sys

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// Pair makes a pair of sockets that do not block.
func Pair() (fds [2]int, err error) {
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

// ConnOf makes a connection of a descriptor, which is closed.
func ConnOf(fd int, name string) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("create a connection from a socket pair: %w", err)
	}
	return conn, nil
}

// SocketPair makes a pair of sockets that do not block: one as a connection and one as a descriptor.
func SocketPair(name string) (end net.Conn, fd int, err error) {
	fds, err := Pair()
	if err != nil {
		return nil, -1, err
	}
	if end, err = ConnOf(fds[0], name); err != nil {
		_ = syscall.Close(fds[1])
		return nil, -1, err
	}
	return end, fds[1], nil
}
