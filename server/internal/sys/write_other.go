//go:build !linux

package sys

import (
	"errors"
	"syscall"
)

// Write is write(2) on a socket that does not block.
func Write(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, err := syscall.Write(int(fd), b)
		var errno syscall.Errno
		if err == nil {
			return n, 0
		}
		if !errors.As(err, &errno) {
			errno = syscall.EIO
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}
