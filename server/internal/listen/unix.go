package listen

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"carillon/server/internal/option"

	"golang.org/x/sys/unix"
)

// UnixSocket is a unix socket that listens. Its file is only ever made and removed while the directory is
// locked, so that of several servers none removes what another has just made.
type UnixSocket struct {
	*net.UnixListener
	Address *net.UnixAddr // where clients find it

	// Of one with a file.
	mu   sync.Mutex
	made os.FileInfo // what the file was when it was made; nil once it has been removed; guarded by mu
	from string      // where it is until it takes the place of its predecessor's; guarded by mu
}

// suffixLength is how much longer from is than the path.
const suffixLength = len(".0123456")

// MaxUnixPath is how long the name of a unix socket may be. A successor's has a suffix for a moment.
const MaxUnixPath = len(unix.RawSockaddrUnix{}.Path) - 1 - suffixLength

// unixBacklog is how many connections the kernel keeps for us; it cuts that to net.core.somaxconn.
const unixBacklog = 4096

// ListenUnix listens on a path, or on an abstract name. When a server listens there already it is an error,
// unless it is to be taken over: then Publish puts the new socket in the place of the old.
func ListenUnix(path string, mode option.FileMode, takeover bool) (*UnixSocket, error) {
	s := &UnixSocket{Address: &net.UnixAddr{Net: "unix", Name: path}}
	if strings.HasPrefix(path, "@") {
		return s, s.listen(path, 0)
	}
	unlock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	at := path
	switch lives, err := livesAt(path); {
	case err != nil:
		return nil, err
	case lives && !takeover:
		return nil, listenError(path, os.NewSyscallError("bind", unix.EADDRINUSE))
	case lives:
		s.from = fmt.Sprintf("%s.%07x", path, rand.Uint32N(1<<28))
		at = s.from
	}
	if err := s.listen(at, mode); err != nil {
		return nil, err
	}
	if s.made, err = os.Lstat(at); err != nil {
		_ = s.UnixListener.Close()
		return nil, listenError(path, err)
	}
	return s, nil
}

func listenError(path string, err error) error { return fmt.Errorf("listen unix %s: %w", path, err) }

// livesAt reports whether a server listens on a path. When one has died there, its file is removed.
func livesAt(path string) (bool, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, listenError(path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return false, listenError(path, errors.New("the file is not a socket"))
	}
	fd, err := UnixStream()
	if err != nil {
		return false, listenError(path, err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err {
	case nil, unix.EAGAIN, unix.EINPROGRESS: // the queue is full
		return true, nil
	case unix.ECONNREFUSED:
		if err := os.Remove(path); err != nil {
			return false, listenError(path, err)
		}
		return false, nil
	default: // a socket of another kind, or of another user
		return false, listenError(path, os.NewSyscallError("connect", err))
	}
}

// UnixStream makes a unix socket that does not block.
func UnixStream() (int, error) {
	fd, err := newSocket(unix.AF_UNIX)
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// listen gives the file its mode before any client can connect, which is why net.Listen will not do.
func (s *UnixSocket) listen(at string, mode option.FileMode) error {
	fd, err := UnixStream()
	if err != nil {
		return listenError(s.Address.Name, err)
	}
	file := os.NewFile(uintptr(fd), at)
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: at}); err != nil {
		return listenError(s.Address.Name, os.NewSyscallError("bind", err))
	}
	hasFile := !strings.HasPrefix(at, "@")
	if hasFile {
		err = os.Chmod(at, os.FileMode(mode))
	}
	refuseDescriptors(fd)
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, unixBacklog))
	}
	var l net.Listener
	if err == nil {
		l, err = net.FileListener(file) // which does not remove the file when it closes
	}
	if err != nil {
		if hasFile {
			_ = os.Remove(at)
		}
		return listenError(s.Address.Name, err)
	}
	s.UnixListener = l.(*net.UnixListener)
	return nil
}

// Publish takes the place of the predecessor's socket: clients that connect from now on come here.
func (s *UnixSocket) Publish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from == "" {
		return nil
	}
	unlock, err := lockDirectory(s.Address.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Rename(s.from, s.Address.Name); err != nil {
		return listenError(s.Address.Name, err)
	}
	s.from = ""
	return nil
}

// Unpublish removes the file, unless it is a successor's. Clients that have connected can still be accepted.
func (s *UnixSocket) Unpublish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made == nil {
		return
	}
	unlock, err := lockDirectory(s.Address.Name)
	if err != nil {
		return // what stays is replaced by the next server
	}
	defer unlock()
	at := s.Address.Name
	if s.from != "" {
		at = s.from
	}
	if now, err := os.Lstat(at); err == nil && os.SameFile(now, s.made) {
		_ = os.Remove(at)
	}
	s.made = nil
}

// Discard removes the file and closes the socket.
func (s *UnixSocket) Discard() {
	s.Unpublish()
	_ = s.UnixListener.Close()
}

// How long another server may have the directory locked, which is for a few system calls.
const (
	lockTries = 200
	lockPause = 10 * time.Millisecond
)

// lockDirectory locks the directory of a path. Where that cannot be done, as on some network file systems, it
// does without.
func lockDirectory(path string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, listenError(path, err)
	}
	if err != nil {
		return func() {}, nil
	}
	for range lockTries {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return func() { _ = dir.Close() }, nil
		}
		time.Sleep(lockPause)
	}
	_ = dir.Close()
	return nil, listenError(path, fmt.Errorf("lock %s: %w", filepath.Dir(path), err))
}
