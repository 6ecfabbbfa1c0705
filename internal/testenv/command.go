package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// Command is [exec.Command] for a program that ends with the tests: see [EndWithTests].
func Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	EndWithTests(cmd, syscall.SIGKILL)
	return cmd
}

// CommandContext is [exec.CommandContext] for a program that ends with the tests: see [EndWithTests].
func CommandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	EndWithTests(cmd, syscall.SIGKILL)
	return cmd
}

// Home has a command keep its settings and caches in a directory of the test instead of the user's home.
func Home(cmd *exec.Cmd, dir string) {
	cmd.Env = append(cmd.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir, "XDG_DATA_HOME="+dir)
}

// EndGroup kills the process group that a started command leads, when this process ends or the test does. It is for
// a script with programs in the background, to which the signal of [EndWithTests] does not go.
func EndGroup(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	group := cmd.Process.Pid
	guard := exec.Command("sh", "-c", fmt.Sprintf("read -r end; kill -KILL -%d 2>/dev/null", group))
	guard.Stdin = r
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must not end it before it has done its work
	err = guard.Start()
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.Close()
		_ = guard.Wait()
	})
}
