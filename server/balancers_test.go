package server

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// The balancers of this file were written by others.

// freeAddress is one where nothing listens, for a program that cannot be told to choose.
func freeAddress(t *testing.T) string {
	t.Helper()
	return testenv.Address(t)
}

// runBalancer runs a program that listens on an address until the test ends.
func runBalancer(t *testing.T, address string, command ...string) {
	t.Helper()
	log := &logBuffer{}
	program := testenv.Command(command[0], command[1:]...)
	program.Stdout, program.Stderr = log, log
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = program.Process.Kill()
		_ = program.Wait()
		if t.Failed() {
			t.Logf("%s says:\n%s", command[0], log)
		}
	})
	eventually(t, command[0]+" listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// asks opens a WebSocket and a page through a balancer, from an address of its own, and checks that the
// server knows that one. Without port, the balancer does not tell it.
func asks(t *testing.T, balancer, source string, port bool) {
	t.Helper()
	open := func() (*client, string) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		conn, err := dialer.Dial("tcp", balancer)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		want := conn.LocalAddr().String()
		if !port {
			want = source + ":0"
		}
		return &client{t: t, conn: conn, r: bufio.NewReader(conn)}, want
	}
	c, want := open()
	c.write([]byte(upgradeHead("/who", "X-Forwarded-For: 198.51.100.66", "Origin: http://example.com")))
	if resp := c.response(); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answered %s", resp.Status)
	}
	c.want(want)
	c.send("hello")
	c.want("hello")

	c, want = open()
	for range 2 {
		c.write([]byte(requestHead("GET / HTTP/1.1", "X-Forwarded-For: 198.51.100.66")))
		if got := c.wantPage("GET /").Header.Get("X-Remote"); got != want {
			t.Errorf("the page is for %s, want %s", got, want)
		}
	}
}

// Clients from several addresses come through a real balancer, in each way that it has to tell who they are.
func TestHAProxy(t *testing.T) {
	t.Parallel()
	haproxy := testenv.Program(t, "haproxy")
	proxy := ProxyProtocol{Mode: ProxyRequired, From: []string{"127.0.0.1"}}
	for _, test := range []struct {
		sentence, mode, server, option string
		opts                           Options
		port                           bool
	}{
		{"send-proxy", "tcp", "send-proxy check check-send-proxy inter 100ms", "", Options{ProxyProtocol: proxy}, true},
		{"send-proxy-v2", "tcp", "send-proxy-v2 check inter 100ms", "", Options{ProxyProtocol: proxy}, true},
		{"send-proxy-v2 with extensions", "tcp", "send-proxy-v2 proxy-v2-options unique-id,crc32c set-proxy-v2-tlv-fmt(0xE1) x", "unique-id-format %[uuid()]", Options{ProxyProtocol: proxy}, true},
		{"option forwardfor", "http", "", "option forwardfor", Options{TrustedProxies: []string{"127.0.0.1"}}, false},
		{"send-proxy-v2 over a unix socket", "tcp", "send-proxy-v2 check inter 100ms", "",
			Options{Listen: "unix:" + socketPath(t), ProxyProtocol: ProxyProtocol{Mode: ProxyRequired, From: []string{"unix"}}}, true},
		{"option forwardfor over a unix socket", "http", "", "option forwardfor",
			Options{Listen: "unix:" + socketPath(t), TrustedProxies: []string{"unix"}}, false},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			test.opts.Endpoints, test.opts.HTTP = []Endpoint{whoAmI()}, http.HandlerFunc(mirror)
			s := start(t, test.opts)
			balancer := freeAddress(t)
			if version, _ := exec.Command(haproxy, "-v").Output(); strings.HasPrefix(string(version), "HAProxy version 2.") {
				test.server = strings.Replace(test.server, " set-proxy-v2-tlv-fmt(0xE1) x", "", 1) // new in 3.0
			}
			runBalancer(t, balancer, haproxy, "-db", "-f", writeFile(t, "haproxy.cfg", fmt.Sprintf(`
defaults
	mode %s
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	timeout tunnel 60s
	%s
listen balancer
	bind %s
	server carillon %s %s
`, test.mode, test.option, balancer, s.Addr(), test.server)))
			for _, source := range []string{"127.0.0.7", "127.0.0.8"} {
				asks(t, balancer, source, test.port)
			}
			if strings.Contains(test.server, "check") { // those of the balancer itself are taken, too
				time.Sleep(300 * time.Millisecond)
			}
			if st := s.Stats(); st.Refusals[RefuseProxyMalformed] > 0 || st.Refusals[RefuseProxyMissing] > 0 {
				t.Errorf("refused: %v", st.Refusals)
			}
		})
	}
}

func TestNginx(t *testing.T) {
	nginx := testenv.Program(t, "nginx")
	t.Run("over TCP", func(t *testing.T) {
		s := start(t, Options{Endpoints: []Endpoint{whoAmI()}, HTTP: http.HandlerFunc(mirror), TrustedProxies: []string{"127.0.0.1"}})
		throughNginx(t, nginx, s.Addr().String())
	})
	t.Run("over a unix socket", func(t *testing.T) {
		address := "unix:" + socketPath(t)
		start(t, Options{Listen: address, Endpoints: []Endpoint{whoAmI()}, HTTP: http.HandlerFunc(mirror), TrustedProxies: []string{"unix"}})
		throughNginx(t, nginx, address)
	})
}

func throughNginx(t *testing.T, nginx, server string) {
	t.Helper()
	balancer := freeAddress(t)
	dir := t.TempDir()
	runBalancer(t, balancer, nginx, "-e", "stderr", "-p", dir, "-c", writeFile(t, "nginx.conf", fmt.Sprintf(`
daemon off;
master_process off;
pid %[1]s/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
	upstream carillon { server %[2]s; keepalive 4; }
	server {
		listen %[3]s;
		location / {
			proxy_pass http://carillon;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $connection_upgrade;
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_set_header X-Forwarded-Proto $scheme;
		}
	}
}
`, dir, server, balancer)))
	for _, source := range []string{"127.0.0.7", "127.0.0.8"} {
		asks(t, balancer, source, false)
	}
}
