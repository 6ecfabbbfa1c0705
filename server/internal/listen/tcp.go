// Package listen opens the sockets that a server listens on, hands them over to a successor, and gives them up.
package listen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"carillon/server/internal/option"

	"golang.org/x/sys/unix"
)

// Reserve makes sure that an address can be listened on, and by us alone: with SO_REUSEPORT, which the loops need, a
// second server on the same port would get half of the connections silently. For port 0 it also chooses the port, and
// holds it until release is called. With takeover it is all right if a second server listens there.
func Reserve(address string, takeover bool) (addr *net.TCPAddr, release func(), err error) {
	host, port, _ := net.SplitHostPort(address)
	if takeover || port == "0" && runtime.GOOS == "linux" {
		return reserveShared(address, takeover)
	}
	network := "tcp"
	literal, _ := netip.ParseAddr(host)
	if literal == netip.IPv4Unspecified() { // which Go takes for IPv6 as well
		network = "tcp4"
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, nil, err // "listen tcp :8080: bind: address already in use"
	}
	_ = l.Close()
	addr = l.Addr().(*net.TCPAddr)
	addr.Zone = literal.Zone() // the kernel may not tell it
	return addr, func() {}, nil
}

// reserveShared makes sure that an address can be listened on: for port 0 one that is free and is held, else next to a
// server that listens already. It must not listen for that, not even for a moment: the kernel would give it connections
// that would not be served. A process that is forked meanwhile has the socket, too, until it runs its program.
func reserveShared(address string, takeover bool) (_ *net.TCPAddr, release func(), err error) {
	_, port, _ := net.SplitHostPort(address)
	if takeover && port == "0" {
		return nil, nil, &option.Error{Key: "listen", Problem: "port 0 cannot be taken over: expected the port of the previous server"}
	}
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen tcp: %w", err) // it names the host
	}
	options := []int{unix.SO_REUSEPORT}
	if takeover {
		options = append(options, unix.SO_REUSEADDR)
	}
	hosts := []net.IP{addr.IP}
	if addr.IP == nil { // every address of the machine
		hosts = []net.IP{net.IPv6unspecified, net.IPv4zero}
	}
	var fd int
	for _, addr.IP = range hosts {
		if fd, err = bind(addr, options); !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listen tcp %s: %w", address, err)
	}
	if takeover {
		_ = unix.Close(fd)
		return addr, func() {}, nil
	}
	release = sync.OnceFunc(func() { _ = unix.Close(fd) })
	if addr.Port, err = portOf(fd); err != nil {
		release()
		return nil, nil, fmt.Errorf("listen tcp %s: %w", address, err)
	}
	return addr, release, nil
}

// bind makes a socket with an address, which does not listen.
func bind(addr *net.TCPAddr, options []int) (fd int, err error) {
	family, to := sockaddr(addr)
	if fd, err = newSocket(family); err != nil {
		return -1, err
	}
	for _, option := range options {
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1))
		}
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, to))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// newSocket makes a stream socket that programs which are started do not inherit.
func newSocket(family int) (fd int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if fd, err = unix.Socket(family, unix.SOCK_STREAM, 0); err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}

// portOf is the port that a socket is bound to.
func portOf(fd int) (int, error) {
	switch at, err := unix.Getsockname(fd); at := at.(type) {
	case *unix.SockaddrInet4:
		return at.Port, nil
	case *unix.SockaddrInet6:
		return at.Port, nil
	default:
		return 0, os.NewSyscallError("getsockname", err)
	}
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

// StopListening refuses new connections while old ones live: gnet cannot stop accepting, so a socket that listens on an
// address no client knows is put in the place of each of ours.
func StopListening(addr *net.TCPAddr) error {
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
		if err := dup(decoy, fd); err != nil {
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
		if fd, err := strconv.Atoi(entry.Name()); err == nil && ListensOn(fd, addr) {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

// decoyListener must listen and not block: an accept that is under way then finds no connection, while any other error
// would end gnet.
func decoyListener() (int, error) {
	fd, err := newSocket(unix.AF_INET)
	if err != nil {
		return -1, err
	}
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

// ListensOn reports whether a descriptor is a socket that listens on an address.
func ListensOn(fd int, addr *net.TCPAddr) bool {
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
