package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// reserve makes sure that an address can be listened on, and by us alone: with SO_REUSEPORT, which the
// loops need, a second server on the same port would get half of the connections without a word. For
// port 0 it also chooses the port, and holds it until release is called. With takeover it is all right if a
// second server listens there.
func reserve(address string, takeover bool) (addr *net.TCPAddr, release func(), err error) {
	if takeover {
		addr, err = reserveShared(address)
		return addr, func() {}, err
	}
	config := net.ListenConfig{}
	host, port, _ := net.SplitHostPort(address)
	held := port == "0" && runtime.GOOS == "linux"
	if held {
		config.Control = sharePort
	}
	network := "tcp"
	literal, _ := netip.ParseAddr(host)
	if literal == netip.IPv4Unspecified() { // which Go takes for IPv6 as well
		network = "tcp4"
	}
	l, err := config.Listen(context.Background(), network, address)
	if err != nil {
		return nil, nil, err // "listen tcp :8080: bind: address already in use"
	}
	release = func() { _ = l.Close() }
	if !held {
		release()
	}
	addr = l.Addr().(*net.TCPAddr)
	addr.Zone = literal.Zone() // the kernel may not tell it
	return addr, release, nil
}

// reserveShared makes sure that an address can be listened on beside a server that does already. It must not
// listen for that, not even for a moment: the kernel would give it connections, which nobody would serve.
func reserveShared(address string) (*net.TCPAddr, error) {
	if _, port, _ := net.SplitHostPort(address); port == "0" {
		return nil, &OptionError{Key: "listen", Problem: "port 0 is nobody's to take over: expected the port of the server before this one"}
	}
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen tcp %s: %w", address, err)
	}
	if addr.IP == nil { // every address of the machine
		addr.IP = net.IPv6unspecified
		if err = tryBind(addr); errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
			addr.IP = net.IPv4zero
		}
	}
	if err = tryBind(addr); err != nil {
		return nil, fmt.Errorf("listen tcp %s: %w", address, err)
	}
	return addr, nil
}

func tryBind(addr *net.TCPAddr) error {
	family, to := sockaddr(addr)
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, to))
}

func sockaddr(addr *net.TCPAddr) (family int, to unix.Sockaddr) {
	if ip := addr.IP.To4(); ip != nil {
		return unix.AF_INET, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip)}
	}
	a := &unix.SockaddrInet6{Port: addr.Port}
	copy(a.Addr[:], addr.IP)
	if zone, err := net.InterfaceByName(addr.Zone); err == nil {
		a.ZoneId = uint32(zone.Index)
	}
	return unix.AF_INET6, a
}

func sharePort(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	if err == nil {
		err = failed
	}
	return err
}

// stopListening refuses new connections while old ones live: gnet cannot stop accepting, so a socket
// that listens where nobody knows is put in the place of each of ours.
func stopListening(addr *net.TCPAddr) error {
	decoy, err := decoyListener()
	if err != nil {
		return err
	}
	defer unix.Close(decoy)
	sockets, err := listeningSockets(addr)
	if err != nil {
		return err
	}
	for _, fd := range sockets {
		if err := replace(decoy, fd); err != nil {
			return fmt.Errorf("replace listening socket: %w", err)
		}
	}
	return nil
}

// listeningSockets are the descriptors of this process that listen on an address.
func listeningSockets(addr *net.TCPAddr) (fds []int, err error) {
	open, err := os.ReadDir("/dev/fd")
	if err != nil {
		return nil, fmt.Errorf("list open descriptors: %w", err)
	}
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && listensOn(fd, addr) {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

// decoyListener must listen and not block: an accept that is under way then finds nobody, while any
// other error would end gnet.
func decoyListener() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	unix.CloseOnExec(fd)
	err = unix.SetNonblock(fd, true)
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 1))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func listensOn(fd int, addr *net.TCPAddr) bool {
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return false
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return a.Port == addr.Port && (addr.IP.Equal(net.IP(a.Addr[:])))
	case *unix.SockaddrInet6:
		return a.Port == addr.Port && (addr.IP.Equal(net.IP(a.Addr[:])))
	}
	return false
}

// descriptorLimit is how many descriptors this process may have.
func descriptorLimit() (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	return int(min(uint64(limit.Cur), math.MaxInt32)), nil
}

// room is how many connections the descriptor limit allows. Beside them there must be some for what is
// open already at the start, for each loop's own descriptors, for the clients that are being refused, for
// the internal interface, and for the files of the application.
type room struct{ total, most int }

func roomFor(loops, internal int) (r room, err error) {
	if r.total, err = descriptorLimit(); err != nil {
		return r, err
	}
	open, _ := os.ReadDir("/dev/fd")
	if r.most = r.total - len(open) - 8*loops - refuseSlots - internal - 32; r.most < 1 {
		err = fmt.Errorf("the descriptor limit of %d leaves no room for connections: raise it, for example with ulimit -n 65536", r.total)
	}
	return r, err
}

// sockets is the limit that was asked for, or what the descriptor limit allows.
func (r room) sockets(want int) (int, error) {
	switch {
	case want > r.most:
		return 0, fmt.Errorf("limits.max_connections is %d, but the descriptor limit of %d allows %d: lower the one, or raise the other, for example with ulimit -n %d",
			want, r.total, r.most, want+r.total-r.most)
	case want > 0:
		return want, nil
	}
	return r.most, nil
}
