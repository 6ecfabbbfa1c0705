package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/internal/testenv"
)

// The balancers' configurations in deploy/ are run as they are, but for addresses, ports, files and limits.

// long is how long a test waits for what takes other programs some time. It is for a machine that is busy with other
// tests: no test that passes waits for it.
const long = 3 * time.Minute

// eventually waits for what must happen.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(long); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// freePort is a port of an address where nothing listens.
func freePort(t *testing.T, ip string) string {
	t.Helper()
	return testenv.Port(t, ip)
}

// site is a balancer of deploy/ with two servers behind it, or more.
type site struct {
	t       *testing.T
	address string // of the balancer
	dir     string
	servers []*behind
}

// serverNames are what the balancer calls them.
var serverNames = []string{"one", "two", "three"}

// behind is a place for one server after the other, at the same addresses.
type behind struct {
	t                       *testing.T
	public, internal, agent string
	env                     []string
	path                    string   // of the program; if empty, the one that these tests are for
	enter                   []string // the command that runs it elsewhere, if any
	p                       *program
}

const sitePaths = "endpoints: [{path: /ws, mode: topics}]\ntopics: [{match: \">\", history: 10000, max_bytes: 64MiB}]\n"

func newSite(t *testing.T, env ...string) *site {
	t.Helper()
	s := prepareSite(t, 2, sitePaths, env...)
	for _, b := range s.servers {
		b.start(s.dir)
	}
	return s
}

// prepareSite finds places for servers, and starts none.
func prepareSite(t *testing.T, servers int, config string, env ...string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), address: "127.0.0.9:" + freePort(t, "127.0.0.9")}
	s.write(config)
	for i := range servers {
		ip := fmt.Sprintf("127.0.0.%d", 11+i)
		b := &behind{t: t, public: ip + ":" + freePort(t, ip), internal: ip + ":" + freePort(t, ip), agent: ip + ":" + freePort(t, ip)}
		b.env = append(b.places(), env...)
		s.servers = append(s.servers, b)
	}
	return s
}

// write writes the servers' configuration.
func (s *site) write(config string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "carillon.yaml"), []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// places tell a server where to listen.
func (b *behind) places() []string {
	return []string{"CARILLON_LISTEN=" + b.public, "CARILLON_INTERNAL_LISTEN=" + b.internal, "CARILLON_AGENT_LISTEN=" + b.agent}
}

// start begins the next server of the place, and waits until it listens.
func (b *behind) start(dir string) {
	b.t.Helper()
	b.begin(dir)
	b.p.until("Stop with")
}

func (b *behind) begin(dir string) {
	b.t.Helper()
	path := b.path
	if path == "" {
		var err error
		if path, err = binary(); err != nil {
			b.t.Fatalf("build: %v", err)
		}
	}
	command := append(slices.Clone(b.enter), path, "--config", filepath.Join(dir, "carillon.yaml"))
	b.p = startCommand(b.t, b.env, exec.Command(command[0], command[1:]...))
}

// adapt changes a configuration of deploy/. What is to be replaced must be there.
func adapt(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("there is no %q", pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// variant takes the lines of an alternative, each in the place of one that its pattern, if any, matches.
func variant(t *testing.T, text, name, instead string) string {
	t.Helper()
	if name == "" {
		return text
	}
	if instead != "" {
		text = regexp.MustCompile(`(?m)^\t*`+instead+`.*\n`).ReplaceAllString(text, "")
	}
	return adapt(t, text, "# with "+name+": ", "")
}

// certificate writes a key and its certificate for the balancer, and returns a pool that trusts it.
func certificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "balancer"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP("127.0.0.9")}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	for name, text := range map[string][]byte{"carillon.crt": crt, "carillon.key": private, "carillon.pem": append(crt, private...)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(crt)
	return pool
}

// read is a file of deploy/.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// mayChangeUser reports whether a program that is started here can become another user. Only root can, unless it is
// root of an ordinary user's namespace, into which no other user is mapped.
func mayChangeUser() bool {
	if os.Getuid() != 0 {
		return false
	}
	text, err := os.ReadFile("/proc/self/uid_map") // first user here, first user outside, how many
	fields := strings.Fields(string(text))
	return err != nil || len(fields) != 3 || fields[2] != "1"
}

// haproxy writes the configuration for a site and returns the command that runs it.
func (s *site) haproxy(program, with string) *exec.Cmd {
	t := s.t
	t.Helper()
	text := read(t, "haproxy.cfg")
	instead := map[string]string{"TLS": "bind :80", "PROXY": "(server (one|two)|option forwardfor|http-request)", "ports": "server (one|two) "}[with]
	text = variant(t, text, with, instead)
	for i := 2; i < len(s.servers); i++ {
		last := fmt.Sprintf("\tserver %s 10.0.0.%d:8080 agent-port 8082\n", serverNames[i-1], i)
		text = adapt(t, text, last, last+fmt.Sprintf("\tserver %s 10.0.0.%d:8080 agent-port 8082\n", serverNames[i], i+1))
	}
	bind := "bind :80"
	if with == "TLS" {
		bind = "bind :443"
		text = adapt(t, text, "/etc/haproxy/carillon.pem", filepath.Join(s.dir, "carillon.pem"))
	}
	pairs := []string{bind, "bind " + s.address, "maxconn 100000", "maxconn 6000", "/run/haproxy/admin.sock", s.socket(),
		"check inter 2s", "check inter 200ms", "agent-inter 2s", "agent-inter 200ms"}
	for i, b := range s.servers {
		_, port, _ := net.SplitHostPort(b.agent)
		pairs = append(pairs, fmt.Sprintf("10.0.0.%d:8080 agent-port 8082", i+1), b.public+" agent-port "+port)
	}
	if with == "ports" {
		pairs = append(pairs, "10.0.0.91", "127.0.0.91", "10.0.0.92", "127.0.0.92")
	}
	text = adapt(t, text, pairs...)
	if !mayChangeUser() {
		text = adapt(t, text, "\tuser haproxy\n", "", "\tgroup haproxy\n", "")
	}
	file := filepath.Join(s.dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "-c", "-f", file).CombinedOutput(); err != nil || bytes.Contains(out, []byte("WARNING")) {
		t.Fatalf("haproxy -c: %v\n%s", err, out)
	}
	return exec.Command(program, "-db", "-f", file)
}

func (s *site) socket() string { return filepath.Join(s.dir, "admin.sock") }

// nginx does the same.
func (s *site) nginx(program, with string) *exec.Cmd {
	t := s.t
	t.Helper()
	instead := map[string]string{"TLS": "listen 80", "PROXY": "listen 80"}[with]
	text := variant(t, read(t, "nginx.conf"), with, instead)
	listen := "listen 80 "
	if with == "TLS" {
		listen = "listen 443 "
		text = adapt(t, text, "/etc/nginx/carillon.", filepath.Join(s.dir, "carillon."))
	}
	pairs := []string{listen, "listen " + s.address + " ", "worker_rlimit_nofile 100000", "worker_rlimit_nofile 15000",
		"worker_connections 50000", "worker_connections 15000", "/run/nginx.pid", filepath.Join(s.dir, "nginx.pid"),
		"10.0.0.1:8080", s.servers[0].public, "10.0.0.2:8080", s.servers[1].public,
		"http {\n", fmt.Sprintf("http {\nclient_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;\n", s.dir)}
	switch with {
	case "PROXY":
		pairs = append(pairs, "set_real_ip_from 10.0.0.8", "set_real_ip_from 127.0.0.8")
	case "ports":
		pairs = append(pairs, "10.0.0.91", "127.0.0.91", "10.0.0.92", "127.0.0.92")
	}
	text = adapt(t, text, pairs...)
	if !mayChangeUser() {
		text = adapt(t, text, "user www-data;\n", "")
	}
	file := filepath.Join(s.dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "-t", "-q", "-e", "stderr", "-p", s.dir, "-c", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("nginx -t: %v\n%s", err, out)
	}
	cmd := exec.Command(program, "-e", "stderr", "-p", s.dir, "-g", "daemon off;", "-c", file)
	testenv.EndWithTests(cmd, syscall.SIGTERM) // or its workers stay
	return cmd
}

// run starts a balancer and waits until it takes connections.
func (s *site) run(cmd *exec.Cmd) {
	t := s.t
	t.Helper()
	out := &testenv.Recording{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // both end at once, nginx with its workers
		late := time.AfterFunc(soon, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
		if t.Failed() {
			t.Logf("%s says:\n%s", cmd.Path, out)
		}
	})
	eventually(t, cmd.Path+" listens", func() bool {
		conn, err := net.Dial("tcp", s.address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

// connection is what a server says about one.
type connection struct{ Address string }

func (b *behind) connections() (list []connection) {
	b.t.Helper()
	var page struct{ Connections []connection }
	if err := json.Unmarshal([]byte(ask(b.t, "GET", "http://"+b.internal+"/v1/connections", "")), &page); err != nil {
		b.t.Fatal(err)
	}
	return page.Connections
}

// Clients of several addresses come through each balancer with each of its alternatives, speak WebSocket,
// server-sent events and plain HTTP, and both servers know them by their own addresses.
func TestBalancerFiles(t *testing.T) {
	trusted := []string{"CARILLON_TRUSTED_PROXIES=[127.0.0.1, 127.0.0.91, 127.0.0.92]"}
	proxied := []string{"CARILLON_PROXY_PROTOCOL_MODE=required", "CARILLON_PROXY_PROTOCOL_FROM=[127.0.0.1]"}
	for _, row := range []struct {
		program, with string
		env           []string
		port          bool // the servers are told the clients' ports, too
	}{
		{"haproxy", "", trusted, false},
		{"haproxy", "TLS", trusted, false},
		{"haproxy", "PROXY", proxied, true},
		{"haproxy", "ports", trusted, false},
		{"nginx", "", trusted, false},
		{"nginx", "TLS", trusted, false},
		{"nginx", "PROXY", trusted, false},
		{"nginx", "ports", trusted, false},
	} {
		t.Run(strings.TrimSpace(row.program+" "+row.with), func(t *testing.T) {
			program := testenv.Program(t, row.program)
			s := newSite(t, append(row.env, "CARILLON_DEMO=true")...)
			v := &visitor{s: s, scheme: "", port: row.port, preface: row.program == "nginx" && row.with == "PROXY"}
			if row.with == "TLS" {
				v.trusts, v.scheme = certificate(t, s.dir), "s"
			}
			if row.program == "haproxy" {
				s.run(s.haproxy(program, row.with))
			} else {
				s.run(s.nginx(program, row.with))
			}
			for i := range 8 {
				v.visits(fmt.Sprintf("127.0.0.%d", 101+i))
			}
			var seen [2]int
			for i, b := range s.servers {
				for _, c := range b.connections() {
					seen[i]++
					if !v.here[c.Address] {
						t.Errorf("a server has a client at %s; there are %v", c.Address, v.here)
					}
				}
			}
			if seen[0] == 0 || seen[1] == 0 || seen[0]+seen[1] != 16 {
				t.Errorf("the servers have %v", seen)
			}
		})
	}
}

// visitor opens connections through a balancer.
type visitor struct {
	s       *site
	scheme  string // "s" with TLS
	trusts  *x509.CertPool
	port    bool
	preface bool // a balancer before this one says who the client is, in the PROXY protocol
	here    map[string]bool
}

// visits gets a page, a WebSocket and a stream of events. The last two stay open, and are expected to be seen.
func (v *visitor) visits(source string) {
	t := v.s.t
	t.Helper()
	if v.here == nil {
		v.here = map[string]bool{}
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: soon}
	if v.preface {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP("127.0.0.8")}
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, "tcp", v.s.address)
		if err != nil {
			return nil, err
		}
		if v.preface {
			_, err = fmt.Fprintf(conn, "PROXY TCP4 %s 127.0.0.9 4711 80\r\n", source)
		}
		v.here[source+":0"] = !v.port
		v.here[conn.LocalAddr().String()] = v.port
		return conn, err
	}
	trust := &tls.Config{RootCAs: v.trusts}
	pretends := http.Header{"X-Forwarded-For": {"198.51.100.66"}, "X-Real-Ip": {"198.51.100.66"}, "Origin": {"http" + v.scheme + "://" + v.s.address}}

	url := "http" + v.scheme + "://" + v.s.address
	client := &http.Client{Transport: &http.Transport{DialContext: dial, TLSClientConfig: trust}}
	resp, err := client.Get(url + "/carillon.js")
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	client.CloseIdleConnections()

	ws := websocket.Dialer{NetDialContext: dial, TLSClientConfig: trust, Subprotocols: []string{"carillon.v1.json"}}
	conn, resp, err := ws.Dial("ws"+v.scheme+"://"+v.s.address+"/ws", pretends)
	if err != nil {
		t.Fatal(resp, err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(long))
	say(t, conn, `{"id":1,"ping":{}}`)
	hear(t, conn, `{"id":1,"pong":{}}`)

	r, err := http.NewRequest("GET", url+"/ws?topic=a", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = pretends.Clone()
	r.Header.Set("Accept", "text/event-stream")
	if resp, err = client.Do(r); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	begins := make([]byte, len("event: subscribed"))
	if _, err := io.ReadFull(resp.Body, begins); err != nil || !strings.Contains(string(begins), "subscribed") {
		t.Errorf("a stream begins %q, %v", begins, err) // nothing of it may wait for more
	}
}
