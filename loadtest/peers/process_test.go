// Package peers holds tests of the programs in the directories below, the servers that carillon is
// compared with. README.md says what each of them is.
package peers

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// A peer is a program and what it can do besides echo and broadcast of small messages.
type peer struct {
	name        string
	compression bool
	queue       bool // it has -queue
	large       bool // messages of more than 32 KiB, up to 1 MiB
	empty       bool // messages of 0 bytes
	racy        bool // the race detector does not understand it
}

var all = []peer{
	{name: "gorilla", compression: true, queue: true, large: true, empty: true},
	{name: "coder", compression: true, queue: true, large: true, empty: true},
	{name: "gws", compression: true, queue: true, large: true, empty: true},
	{name: "gobwas", compression: true, queue: true, large: true, empty: true},

	// The library drops empty messages. It hands what it accepts to its event loops through epoll, an
	// order that the race detector does not see.
	{name: "nbio", compression: true, queue: true, large: true, racy: true},

	{name: "floor", empty: true},
}

var programs string // the directory with the built peers

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "peers"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(programs)
		for _, p := range all {
			if err := p.build(); err != nil {
				return 1
			}
		}
		return m.Run()
	}())
}

func (p peer) build() error {
	if p.absent() {
		return nil
	}
	args := []string{"build", "-o", programs}
	if raceEnabled && !p.racy {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./"+p.name)...)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

func (p peer) absent() bool { return p.name == "floor" && runtime.GOOS != "linux" }

// each runs a test for every peer that there is on this system.
func each(t *testing.T, test func(t *testing.T, p peer)) {
	for _, p := range all {
		t.Run(p.name, func(t *testing.T) {
			if p.absent() {
				t.Skip("the floor is epoll")
			}
			test(t, p)
		})
	}
}

var ready = regexp.MustCompile(`^listening on (127\.0\.0\.1:\d+)\n$`)

// start runs a peer until the test ends, and returns its address. However the test went, the peer must
// have printed one line, and SIGTERM must end it with status 0.
func start(t *testing.T, p peer, args ...string) (addr string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(programs, p.name), append([]string{"-listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // else it ends a second later
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	out := bufio.NewReader(stdout)
	line, _ := out.ReadString('\n')
	t.Cleanup(func() {
		kill.Reset(15 * time.Second)
		_ = cmd.Process.Signal(syscall.SIGTERM)
		rest, _ := io.ReadAll(out)
		if len(rest) > 0 {
			t.Errorf("printed more than its address: %q", rest)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
		kill.Stop()
	})
	match := ready.FindStringSubmatch(line)
	if match == nil {
		t.Fatalf("printed %q, want its address", line)
	}
	return match[1]
}
