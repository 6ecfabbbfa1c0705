package reactor

import "golang.org/x/sys/unix"

// heldBytes returns how many bytes a socket holds that the peer has not acknowledged, or, of a unix socket, not read.
func heldBytes(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// takenOf returns how many bytes the peer has acknowledged, of a socket that holds so many. It is good for comparing
// with what it was before.
func takenOf(fd int32, held int) uint64 {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil { // a unix socket
		return takenWhileHeld(held)
	}
	return info.Bytes_acked
}
