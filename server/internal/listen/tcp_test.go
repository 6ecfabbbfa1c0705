package listen

import (
	"errors"
	"net"
	"runtime"
	"syscall"
	"testing"
)

// A port that was chosen is held, but gets no connections: they would be reset when it is released.
func TestReserveHoldsAPort(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux lets a port be held for other sockets of the process")
	}
	for _, address := range []string{"127.0.0.1:0", ":0", "0.0.0.0:0", "localhost:0"} {
		addr, release, err := Reserve(address, false)
		if err != nil {
			t.Fatal(err)
		}
		if addr.Port == 0 {
			t.Fatalf("%s: no port was chosen", address)
		}
		to := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: addr.Port}
		if c, err := net.DialTCP("tcp", nil, to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: connecting to it gives %v, %v", address, c, err)
		}
		if l, err := net.Listen("tcp", to.String()); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: listening on it gives %v, %v", address, l, err)
		}
		release()
		release() // does nothing
		l, err := net.Listen("tcp", to.String())
		if err != nil {
			t.Errorf("%s: listening on it afterwards: %v", address, err)
			continue
		}
		_, _, err = Reserve(to.String(), false)
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: reserving a port on which a server listens gives %v", address, err)
		}
		_ = l.Close()
	}
}

func TestReserveRefusesToTakeOverPort0(t *testing.T) {
	if addr, _, err := Reserve("127.0.0.1:0", true); err == nil {
		t.Errorf("it gives %v", addr)
	}
}
