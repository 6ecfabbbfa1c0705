package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"carillon/internal/testenv"
	"carillon/loadtest/internal/generator"

	"golang.org/x/sys/unix"
)

func TestListenersAreFound(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	server := (&faulty{}).serve(t)
	o := small("idle", server.url, nil)
	target, err := resolveTarget(t.Context(), o, server.url, generator.SourceRange{})
	if err != nil {
		t.Fatal(err)
	}
	closed := netip.AddrPortFrom(target.Address.Addr(), 1)
	pids := listeners([]netip.AddrPort{closed, target.Address})
	if len(pids) != 2 || len(pids[0]) != 0 || len(pids[1]) != 1 || pids[1][0] != os.Getpid() {
		t.Errorf("%v, want none and this process, %d", pids, os.Getpid())
	}
	c, err := usageOf(os.Getpid())
	if err != nil || c.rss < 1<<20 || c.threads < 1 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := usageOf(1 << 30); err == nil {
		t.Error("a process that cannot be is found")
	}
	if d := pssOf(os.Getpid()); d < 1<<20 {
		t.Errorf("PSS %d", d)
	}
}

// Processes that share an address by SO_REUSEPORT are one server, and their usage is added up.
func TestProcessesThatShareAnAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	ours, err := shared.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := shared.Listen(t.Context(), "tcp", ours.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	file, err := theirs.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	other := testenv.Command("sleep", "60")
	other.ExtraFiles = []*os.File{file}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Process.Kill()
	theirs.Close()
	file.Close()

	here := generator.Target{URL: "ws://here/", Address: netip.MustParseAddrPort(ours.Addr().String())}
	elsewhere := generator.Target{URL: "ws://elsewhere/", Address: netip.MustParseAddrPort("192.0.2.1:80")}
	s, err := newMonitor(nil, []generator.Target{here, elsewhere})
	if err != nil || len(s.processes) != 2 || !strings.Contains(s.caveat, "leave out ws://elsewhere/:") {
		t.Fatalf("%+v, %v", s, err)
	}
	own, _ := usageOf(os.Getpid())
	if c, living, ok := s.total(); !ok || c.rss <= own.rss || living != c.rss || c.threads <= own.threads {
		t.Errorf("%+v of both, %+v of one", c, own)
	}
	before, _, _ := s.total()
	other.Process.Kill()
	other.Wait()
	after, living, ok := s.total()
	if !ok || after.cpu < before.cpu || living >= after.rss {
		t.Errorf("%+v before one ended, %+v after it, of which %d B live", before, after, living)
	}
	if gone := s.gone(); len(gone) != 1 || gone[0].String() != fmt.Sprintf("process %d at ws://here/", other.Process.Pid) {
		t.Errorf("gone are %v", gone)
	}

	both, err := newMonitor([]int{os.Getpid(), os.Getppid(), os.Getpid()}, nil)
	if err != nil || len(both.processes) != 2 || both.processes[0].pid != os.Getpid() {
		t.Errorf("the processes that were named: %+v, %v", both, err)
	}
	if _, err := newMonitor([]int{os.Getpid(), 1 << 30}, nil); err == nil || !strings.Contains(err.Error(), "--pid 1073741824: ") {
		t.Errorf("one of two processes does not exist, and this is said: %v", err)
	}
}

func TestUsageIsTheSumOfAllProcesses(t *testing.T) {
	s := monitor{processes: []*process{
		{last: usage{cpu: 1, rss: 20, threads: 300}, ended: 1}, {last: usage{cpu: 4, rss: 50, threads: 600}, ended: 1},
	}}
	sum, living, ok := s.total()
	if sum.cpu != 5 || sum.rss != 70 || sum.threads != 900 || living != 0 || ok {
		t.Errorf("%+v, %d B of the living, %v", sum, living, ok)
	}
}
