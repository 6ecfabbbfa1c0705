package testenv

import (
	"errors"
	"net"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// The ports that tests choose are below those that the kernel gives to connections and to listeners at port 0: from
// 32768 on Linux, from 49152 on macOS. A port of the kernel's that a test has released may be in use a moment later.
const (
	firstPort = 10000
	blockSize = 100
	numBlocks = 100
)

// pool has the ports that this process may give out. Each block of ports belongs to the process that listens at the
// block's first port on 127.0.0.1, until that process ends.
var pool struct {
	sync.Mutex
	blocks int // blocks that were tried
	guards []net.Listener
	unused []int
	dealt  []int
}

// Port returns a port of an IP address of this machine at which nothing listens. No connection, no other test and no
// other test process gets it before the test listens there, nor while the test's server is away. Where the address
// cannot be listened on, as 127.0.0.2 on macOS, the test is skipped.
func Port(t testing.TB, ip string) string {
	t.Helper()
	for range numBlocks * blockSize {
		port, ok := nextPort()
		if !ok {
			break
		}
		l, err := net.Listen("tcp", net.JoinHostPort(ip, port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Skipf("the addresses 127.0.0.1 to 127.255.255.255 are needed: %v", err)
		}
		_ = l.Close()
		return port
	}
	t.Fatalf("no port of %s from %d on is free", ip, firstPort)
	return ""
}

// Address returns 127.0.0.1 with a [Port].
func Address(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", Port(t, "127.0.0.1"))
}

// nextPort returns a port that was not returned before. When no block is left it begins again.
func nextPort() (string, bool) {
	pool.Lock()
	defer pool.Unlock()
	for len(pool.unused) == 0 && pool.blocks < numBlocks {
		claimBlock()
	}
	if len(pool.unused) == 0 {
		pool.unused, pool.dealt = pool.dealt, nil
	}
	if len(pool.unused) == 0 {
		return "", false
	}
	port := pool.unused[0]
	pool.unused, pool.dealt = pool.unused[1:], append(pool.dealt, port)
	return strconv.Itoa(port), true
}

func claimBlock() {
	first := firstPort + pool.blocks*blockSize
	pool.blocks++
	guard, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first)))
	if err != nil {
		return
	}
	pool.guards = append(pool.guards, guard)
	for port := first + 1; port < first+blockSize; port++ {
		pool.unused = append(pool.unused, port)
	}
}
