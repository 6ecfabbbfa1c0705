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
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/listen"
)

func init() { childMains["generation"] = runGeneration }

// runGeneration is one of several servers that follow each other on two ports and a unix socket. It drains when
// its standard input ends.
func runGeneration() {
	var loops int
	var address, second, path string
	if _, err := fmt.Sscan(os.Getenv("CARILLON_TEST_GENERATION"), &loops, &address, &second, &path); err != nil {
		panic(err)
	}
	s, err := New(Options{Listen: address, Loops: loops, Takeover: true, Endpoints: echoAndBroadcast(),
		Listeners: []Listener{{Listen: "unix:" + path}, {Listen: second}},
		Drain:     Drain{Duration: 300 * time.Millisecond, Deadline: patience}})
	if err != nil {
		panic(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	go func() {
		<-s.Started()
		for len(s.engine.AllShards()) < loops { // each loop has accepted something, so all of them listen
			if conn, err := net.Dial("tcp", address); err == nil {
				_ = conn.Close()
			}
		}
		fmt.Println("started")
		_, _ = io.Copy(io.Discard, os.Stdin)
		drain()
	}()
	if err := s.Run(ctx); err != nil {
		panic(err)
	}
	fmt.Printf("ended, opened %d\n", s.Stats().Opened)
}

type generation struct {
	t     *testing.T
	stdin io.Closer
	lines *bufio.Scanner
}

func startGeneration(t *testing.T, loops int, addresses ...string) *generation {
	t.Helper()
	cmd := testenv.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=generation", fmt.Sprintf("CARILLON_TEST_GENERATION=%d %s", loops, strings.Join(addresses, " ")))
	cmd.Stderr = os.Stderr
	stdin, _ := cmd.StdinPipe()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() }) // so that what it says ends
	t.Cleanup(func() { late.Stop(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	g := &generation{t: t, stdin: stdin, lines: bufio.NewScanner(out)}
	g.says("started")
	return g
}

func (g *generation) says(word string) {
	g.t.Helper()
	if !g.lines.Scan() || !strings.HasPrefix(g.lines.Text(), word) {
		g.t.Fatalf("it says %q, want %q", g.lines.Text(), word)
	}
}

// Servers in processes of their own follow each other on two ports and a unix socket, while clients keep connecting: as
// often as they can, and each with a request that comes a little after the connection. Every one of them opens a
// connection, with the old server or with the new one.
func TestSuccessorLosesNobody(t *testing.T) {
	addresses := []string{freeAddress(t), freeAddress(t), socketPath(t)}
	old := startGeneration(t, 2, addresses...)
	stop := make(chan struct{})
	var opened, failed atomic.Int64
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := connectOnce(addresses[i%3], time.Duration(i%4)*5*time.Millisecond); err != nil {
					if failed.Add(1) < 10 {
						t.Errorf("a client failed: %v", err)
					}
				}
				opened.Add(1)
			}
		})
	}
	for _, loops := range []int{2, 3, 3} {
		next := startGeneration(t, loops, addresses...)
		_ = old.stdin.Close()
		old.says("ended")
		old = next
	}
	close(stop)
	wg.Wait()
	t.Logf("%d clients, %d of them failed", opened.Load(), failed.Load())
	_ = old.stdin.Close()
	old.says("ended")
	if left, _ := os.ReadDir(filepath.Dir(addresses[2])); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func connectOnce(address string, pause time.Duration) error {
	network := "tcp"
	if filepath.IsAbs(address) {
		network = "unix"
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	time.Sleep(pause)
	if _, err := io.WriteString(conn, upgradeHead("/echo")); err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return fmt.Errorf("read the response: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("handshake: %s", resp.Status)
	}
	return nil
}

// Without takeover a port that is taken stays an error, and a port that is free can be taken over too.
func TestTakeover(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	second, err := New(Options{Listen: s.Addr().String(), Endpoints: echoAndBroadcast()})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second server on the port: %v", err)
	}
	foreign, err := net.Listen("tcp", "127.0.0.1:0") // not with SO_REUSEPORT
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	for address, words := range map[string]string{
		foreign.Addr().String(): "in use",
		"127.0.0.1:0":           "port 0",
		"256.0.0.1:1":           "256.0.0.1",
	} {
		s, err := New(Options{Listen: address, Takeover: true, Endpoints: echoAndBroadcast()})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), words) || errors.Is(err, ErrEngine) {
			t.Errorf("taking over %s: %v", address, err)
		}
	}
	for _, host := range []string{"", "127.0.0.1", "[::1]", "localhost"} {
		heir := start(t, Options{Listen: host + ":" + testenv.Port(t, "127.0.0.1"), Takeover: true, Endpoints: echoAndBroadcast()})
		eventually(t, "each loop's socket is found", func() bool {
			n, err := listen.CountListeners(heir.engine.Listeners[0].TCPAddr())
			return err == nil && n == heir.opts().Loops
		})
	}
}

// A successor that shares a unix socket's path takes all who come from then on, and keeps the file when its
// predecessor goes. One that fails on the way changes nothing.
func TestTakeoverOfAUnixSocket(t *testing.T) {
	path, internal := socketPath(t), socketPath(t)
	serve := func(extra string) (*Server, chan error) {
		s, err := New(Options{Listen: "unix:" + path, Takeover: true, Endpoints: []Endpoint{whoAmI()}, Listeners: []Listener{{Listen: extra}},
			Internal: Internal{Listen: "unix:" + internal}})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context()) }()
		return s, ended
	}
	old, oldEnded := serve(freeAddress(t))
	<-old.Started()
	first := dialAt(t, "unix", path).upgrade("/who")
	first.want("invalid AddrPort")

	foreign, err := net.Listen("tcp", "127.0.0.1:0") // not with SO_REUSEPORT
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, ended := serve(foreign.Addr().String()); true {
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("it is %v", err)
		}
	}
	dialAt(t, "unix", path).upgrade("/who")
	if n := old.Count(); n != 2 {
		t.Errorf("the first server has %d connections, want 2", n)
	}

	heir, heirEnded := serve(freeAddress(t))
	<-heir.Started()
	eventually(t, "new connections come to the successor", func() bool {
		dialAt(t, "unix", path).upgrade("/who")
		return heir.Count() > 0
	})
	first.send("still here")
	first.want("still here")
	old.Shutdown(atOnce())
	if err := <-oldEnded; err != nil {
		t.Error(err)
	}
	dialAt(t, "unix", path).upgrade("/who")
	_ = dialAt(t, "unix", internal).conn.Close()
	heir.Shutdown(atOnce())
	if err := <-heirEnded; err != nil {
		t.Error(err)
	}
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(internal)} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	}
}
