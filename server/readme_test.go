package server_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/internal/testenv"
	"carillon/server"
)

// goBlocks returns the Go code of README.md and docs/library.md: whole programs, and parts of this package's tests.
func goBlocks(t *testing.T) (programs, parts []string) {
	t.Helper()
	for _, name := range []string{"../README.md", "../docs/library.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		blocks := strings.Split(string(text), "```go\n")[1:]
		if len(blocks) == 0 {
			t.Errorf("%s has no Go code", name)
		}
		for _, block := range blocks {
			block, _, _ = strings.Cut(block, "```")
			if strings.HasPrefix(block, "package main\n") {
				programs = append(programs, block)
			} else {
				parts = append(parts, block)
			}
		}
	}
	return programs, parts
}

// The program in README.md has ten lines, and is an echo server.
func TestReadmeProgram(t *testing.T) {
	t.Parallel()
	programs, _ := goBlocks(t)
	if len(programs) != 1 {
		t.Fatalf("the documents have %d programs, want 1", len(programs))
	}
	source := programs[0]
	lines := 0
	for line := range strings.Lines(source) {
		if strings.TrimSpace(line) != "" {
			lines++
		}
	}
	if lines > 10 {
		t.Errorf("it has %d lines, want at most ten", lines)
	}
	address := freeAddress(t)
	if !strings.Contains(source, `":8080"`) {
		t.Fatal("it does not listen on :8080")
	}
	source = strings.Replace(source, ":8080", address, 1)
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	program := strings.TrimSuffix(file, ".go")
	for _, args := range [][]string{{"vet", file}, {"build", "-o", program, file}} {
		if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", args[0], err, out)
		}
	}
	cmd := testenv.CommandContext(t.Context(), program)
	output := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client := dialPatiently(t, "ws://"+address+"/echo")
	say(client, "hello")
	if got := hear(client); got != "hello" {
		t.Errorf("it says %q", got)
	}
	_ = client.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if output.Len() > 0 {
		t.Errorf("it prints %s", output)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	return testenv.Address(t)
}

func dialPatiently(t *testing.T, url string) *websocket.Conn {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		client, _, err := websocket.DefaultDialer.Dial(url, nil)
		if err == nil {
			return client
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// All other Go code in README.md and docs/library.md stands in this package's tests, line by line, and so is
// compiled and run.
func TestReadmeParts(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := ""
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tests += unindented(string(text))
	}
	_, parts := goBlocks(t)
	if len(parts) == 0 {
		t.Error("there are none")
	}
	for _, part := range parts {
		if !strings.Contains(tests, unindented(part)) {
			t.Errorf("no test has\n%s", part)
		}
	}
}

// unindented is text without the white space around each line.
func unindented(text string) string {
	var b strings.Builder
	for scan := bufio.NewScanner(strings.NewReader(text)); scan.Scan(); {
		fmt.Fprintln(&b, strings.TrimSpace(scan.Text()))
	}
	return b.String()
}

// serve starts a server for a test and returns the URL of its endpoints, without their path.
func serve(t *testing.T, endpoints ...server.Endpoint) string {
	t.Helper()
	s, err := server.New(server.Options{Listen: "127.0.0.1:0", Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	select {
	case <-s.Started():
	case err := <-ended:
		t.Fatal(err)
	}
	return "ws://" + s.Addr().String()
}

// A test of an application: several servers at once, each on a port of its own.
func TestServeInATest(t *testing.T) {
	for _, word := range []string{"ding", "dong"} {
		t.Run(word, func(t *testing.T) {
			t.Parallel()
			url := serve(t, server.Endpoint{Path: "/waker", Handler: server.Handler{
				Open: func(c *server.Conn) { _ = c.Send(server.Text, []byte(word)) },
			}})
			client := dialPatiently(t, url+"/waker")
			defer client.Close()
			if got := hear(client); got != word {
				t.Errorf("got %q, want %q", got, word)
			}
		})
	}
}
