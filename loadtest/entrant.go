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

// entrant is a server in a comparison: a program that is started for each run, or a running server.
type entrant struct {
	name    string
	program string   // empty for a running server
	env     []string // added to our own
	base    string   // ws://host:port of a running server
	pid     int      // of a running server; 0 if unknown
}

// peers are the programs of loadtest/peers, in the order of the table.
var peers = []string{"gws", "gorilla", "coder", "gobwas", "nbio", "floor"}

// carillonEnv disables what the peers do not have.
var carillonEnv = []string{"CARILLON_LISTEN=127.0.0.1:0", "CARILLON_INTERNAL_LISTEN=off", "CARILLON_PING_INTERVAL=off", "CARILLON_LOG_LEVEL=warn"}

// buildCarillon builds carillon in a directory. Root is the directory of its source.
func buildCarillon(ctx context.Context, into string) (c entrant, root string, err error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "carillon").Output()
	root = strings.TrimSpace(string(out))
	if err != nil || root == "" {
		return c, "", errors.New("carillon is built from source: run this in its repository, with Go installed")
	}
	c = entrant{name: "carillon", program: filepath.Join(into, "carillon"), env: carillonEnv}
	return c, root, build(ctx, root, c.program, ".")
}

// buildEntrants builds carillon and its peers in a directory.
func buildEntrants(ctx context.Context, into string) ([]entrant, error) {
	carillon, root, err := buildCarillon(ctx, into)
	if err != nil {
		return nil, err
	}
	list := []entrant{carillon}
	for _, name := range peers {
		c := entrant{name: name, program: filepath.Join(into, "peer-"+name)}
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

// parsePeer parses the value of --peer.
func parsePeer(text string) (entrant, error) {
	name, rest, ok := strings.Cut(text, "=")
	base, pid, hasPID := strings.Cut(rest, ",")
	c := entrant{name: name, base: strings.TrimSuffix(base, "/")}
	if !ok || name == "" || !strings.HasPrefix(base, "ws://") {
		return c, fmt.Errorf("--peer %s is not of the form NAME=ws://HOST:PORT[,PID]", text)
	}
	if hasPID {
		var err error
		if c.pid, err = strconv.Atoi(pid); err != nil || c.pid < 1 {
			return c, fmt.Errorf("--peer %s: invalid process ID %q", text, pid)
		}
	}
	return c, nil
}

// instance is a running entrant.
type instance struct {
	base   string
	pid    int
	cmd    *exec.Cmd
	stderr *strings.Builder
}

var listenLine = regexp.MustCompile(`listen(?:s|ing) on (\S+)`)

// startTimeout is how long a program may take to print its address.
const startTimeout = 10 * time.Second

// start runs the program and waits until it listens.
func (c *entrant) start() (*instance, error) {
	if c.program == "" {
		return &instance{base: c.base, pid: c.pid}, nil
	}
	r := &instance{cmd: exec.Command(c.program), stderr: &strings.Builder{}}
	r.cmd.Env = append(os.Environ(), c.env...)
	r.cmd.Stderr = r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that Ctrl-C does not reach it
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	r.pid = r.cmd.Process.Pid
	late := time.AfterFunc(startTimeout, func() { _ = r.cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if found := listenLine.FindStringSubmatch(lines.Text()); found != nil {
			late.Stop()
			r.base = "ws://" + found[1]
			go func() { // so that the program does not block on a full pipe
				for lines.Scan() {
				}
			}()
			return r, nil
		}
	}
	late.Stop()
	_ = r.cmd.Wait()
	return nil, fmt.Errorf("%s printed no listen address within %v: %s", c.name, startTimeout, strings.TrimSpace(r.stderr.String()))
}

// stop terminates the program, and kills it after 3 seconds.
func (r *instance) stop() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(3*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer late.Stop()
	_ = r.cmd.Wait()
}
