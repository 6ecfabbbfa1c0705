package testenv

import (
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// No port is returned twice, none that is taken, and none that the kernel gives to a connection.
func TestPortsAreOfThisProcessOnly(t *testing.T) {
	end := 32768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if end, err = strconv.Atoi(strings.Fields(string(text))[0]); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for range 3 * blockSize {
		text := Port(t, "127.0.0.1")
		if port, err := strconv.Atoi(text); err != nil || seen[text] || port < firstPort || port >= end {
			t.Fatalf("port %q, %v; seen %v; want one from %d to %d", text, err, seen[text], firstPort, end)
		}
		seen[text] = true
	}
	pool.Lock()
	next := "127.0.0.1:" + strconv.Itoa(pool.unused[0])
	pool.Unlock()
	taken, err := net.Listen("tcp", next)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if address := Address(t); address == next {
		t.Errorf("%s is taken", address)
	}
}

func TestOtherProcessesHaveOtherPorts(t *testing.T) {
	mine := Port(t, "127.0.0.1")
	cmd := Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=port")
	theirs, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	a, _ := strconv.Atoi(mine)
	if b, err := strconv.Atoi(string(theirs)); err != nil || a/blockSize == b/blockSize {
		t.Errorf("ports %s and %q, %v", mine, theirs, err)
	}
}
