//go:build !linux

package reactor

import "golang.org/x/sys/unix"

// heldBytes returns how many bytes a socket holds that the peer has not acknowledged, or, of a unix socket, not read.
func heldBytes(fd int32) int {
	n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NWRITE)
	if err != nil {
		return 0
	}
	return n
}

// takenOf returns how far the peer has come, of a socket that holds so many bytes.
func takenOf(_ int32, held int) uint64 { return takenWhileHeld(held) }
