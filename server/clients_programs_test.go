package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
)

// The clients of this file were written by others too, and are programs of their own. The scripts are below .ci.

// forPrograms has an endpoint that echoes, and the topic log with its first messages.
func forPrograms(t *testing.T, change func(Options) Options) *Server {
	t.Helper()
	opts := topics(TopicRule{Match: ">", History: 100})
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/echo", Mode: ModeEcho})
	opts.Limits.HandshakeTimeout = 6 * patience // on a busy machine the JDK takes long between connecting and asking
	s := start(t, change(opts))
	for i := range 3 {
		mustPublish(t, s, "log", words(i))
	}
	return s
}

func asTheyAre(o Options) Options { return o }

// runProgram runs a program to its end, which must be a good one.
func runProgram(t *testing.T, env []string, command ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	t.Logf("%s", bytes.TrimSpace(out))
}

// The JDK's WebSocket sends Content-Length: 0, and its HTTP client Upgrade: h2c.
func TestJDK(t *testing.T) {
	java, _ := testenv.Program(t, "java"), testenv.Program(t, "javac") // which java needs for a file of source
	s := forPrograms(t, asTheyAre)
	runProgram(t, nil, java, filepath.Join("..", ".ci", "jdk", "Check.java"), s.Addr().String())
}

// Python's libraries send an Origin: websocket-client http:// even over TLS before version 1.3, ws4py ws:// and wss://.
func TestPythonClients(t *testing.T) {
	a := newAuthority(t)
	for module, script := range map[string]string{"websocket": "check_websocket_client.py", "ws4py.client": "check_ws4py.py"} {
		t.Run(module, func(t *testing.T) {
			python := testenv.Python(t, module)
			for _, change := range []func(Options) Options{asTheyAre, a.overTLS} {
				s := forPrograms(t, change)
				runProgram(t, []string{"CA_FILE=" + a.file()}, python, filepath.Join("..", ".ci", "python", script), strings.TrimSuffix(s.URL("/"), "/"))
				if n := s.Stats().Refusals[RefuseOrigin]; n > 0 {
					t.Errorf("%d were refused for their origin", n)
				}
			}
		})
	}
}

// program is one that runs until the test ends, and says something line by line.
type program struct {
	t     *testing.T
	lines chan string
}

func startProgram(t *testing.T, command ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, lines: make(chan string, 1000)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(p.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", command, &errs)
		}
	})
	return p
}

func (p *program) line() string {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			p.t.Fatal("the program has ended")
		}
		return line
	case <-time.After(6 * patience): // it has to start first
		p.t.Fatal("the program says nothing")
	}
	return ""
}

func (p *program) wants(want string) {
	p.t.Helper()
	if got := p.line(); got != want {
		p.t.Fatalf("the program says %q, want %q", got, want)
	}
}

// readsEvents has the npm package eventsource read the topic log from an address, and come back when its stream ends.
func readsEvents(t *testing.T, s *Server, address string) {
	t.Helper()
	node := testenv.Node(t, "eventsource")
	info, _ := s.Topic("log")
	p := startProgram(t, node, filepath.Join("..", ".ci", "npm", "events.mjs"), "http://"+address+"/ws?topic=log&last=3")
	message := func(i int) string { return fmt.Sprintf("message %s:%d %s", info.Epoch, i+1, words(i)) }
	p.wants("open")
	for i := range 3 {
		p.wants(message(i))
	}
	mustPublish(t, s, "log", words(3))
	p.wants(message(3))
	for c := range s.Conns() {
		if err := c.Close(codec.CloseServiceRestart, "come back; retry=50"); err != nil {
			t.Error(err)
		}
	}
	p.wants("error none")
	mustPublish(t, s, "log", words(4))
	p.wants("open")
	p.wants(message(4)) // Last-Event-ID has passed
}

// A stock nginx, unless it is of 2026, speaks HTTP/1.0 with the servers behind it.
func TestEventSourceBehindNginx(t *testing.T) {
	nginx := testenv.Program(t, "nginx")
	s := forPrograms(t, func(o Options) Options { o.HTTP = http.HandlerFunc(mirror); return o })
	balancer, dir := freeAddress(t), t.TempDir()
	runBalancer(t, balancer, nginx, "-e", "stderr", "-p", dir, "-c", writeFile(t, "nginx.conf", fmt.Sprintf(`
daemon off;
master_process off;
pid %[1]s/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	server {
		listen %[3]s;
		location / { proxy_pass http://%[2]s; proxy_http_version 1.0; }
	}
}
`, dir, s.Addr(), balancer)))
	readsEvents(t, s, balancer)
	_, page := fetch(t, browser(t), mustRequest(t, "http://"+balancer+"/page"))
	if !strings.HasPrefix(page, "GET /page HTTP/1.0") {
		t.Errorf("the page is %q", page)
	}
}

func mustRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A proxy that compresses would hold back events until it has enough of them.
func TestCompressingProxy(t *testing.T) {
	node := testenv.Node(t, "express", "compression", "http-proxy-middleware")
	s := forPrograms(t, asTheyAre)
	proxy := startProgram(t, node, filepath.Join("..", ".ci", "npm", "proxy.mjs"), "http://"+s.Addr().String())
	address := proxy.line()
	readsEvents(t, s, address)

	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.write([]byte(upgradeHead("/echo")))
	if resp := c.response(); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("a WebSocket through the proxy: %s", resp.Status)
	}
	c.send("hello")
	c.want("hello")
}
