package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/loadtest/internal/wsclient"
)

var buildDir string // removed after the last test

var buildOnce = sync.OnceValues(func() (program string, err error) {
	if buildDir, err = os.MkdirTemp("", "loadtest-"); err == nil {
		program = filepath.Join(buildDir, "carillon")
		err = build(context.Background(), "..", program, ".")
	}
	return program, err
})

// carillon returns this repository's server, which the first test that needs it builds.
func carillon(t *testing.T) (program string) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a server")
	}
	program, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// startCarillon runs this repository's server on a free port. It returns the base of its URLs and its
// process ID.
func startCarillon(t *testing.T) (url string, pid int) {
	t.Helper()
	program, config := carillon(t), filepath.Join(t.TempDir(), "config.yaml")
	err := os.WriteFile(config, []byte(`
listen: 127.0.0.1:0
internal: {listen: off}
endpoints:
  - {path: /echo, mode: echo}
  - {path: /broadcast, mode: broadcast}
  - {path: /small, mode: echo, subprotocols: [chat], compression: {enabled: true, threshold: off}}
  - {path: /smallcast, mode: broadcast, compression: {enabled: true, threshold: off}}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := testenv.CommandContext(ctx, program, "--config", config)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the server does not start: %v", err)
		}
		if m := regexp.MustCompile(`ws://\S+:\d+`).FindString(line); m != "" {
			go io.Copy(io.Discard, lines)
			return m, cmd.Process.Pid
		}
	}
}

func TestCarillon(t *testing.T) {
	t.Parallel()
	url, pid := startCarillon(t)
	for _, tt := range []struct {
		name, command, path string
		change              func(o *options)
	}{
		{"echo on schedule", "echo", "/echo", nil},
		{"echo as fast as possible", "echo", "/echo", func(o *options) { o.Rate, o.Depth = 0, 1 }},
		{"echo as fast as possible, 32 deep, two processes", "echo", "/echo", func(o *options) { o.Rate, o.Depth, o.Processes = 0, 32, 2 }},
		{"echo, compressed, with a subprotocol", "echo", "/small", func(o *options) {
			o.Compression, o.Text, o.Size, o.Subprotocols = true, true, 1000, []string{"chat"}
		}},
		{"fanout on schedule", "fanout", "/broadcast", func(o *options) { o.Connections, o.Rate, o.Publishers = 500, 100, 3 }},
		{"fanout as fast as possible", "fanout", "/broadcast", func(o *options) { o.Connections, o.Rate, o.Processes = 200, 0, 2 }},
		{"fanout, compressed", "fanout", "/smallcast", func(o *options) { o.Connections, o.Rate, o.Compression = 100, 200, true }},
		{"fanout of large messages", "fanout", "/broadcast", func(o *options) { o.Connections, o.Rate, o.Size = 10, 20, 500_000 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := measure(t.Context(), small(tt.command, url+tt.path, tt.change), nil)
			m := whole(t, r)
			if m.Missing+m.Duplicated+m.Reordered+m.Foreign != 0 || m.Received == 0 || m.Received != m.Expected || r.Latency.Count != m.Received {
				t.Errorf("%+v\n%q", m, r.Warnings)
			}
			if runtime.GOOS == "linux" && (r.Server == nil || r.Server.PID != pid || r.Server.RSS == 0) {
				t.Errorf("the server's process is %d, and this was measured: %+v", pid, r.Server)
			}
		})
	}
	t.Run("idle", func(t *testing.T) {
		r := measure(t.Context(), small("idle", url+"/echo", func(o *options) { o.Connections, o.Processes = 1000, 2 }), nil)
		if r.Error != "" || r.Connections.Opened != 1000 || r.Connections.Lost != 0 {
			t.Errorf("%q, %+v", r.Error, r.Connections)
		}
	})
	t.Run("storm", func(t *testing.T) {
		r := measure(t.Context(), small("storm", url+"/echo", func(o *options) { o.Connections, o.Processes = 500, 2 }), nil)
		if r.Error != "" || r.Storm == nil || r.Storm.Back100 == 0 || r.Connections.Lost != 0 {
			t.Errorf("%q, %+v", r.Error, r.Storm)
		}
	})
	t.Run("no such path", func(t *testing.T) {
		r := measure(t.Context(), small("echo", url+"/nowhere", nil), nil)
		if !strings.HasPrefix(r.Error, "HTTP 404 Not Found") {
			t.Errorf("error %q", r.Error)
		}
	})
}

// Servers started for the run are measured, named if they die, and stopped afterwards.
func TestStartedServers(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a server")
	}
	o := small("echo", "", func(o *options) { o.URLs, o.Start, o.Connections, o.Processes = nil, 2, 30, 2 })
	r := measureStarted(t.Context(), *o, io.Discard, nil)
	if m := whole(t, r); m.Received == 0 || m.Missing != 0 || len(undue(r)) != 0 || r.Connections.Opened != 30 {
		t.Errorf("%+v, %+v\n%q", m, r.Connections, r.Warnings)
	}
	if r.Name != "carillon" || r.URL != "/echo of 2 servers started for the run" {
		t.Errorf("%s, %s", r.Name, r.URL)
	}
	if runtime.GOOS != "linux" {
		return
	}
	if r.Server == nil || r.Server.Processes != 2 || r.Server.RSS < 2<<20 {
		t.Fatalf("%+v", r.Server)
	}
	if _, err := usageOf(r.Server.PID); err == nil {
		t.Errorf("the server, process %d, goes on after the run", r.Server.PID)
	}

	o.Duration = 2 * time.Second
	list, err := startServers(t.Context(), o, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer stopServers(list)
	for _, s := range list {
		o.URLs = append(o.URLs, s.base+"/echo")
	}
	o.Start = 0
	r = measure(t.Context(), o, func(l progress) {
		if l.phase == "sending" {
			list[1].cmd.Process.Kill()
		}
	})
	said := strings.Join(r.Warnings, "\n")
	for _, want := range []string{
		fmt.Sprintf("process %d at %s exited ", list[1].pid, o.URLs[1]), "all 15 connections to " + o.URLs[1] + " were lost",
	} {
		if r.Error != "" || !strings.Contains(said, want) || strings.Contains(said, o.URLs[0]) {
			t.Errorf("error %q, and the warnings do not say %q, or speak of the other server: %q", r.Error, want, r.Warnings)
		}
	}
	if s := r.Server; s.Processes != 2 || s.RSS < s.RSSBefore/2 || s.CPUSeconds < 0 || s.Cores < 0 {
		t.Errorf("%+v", s)
	}
}

// Servers started for fanout form a cluster: each message reaches all connections of all servers once.
func TestStartedCluster(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a server")
	}
	o := small("fanout", "", func(o *options) { o.URLs, o.Start, o.Connections, o.Processes = nil, 3, 30, 2 })
	r := measureStarted(t.Context(), *o, io.Discard, nil)
	if m := whole(t, r); m.Received == 0 || m.Missing != 0 || m.Duplicated != 0 || len(undue(r)) != 0 || r.Connections.Opened != 30 {
		t.Errorf("%+v, %+v\n%q", m, r.Connections, r.Warnings)
	}
	if r.URL != "/broadcast of a cluster of 3 servers started for the run" {
		t.Error(r.URL)
	}
}

// Messages are published through an HTTP endpoint of the application.
func TestPublishOverHTTP(t *testing.T) {
	t.Parallel()
	server := (&faulty{broadcast: true}).serve(t)
	refuse := false
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if refuse || r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer x" {
			http.Error(w, "not you", http.StatusForbidden)
			return
		}
		server.message(nil, wsclient.OpBinary, body)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer app.Close()
	change := func(o *options) {
		o.PublishURL, o.PublishHeader, o.Rate, o.Publishers, o.Processes = app.URL, []string{"Authorization: Bearer x"}, 100, 3, 2
	}
	r := measure(t.Context(), small("fanout", server.url, change), nil)
	m := whole(t, r)
	if m.Sent == 0 || m.Sent+m.Unsent != 40 || m.Received != 6*m.Sent || m.Missing+m.Foreign+m.Duplicated != 0 ||
		r.Completion == nil || r.Completion.Count != m.Sent {
		t.Errorf("%+v, completion %+v", m, r.Completion)
	}
	refuse = true
	r = measure(t.Context(), small("fanout", server.url, change), nil)
	if !strings.Contains(r.Error, "nothing could be published: HTTP 403 Forbidden: not you") {
		t.Errorf("error %q", r.Error)
	}
}
