package sys

import "golang.org/x/sys/unix"

// HeldBytes returns how many bytes a socket holds that the peer has not acknowledged, or, of a unix socket, not read.
func HeldBytes(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// TakenOf returns how many bytes the peer has acknowledged, of a socket that holds so many. It is good for comparing
// with what it was before.
func TakenOf(fd int32, held int) uint64 {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil { // a unix socket
		return takenWhileHeld(held)
	}
	return info.Bytes_acked
}
