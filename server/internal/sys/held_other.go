//go:build !linux

package sys

import "golang.org/x/sys/unix"

// HeldBytes returns how many bytes a socket holds that the peer has not acknowledged, or, of a unix socket, not read.
func HeldBytes(fd int32) int {
	n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NWRITE)
	if err != nil {
		return 0
	}
	return n
}

// TakenOf returns how far the peer has come, of a socket that holds so many bytes.
func TakenOf(_ int32, held int) uint64 { return takenWhileHeld(held) }
