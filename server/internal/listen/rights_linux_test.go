package listen

import (
	"errors"
	"net"
	"path/filepath"
	"testing"

	"carillon/internal/testenv"

	"golang.org/x/sys/unix"
)

func TestClientsCannotPassDescriptors(t *testing.T) {
	dir := testenv.SocketDir(t)
	for _, path := range []string{filepath.Join(dir, "s"), "@" + filepath.Base(dir)} {
		s, err := ListenUnix(path, 0o600, false)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Discard()
		conn, err := net.DialUnix("unix", nil, s.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var knows error
		if err := raw.Control(func(fd uintptr) { _, knows = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, soPassRights) }); err != nil {
			t.Fatal(err)
		}
		if errors.Is(knows, unix.ENOPROTOOPT) {
			t.Skip("this kernel has no SO_PASSRIGHTS")
		}
		for _, accepted := range []bool{false, true} {
			if accepted {
				peer, err := s.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer peer.Close()
			}
			if _, _, err := conn.WriteMsgUnix([]byte("x"), unix.UnixRights(0), nil); !errors.Is(err, unix.EPERM) {
				t.Errorf("%s, accepted %v: passing a descriptor: %v, want %v", path, accepted, err, unix.EPERM)
			}
			if _, err := conn.Write([]byte("y")); err != nil {
				t.Errorf("%s, accepted %v: %v", path, accepted, err)
			}
		}
	}
}
