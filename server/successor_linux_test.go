package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func init() { childMains["generation"] = runGeneration }

// runGeneration is one of several servers that follow each other on a port. It drains when its standard
// input ends.
func runGeneration() {
	var loops int
	var address string
	if _, err := fmt.Sscan(os.Getenv("CARILLON_TEST_GENERATION"), &loops, &address); err != nil {
		panic(err)
	}
	s, err := New(Options{Listen: address, Loops: loops, Takeover: true, Endpoints: echoAndBroadcast(),
		Drain: Drain{Duration: 300 * time.Millisecond, Deadline: patience}})
	if err != nil {
		panic(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	go func() {
		<-s.Started()
		for len(s.allShards()) < loops { // each loop has accepted something, so all of them listen
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

func startGeneration(t *testing.T, address string, loops int) *generation {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=generation", fmt.Sprintf("CARILLON_TEST_GENERATION=%d %s", loops, address))
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

// Servers in processes of their own follow each other on one port, while clients keep connecting: as often as
// they can, and each with a request that comes a little after the connection. Every one of them opens a
// connection, with the old server or with the new one.
func TestSuccessorLosesNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()

	old := startGeneration(t, address, 2)
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
				if err := connectOnce(address, time.Duration(i%4)*5*time.Millisecond); err != nil {
					if failed.Add(1) < 10 {
						t.Errorf("a client failed: %v", err)
					}
				}
				opened.Add(1)
			}
		})
	}
	for _, loops := range []int{2, 3, 3} {
		next := startGeneration(t, address, loops)
		_ = old.stdin.Close()
		old.says("ended")
		old = next
	}
	close(stop)
	wg.Wait()
	t.Logf("%d clients, %d of them failed", opened.Load(), failed.Load())
}

func connectOnce(address string, pause time.Duration) error {
	conn, err := net.Dial("tcp", address)
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

// Without takeover a port that is taken stays an error, and a port that nobody has can be taken over too.
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
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		_ = l.Close()
		heir := start(t, Options{Listen: host + ":" + port, Takeover: true, Endpoints: echoAndBroadcast()})
		eventually(t, "each loop's socket is found", func() bool {
			n, err := countListeners(heir.addr)
			return err == nil && n == heir.opts().Loops
		})
	}
}

func TestParseTableAddress(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000:0050":                         "0.0.0.0:80",
		"00000000000000000000000001000000:1F90": "[::1]:8080",
		"00000000000000000000000000000000:FFFF": "[::]:65535",
	} {
		got, err := parseTableAddress(text) // as a machine writes it whose bytes are in little-endian order
		if err != nil || got != netip.MustParseAddrPort(want) {
			t.Errorf("%s is %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0100007F", "0100007F:", "0100:1F90", "0100007F:1F90F", "x100007F:1F90"} {
		if got, err := parseTableAddress(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}
