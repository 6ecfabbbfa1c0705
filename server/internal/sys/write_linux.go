package sys

import (
	"syscall"
	"unsafe"
)

// Write is write(2) on a socket that does not block. The system call is made without telling Go's
// scheduler, which costs a third of a small write and would only be needed if it could block.
func Write(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno == 0 {
			return int(n), 0
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}
