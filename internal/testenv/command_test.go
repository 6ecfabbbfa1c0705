package testenv

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// childEnv names what this test program does instead of its tests.
const childEnv = "CARILLON_TEST_CHILD"

func TestMain(m *testing.M) {
	v := &verdict{}
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "port":
		fmt.Print(Port(v, "127.0.0.1"))
	case "command":
		startSleeper(Command("sleep", "600"))
	case "group":
		cmd := exec.Command("sh", "-c", "sleep 600 & sleep 600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		startSleeper(cmd)
		EndGroup(v, cmd)
	}
	if os.Getenv(childEnv) != "port" {
		fmt.Println("started")
		time.Sleep(10 * time.Minute)
	}
}

// startSleeper starts a command that holds this process's standard output open.
func startSleeper(cmd *exec.Cmd) {
	cmd.Stdout = os.Stdout
	if err := cmd.Start(); err != nil {
		panic(err)
	}
}

// Killing a test process ends what it has started.
func TestNothingOutlivesTheTests(t *testing.T) {
	for _, kind := range []string{"command", "group"} {
		t.Run(kind, func(t *testing.T) {
			if kind == "command" && runtime.GOOS != "linux" {
				t.Skip("only Linux can do that")
			}
			t.Parallel()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+kind)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout = w
			err = cmd.Start()
			_ = w.Close()
			if err != nil {
				t.Fatal(err)
			}
			out := bufio.NewReader(r)
			if line, err := out.ReadString('\n'); err != nil {
				t.Fatalf("%q, %v", line, err)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			_ = r.SetReadDeadline(time.Now().Add(30 * time.Second))
			if rest, err := io.ReadAll(out); err != nil {
				t.Errorf("something still has its output open: %q, %v", rest, err)
			}
		})
	}
}
