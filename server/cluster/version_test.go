package cluster

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/topic"
)

func TestVersionsAreCompared(t *testing.T) {
	for _, row := range []struct {
		have  string
		older bool
	}{
		{"2.9.10", true},
		{"v2.9.10", true},
		{"1.99.0", true},
		{"2.10.27", false},
		{"2.10.0-RC.1", false},
		{"2.11.0", false},
		{"3.0.0", false},
		{"2.10", false},
		{"dev", false},
		{"2.x", false},
		{"", false},
	} {
		if got := isOlder(row.have, leastVersion); got != row.older {
			t.Errorf("%q is older than %s: %v", row.have, leastVersion, got)
		}
	}
}

// pretender is a NATS server that says which version it is, and does nothing else. It reads until deaf is closed.
func pretender(t *testing.T, version string, deaf <-chan struct{}) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			fmt.Fprintf(c, "INFO {\"server_id\":\"A\",\"version\":%q,\"proto\":1,\"headers\":true,\"jetstream\":true,\"max_payload\":1048576}\r\n", version)
			go func() {
				for lines := bufio.NewScanner(c); lines.Scan(); {
					if lines.Text() == "PING" {
						fmt.Fprint(c, "PONG\r\n")
					}
					select {
					case <-deaf:
						return
					default:
					}
				}
			}()
		}
	}()
	return "nats://" + l.Addr().String()
}

func TestANATSServerThatIsTooOldEndsTheStart(t *testing.T) {
	_, err := tryJoin(t, Options{NATS: NATS{URL: pretender(t, "2.9.10", nil)}}, topic.Rule{Match: ">", History: 3})
	if err == nil || !strings.Contains(err.Error(), "nats-server 2.9.10") || !strings.Contains(err.Error(), "need 2.10 or later") {
		t.Errorf("the error is %v", err)
	}
	join(t, Options{NATS: NATS{URL: pretender(t, "2.9.10", nil)}}) // without history there is nothing that needs more
}

// runPackaged starts it with JetStream on a port that it chooses.
func runPackaged(t *testing.T, path string) (url string) {
	t.Helper()
	dir := t.TempDir()
	cmd := testenv.Command(path, "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", filepath.Join(dir, "store"), "--ports_file_dir", dir)
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		endCommand(cmd, syscall.SIGTERM)
		if text, _ := os.ReadFile(out.Name()); t.Failed() {
			t.Logf("nats-server:\n%s", text)
		}
	})
	eventually(t, "nats-server listens", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "*.ports"))
		for _, file := range files {
			text, _ := os.ReadFile(file)
			if _, rest, found := strings.Cut(string(text), `"nats://`); found {
				address, _, whole := strings.Cut(rest, `"`)
				url = "nats://" + address
				return whole
			}
		}
		return false
	})
	return url
}

// endCommand ends a program by a signal, and at last by force.
func endCommand(cmd *exec.Cmd, signal os.Signal) {
	_ = cmd.Process.Signal(signal)
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	late.Stop()
}

func packagedVersion(t *testing.T, path string) string {
	t.Helper()
	version, err := exec.Command(path, "--version").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, version)
	}
	t.Logf("%s", version)
	_, number, _ := strings.Cut(strings.TrimSpace(string(version)), " v")
	return number
}

// A distribution's nats-server may be older than what this repository's modules have. Debian 12 has 2.9: good for
// topics without history and for broadcasts, and a server that is to keep topics in it says what it needs. Debian 13
// has 2.10, which knows no requests for many messages.
func TestThePackagedNATSServer(t *testing.T) {
	t.Parallel()
	path := testenv.Program(t, "nats-server")
	number := packagedVersion(t, path)
	o := Options{NATS: NATS{URL: runPackaged(t, path)}}

	alice, bob := join(t, o), join(t, o)
	alice.knows(2)
	bob.follow("a.*")
	for i := range 100 {
		if err := alice.publish("a.b", fmt.Sprint(i), uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all come", func() bool { return len(bob.all()) == 100 })
	for i, p := range bob.all() {
		if p.payload != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, p.payload)
		}
	}
	sent := make(chan error, 1)
	alice.Broadcast("/broadcast", codec.OpText, []byte("x"), 1, func(err error) { sent <- err })
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the broadcast comes", func() bool { return len(bob.Broadcasts()) == 1 })

	rule := topic.Rule{Match: "kept.>", History: 100}
	cathy, err := tryJoin(t, o, rule)
	if isOlder(number, leastVersion) {
		if err == nil || !strings.Contains(err.Error(), "nats-server "+number) || !strings.Contains(err.Error(), "need "+leastVersion+" or later") {
			t.Errorf("with history: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	cathy.follow("kept.a")
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprint(i))
		if _, err := cathy.store("kept.a", want[i], want[i]); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all come to the follower", func() bool { return len(cathy.allKept()) == 100 })
	for _, after := range []uint64{0, 42} {
		k, err := join(t, o, rule).load("kept.a", after)
		if err != nil || k.Since != after || !slices.Equal(payloads(k.Messages), want[after:]) {
			t.Errorf("after %d: since %d, %v, %v", after, k.Since, payloads(k.Messages), err)
		}
	}
}
