package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// contestant is a server that takes part in a comparison: a program that is started for each run, or
// one that runs already.
type contestant struct {
	name    string
	program string   // "" for one that runs already
	env     []string // beside our own
	base    string   // ws://host:port of one that runs already
	pid     int      // of one that runs already; 0 if it is not known
}

// peers are the programs of loadtest/peers, in the order of the table.
var peers = []string{"gws", "gorilla", "coder", "gobwas", "nbio", "floor"}

// ourEnv turns off what the peers do not do.
var ourEnv = []string{"CARILLON_LISTEN=127.0.0.1:0", "CARILLON_INTERNAL_LISTEN=off", "CARILLON_PING_INTERVAL=off", "CARILLON_LOG_LEVEL=warn"}

// buildCarillon compiles carillon into a directory. Root is where its source is.
func buildCarillon(ctx context.Context, into string) (c contestant, root string, err error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "carillon").Output()
	root = strings.TrimSpace(string(out))
	if err != nil || root == "" {
		return c, "", errors.New("carillon is built from its source: run this with Go installed, in carillon's repository")
	}
	c = contestant{name: "carillon", program: filepath.Join(into, "carillon"), env: ourEnv}
	return c, root, build(ctx, root, c.program, ".")
}

// buildContestants compiles carillon and its peers into a directory.
func buildContestants(ctx context.Context, into string) ([]contestant, error) {
	carillon, root, err := buildCarillon(ctx, into)
	if err != nil {
		return nil, err
	}
	list := []contestant{carillon}
	for _, name := range peers {
		c := contestant{name: name, program: filepath.Join(into, "peer-"+name)}
		if err := build(ctx, filepath.Join(root, "loadtest", "peers"), c.program, "./"+name); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

func build(ctx context.Context, dir, program, what string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, what)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s in %s: %w\n%s", what, dir, err, text)
	}
	return nil
}

// parsePeer reads the value of --peer.
func parsePeer(text string) (contestant, error) {
	name, rest, ok := strings.Cut(text, "=")
	base, pid, hasPID := strings.Cut(rest, ",")
	c := contestant{name: name, base: strings.TrimSuffix(base, "/")}
	if !ok || name == "" || !strings.HasPrefix(base, "ws://") {
		return c, fmt.Errorf("--peer %s is not of the form NAME=ws://HOST:PORT[,PID]", text)
	}
	if hasPID {
		var err error
		if c.pid, err = strconv.Atoi(pid); err != nil || c.pid < 1 {
			return c, fmt.Errorf("--peer %s: %q is not the number of a process", text, pid)
		}
	}
	return c, nil
}

// running is a contestant at work.
type running struct {
	base string
	pid  int
	cmd  *exec.Cmd
	said *strings.Builder // to standard error
}

var announced = regexp.MustCompile(`listen(?:s|ing) on (\S+)`)

// startLimit is how long a program may take to say where it listens.
const startLimit = 10 * time.Second

// start runs the program and waits until it listens.
func (c *contestant) start() (*running, error) {
	if c.program == "" {
		return &running{base: c.base, pid: c.pid}, nil
	}
	r := &running{cmd: exec.Command(c.program), said: &strings.Builder{}}
	r.cmd.Env = append(os.Environ(), c.env...)
	r.cmd.Stderr = r.said
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	r.pid = r.cmd.Process.Pid
	late := time.AfterFunc(startLimit, func() { _ = r.cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if found := announced.FindStringSubmatch(lines.Text()); found != nil {
			late.Stop()
			r.base = "ws://" + found[1]
			go func() { // or the program would block on a full pipe
				for lines.Scan() {
				}
			}()
			return r, nil
		}
	}
	late.Stop()
	_ = r.cmd.Wait()
	return nil, fmt.Errorf("%s did not say where it listens within %v: %s", c.name, startLimit, strings.TrimSpace(r.said.String()))
}

// stop ends the program, politely at first.
func (r *running) stop() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(3*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer late.Stop()
	_ = r.cmd.Wait()
}
