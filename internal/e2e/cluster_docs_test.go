package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"carillon/internal/testenv"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// natsEnv makes this test a nats-server, for commands that need one.
const natsEnv = "CARILLON_TEST_NATS_SERVER"

// runNATS is nats-server.
func runNATS() int {
	options, err := natsserver.ConfigureOptions(flag.NewFlagSet("nats-server", flag.ContinueOnError), os.Args[1:],
		func() {}, func() {}, func() {})
	if err == nil {
		var s *natsserver.Server
		if s, err = natsserver.NewServer(options); err == nil {
			err = natsserver.Run(s)
			s.WaitForShutdown()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// commands returns the commands of docs/cluster.md that belong together, as one script.
func commands(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("docs/cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, m := range regexp.MustCompile("(?s)<!-- test: "+name+" -->\n```sh\n(.*?)```").FindAllSubmatch(text, -1) {
		script.Write(m[1])
	}
	if script.Len() == 0 {
		t.Fatalf("docs/cluster.md has no commands for %s", name)
	}
	return script.String()
}

// freePrefix finds four digits behind which 1, 2 and 3 make ports that are free.
func freePrefix(t *testing.T, not map[string]bool) string {
	t.Helper()
	for p := 2000 + os.Getpid()%1000; p < 3200; p++ {
		prefix := fmt.Sprint(p)
		free := !not[prefix]
		for n := 1; n <= 3 && free; n++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%s%d", prefix, n))
			if free = err == nil; free {
				l.Close()
			}
		}
		if free {
			not[prefix] = true
			return prefix
		}
	}
	t.Fatal("no ports are free")
	return ""
}

// follow runs the commands that belong together in a directory, with other ports.
func follow(t *testing.T, dir, tools, name string) (output string, err error) {
	t.Helper()
	script, taken := commands(t, name), map[string]bool{}
	for _, prefix := range []string{"900", "910", "920"} {
		script = strings.ReplaceAll(script, ":"+prefix, ":"+freePrefix(t, taken))
	}
	script = strings.ReplaceAll(script, "-p 9201", "-p "+regexp.MustCompile(`nats://127.0.0.1:(\d+)`).FindStringSubmatch(script + "nats://127.0.0.1:1")[1])
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-eu", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Minute
	if err = cmd.Start(); err == nil {
		testenv.EndGroup(t, cmd)
		err = cmd.Wait()
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // what is still stopping would hold the directory
	if ctx.Err() != nil {
		t.Errorf("the commands do not end:\n%s", out.Bytes())
	}
	return out.String(), err
}

// withTools returns a directory with the program, and with a nats-server that is a script.
func withTools(t *testing.T, natsServer string) (dir string) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.Symlink(path, filepath.Join(dir, "carillon")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nats-server"), []byte("#!/bin/sh\n"+natsServer+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Where the nodes end at their start, as with a nats-server that is too old, the commands end with an error that says
// why.
func TestTheCommandsOfTheClusterDocumentEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Setenv("CARILLON_CLUSTER_START_TIMEOUT", "1s")
	out, err := follow(t, t.TempDir(), withTools(t, "exit 1"), "servers")
	if err == nil || !strings.Contains(out, "cluster.start_timeout, 1s, has passed") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestTheCommandsOfTheClusterDocumentWork(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tools := withTools(t, fmt.Sprintf("exec env %s=1 '%s' \"$@\"", natsEnv, self))
	for _, test := range []struct {
		name  string
		files map[string][]string // what they have in the end, in this order
	}{
		{"embedded", map[string][]string{"three/heard.json": {"AAPL 187.20"}, "three/both.json": {"AAPL 187.20", "AAPL 187.30"}}},
		{"servers", map[string][]string{"two/heard.json": {"AAPL 187.20"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if out, err := follow(t, dir, tools, test.name); err != nil {
				logs, _ := exec.Command("sh", "-c", "tail -n 30 "+dir+"/*/*.log").CombinedOutput()
				t.Fatalf("%v\n%s\n%s", err, out, logs)
			}
			for file, want := range test.files {
				text, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil {
					t.Fatal(err)
				}
				rest := string(text)
				for _, w := range want {
					_, after, found := strings.Cut(rest, w)
					if !found {
						t.Errorf("%s has no %q in its place:\n%s", file, w, text)
					}
					rest = after
				}
			}
		})
	}
}
