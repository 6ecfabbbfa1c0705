package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
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
			case "lose": // the descriptor in hand, as if a connection had come in while it was given up
				s.engine.FDReserve.Mu.Lock()
				s.engine.FDReserve.Away.Store(true)
				_ = unix.Close(s.engine.FDReserve.FD)
				s.engine.FDReserve.FD = -1
				s.engine.FDReserve.Mu.Unlock()
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

// comesIn asks for a WebSocket at /echo, and reports whether there is one.
func (c *client) comesIn() bool {
	if _, err := io.WriteString(c.conn, upgradeHead("/echo")); err != nil {
		return false
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(c.r, nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("a stranger is told nothing")
	}
	return err == nil && resp.StatusCode == http.StatusSwitchingProtocols
}

// The application opens files until there is no descriptor left, again and again, while strangers knock. An
// accept that fails would be the end of gnet's engine. The citizen is served throughout; strangers are
// told at once; when the files are closed they may come in.
func TestDescriptorExhaustion(t *testing.T) {
	cmd := testenv.Command(os.Args[0])
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
	s := &Server{engine: reactor.Engine{Started: make(chan struct{})}} // only its address is of interest
	at, _ := net.ResolveTCPAddr("tcp", address)
	s.engine.Listeners = []*reactor.Listener{{Addr: at}}
	close(s.engine.Started)
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
	var inside []*client // on descriptors that were in use for a moment when the application took all
	eventually(t, "a stranger is refused", func() bool {
		if c := dialRaw(t, s); c.comesIn() {
			inside = append(inside, c)
		}
		refused, _ := do("see")
		return refused > 0
	})
	for range 20 {
		do("lose")
		if c := dialRaw(t, s); c.comesIn() {
			t.Fatal("a stranger has the descriptor that was held ready to refuse others")
		}
	}
	before, _ := do("see")
	pester(address, 500, 20)
	z.serves(20)
	refused, unready := do("see")
	if refused == before || unready == 0 {
		t.Errorf("%d strangers were refused for want of a descriptor, %d reasons not to be ready", refused-before, unready)
	}
	for _, c := range inside {
		_ = c.conn.Close()
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
	if n := strings.Count(log.String(), "no file descriptors left"); n == 0 || n > 20 {
		t.Errorf("that there are none is told %d times", n)
	}
}
