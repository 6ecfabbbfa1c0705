package sys

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// IsExhausted reports whether there is no descriptor left, in this process or on this machine.
func IsExhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// IsNetworkError reports whether accept(2) failed because the connection was lost before it was accepted (accept(2),
// "Error handling").
func IsNetworkError(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case unix.EPERM, unix.EPROTO, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.ETIMEDOUT,
		unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH:
		return true
	}
	return false
}
