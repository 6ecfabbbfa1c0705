package listen

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A successor that shares the port (Options.Takeover) listens before we give it up, and the kernel spreads
// new connections over its sockets and ours. When one of ours is closed, connections are reset that are in
// its queue or in the middle of TCP's handshake with it: their clients have been told that the server
// is there. So first the kernel is told to choose among the successor's sockets only, by a filter on the
// group of all sockets of the port. For HandoverTime the loops accept what has been begun with us, and
// then the sockets are closed when nothing is in them any more.
//
// Without a successor nothing can be done for clients that connect just then, and no server is there for those that
// come later.

// HandoverTime is enough for a client to answer the kernel's SYN-ACK, though not if that was lost and
// has to be sent again.
const HandoverTime = time.Second

// SteerAway has the kernel hand new connections to the successor, and returns how many sockets that one
// listens with, 0 if there is none. It is called once before HandoverTime and once after it, with last set.
func SteerAway(addr *net.TCPAddr, last bool, log *slog.Logger) (theirs int) {
	mine, err := listeningSockets(addr)
	if err != nil || len(mine) == 0 {
		return 0
	}
	all, err := CountListeners(addr)
	if err != nil {
		log.Debug("could not look for a successor", "error", err)
		return 0
	}
	if theirs = all - len(mine); theirs <= 0 {
		return 0
	}
	if err := steer(mine[0], len(mine), theirs, last); err != nil {
		log.Warn("could not steer new connections to the successor; some may be reset", "error", err)
	}
	return theirs
}

// randomWord is where a filter loads 32 random bits from (SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h).
const randomWord = 0xfffff000 + 56

// steer attaches a filter, in classic BPF, that returns the place of a socket in the group. The kernel has
// them in the order in which they began to listen, so ours come before the successor's. Only places are
// returned that are beyond the end once our sockets are gone: then the filter has no say any more, and the
// kernel spreads connections as if there were none. That leaves as many of the successor's as we have, if it
// has so many; with one it is the first, which keeps its place until the last of ours is closed.
func steer(fd, ours, theirs int, one bool) error {
	first, n := max(ours, theirs), min(ours, theirs)
	if one {
		n = 1
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: randomWord},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, K: uint32(first)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	return os.NewSyscallError("setsockopt", err)
}

// ClearSteering takes the filter away that a server before us may have left on the port when it went: among more
// sockets than there were then it would choose again. It is called when the first of ours listens.
func ClearSteering(addr *net.TCPAddr) {
	if mine, err := listeningSockets(addr); err == nil && len(mine) > 0 {
		_ = unix.SetsockoptInt(mine[0], unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0) // an error if there is none
	}
}

// CountListeners is how many sockets of all processes listen on an address.
func CountListeners(addr *net.TCPAddr) (n int, err error) {
	table := "/proc/self/net/tcp"
	if addr.IP.To4() == nil {
		table += "6"
	}
	f, err := os.Open(table)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	want := netip.AddrPortFrom(addr.AddrPort().Addr().Unmap().WithZone(""), uint16(addr.Port))
	lines := bufio.NewScanner(f)
	lines.Scan() // the names of the columns
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != tcpListen {
			break // those that listen come first
		}
		if at, err := parseTableAddress(fields[1]); err == nil && at == want {
			n++
		}
	}
	return n, lines.Err()
}

// tcpListen is how the kernel's table calls the state of a socket that listens.
const tcpListen = "0A"

// parseTableAddress reads an address as the kernel's tables have it: 32-bit words in hexadecimal, each in
// the order of bytes of the machine, and the port.
func parseTableAddress(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	words, err := hex.DecodeString(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("parse address %q: %w", text, err)
	}
	for i := 0; i+4 <= len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	ip, ok := netip.AddrFromSlice(words)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("parse address %q", text)
	}
	return netip.AddrPortFrom(ip, uint16(n)), nil
}
