package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() { childMains["files of its own"] = serveBesideFiles }

// serveBesideFiles is a server with few descriptors whose application opens files: each line of its standard
// input says what it does with them.
func serveBesideFiles() {
	limit := unix.Rlimit{Cur: fewDescriptors, Max: fewDescriptors}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		panic(err)
	}
	s, err := New(Options{Listen: "127.0.0.1:0", Loops: 2, Endpoints: besieged(), Drain: Drain{Duration: -1}})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-s.Started()
		fmt.Println(s.Addr())
		var files []*os.File
		take := func() {
			for {
				f, err := os.Open(os.DevNull)
				if err != nil {
					return
				}
				files = append(files, f)
			}
		}
		drop := func() {
			for _, f := range files {
				_ = f.Close()
			}
			files = nil
		}
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			switch lines.Text() {
			case "take": // all there are
				take()
			case "drop":
				drop()
			case "both": // all there are, and none, hundreds of times
				for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
					take()
					drop()
				}
			}
			fmt.Println(s.Stats().Refusals[RefuseDescriptors], len(s.unready()), heapBytes()>>10, runtime.NumGoroutine())
		}
		cancel()
	}()
	if err := s.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// pester asks for n connections, many at a time, and does not wait for what becomes of them.
func pester(address string, n, atOnce int) {
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for range n / atOnce {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					continue
				}
				_, _ = io.WriteString(conn, upgradeHead("/echo"))
				_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				_, _ = conn.Read(make([]byte, 256))
				_ = conn.Close()
			}
		})
	}
	all.Wait()
}

// The application opens files until there is no descriptor left, again and again, while strangers knock. An
// accept that fails would be the end of gnet's engine. The citizen is served throughout; strangers are
// told at once; when the files are closed they may come in.
func TestDescriptorExhaustion(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=files of its own")
	var log logBuffer
	cmd.Stderr = &log
	stdin, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	var address string
	if _, err := fmt.Fscan(out, &address); err != nil {
		t.Fatal(err)
	}
	s := &Server{started: make(chan struct{})} // only its address is of interest
	at, _ := net.ResolveTCPAddr("tcp", address)
	s.listeners = []*listener{{addr: at}}
	close(s.started)
	var heap, goroutines int
	do := func(what string) (refused, unready int) {
		t.Helper()
		if _, err := fmt.Fprintln(stdin, what); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscan(out, &refused, &unready, &heap, &goroutines); err != nil {
			t.Fatalf("%s: %v; the log says\n%s", what, err, &log)
		}
		return refused, unready
	}
	z := settle(t, s)

	do("see")
	heapBefore, goroutinesBefore := heap, goroutines
	do("take")
	pester(address, 500, 20)
	z.serves(20)
	refused, unready := do("see")
	if refused == 0 || unready == 0 {
		t.Errorf("%d strangers were refused for want of a descriptor, %d reasons not to be ready", refused, unready)
	}
	do("drop")
	bob := dialPatiently(t, s)
	bob.send("there is room")
	bob.want("there is room")

	storm := make(chan struct{})
	go func() {
		defer close(storm)
		pester(address, 3000, 50)
	}()
	for range 3 {
		do("both")
		z.serves(20)
	}
	<-storm
	bob.send("still")
	bob.want("still")
	_ = dialPatiently(t, s).conn.Close()
	eventually(t, "it is ready again", func() bool { _, unready := do("see"); return unready == 0 })
	z.serves(20)
	if heap > heapBefore+heapSlack>>10 || goroutines > goroutinesBefore+goroutineSlack {
		t.Errorf("before it was %d KiB and %d goroutines, now it is %d and %d", heapBefore, goroutinesBefore, heap, goroutines)
	}
	z.leave()
	_ = bob.conn.Close()
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, &log)
	}
	if n := strings.Count(log.String(), "no descriptor is left"); n == 0 || n > 20 {
		t.Errorf("that there are none is told %d times", n)
	}
}
