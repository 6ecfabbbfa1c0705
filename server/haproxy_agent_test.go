package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// withAgent is a server for a number of connections, with a port for agent checks.
func withAgent(t *testing.T, connections int) *Server {
	return start(t, Options{
		Endpoints: echoAndBroadcast(), Agent: Agent{Listen: "127.0.0.1:0"},
		Limits: Limits{MaxConnections: connections, MaxMemory: 1 << 50},
	})
}

// agentSays asks the port as HAProxy does, and sends something first as it does when it is told to.
func agentSays(t *testing.T, s *Server, send string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.agent.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, send); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(all)
}

// agentWords is the format of HAProxy's manual: words between spaces, tabs or commas, at most up to a
// sharp, and the end of the line.
var agentWords = regexp.MustCompile(`^(?:(?:ready|drain|maint|up|down|[0-9]{1,3}%)[ \t,]*)+(?:#[^\r\n]*)?\n$`)

func wantAgent(t *testing.T, s *Server, want string) {
	t.Helper()
	got := agentSays(t, s, "")
	if got != want+"\n" || !agentWords.MatchString(got) {
		t.Errorf("the agent says %q, want %q", got, want)
	}
}

// minutesLater makes the server as old as one that "ready" has been said of for long enough.
func (s *Server) minutesLater() { s.ops.settled.Store(int64(s.engine.Uptime() - 2*readyAfter)) }

// A server's life, as HAProxy sees it.
func TestAgent(t *testing.T) {
	s := withAgent(t, 4)
	wantAgent(t, s, "ready up 100%")
	s.minutesLater()
	wantAgent(t, s, "up 100%")
	alice := dial(t, s, "/echo")
	wantAgent(t, s, "up 75%")
	var others []*client
	for range 3 {
		others = append(others, dial(t, s, "/echo"))
	}
	wantAgent(t, s, "up 0%")
	s.SetMaintenance(true)
	wantAgent(t, s, "maint")
	s.SetMaintenance(false)
	wantAgent(t, s, "ready up 0%")
	for _, c := range others {
		_ = c.conn.Close()
	}
	eventually(t, "only alice is left", func() bool { return s.Stats().Sockets == 1 })
	wantAgent(t, s, "ready up 75%")
	s.minutesLater()
	eventually(t, "there is too much in memory", func() bool {
		s.memory.over.Store(true) // until it is looked at again
		return agentSays(t, s, "") == "up 0%\n"
	})
	s.Shutdown(context.Background())
	eventually(t, "it drains", s.engine.Draining.Load)
	wantAgent(t, s, "drain")
	alice.wantClose(1001, "")
	_ = alice.conn.Close()
	eventually(t, "the port is closed", func() bool {
		conn, err := net.Dial("tcp", s.agent.listener.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}

// One place of a thousand is left: that is not none.
func TestAgentRoundsUp(t *testing.T) {
	t.Parallel()
	s := withAgent(t, 1000)
	s.minutesLater()
	for _, row := range []struct {
		sockets int64
		want    string
	}{{0, "up 100%"}, {1, "up 99%"}, {130, "up 87%"}, {999, "up 1%"}, {1000, "up 0%"}, {1010, "up 0%"}} {
		s.engine.Sockets.Store(row.sockets)
		if got := s.agentLine(); got != row.want+"\n" {
			t.Errorf("%d sockets: %q, want %q", row.sockets, got, row.want)
		}
	}
	s.engine.Sockets.Store(0)
}

func TestAgentBeforeTheStart(t *testing.T) {
	s, err := New(Options{Endpoints: echoAndBroadcast(), Agent: Agent{Listen: "127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.agentLine(); got != "down # starting\n" || !agentWords.MatchString(got) || s.AgentAddr() != nil {
		t.Errorf("%q at %v", got, s.AgentAddr())
	}
	if off := start(t, Options{Endpoints: echoAndBroadcast()}); off.AgentAddr() != nil {
		t.Errorf("off, but at %v", off.AgentAddr())
	}
}

// A client that sends something is answered all the same, and one that stays for ever does not keep others out.
func TestAgentClients(t *testing.T) {
	t.Parallel()
	s := withAgent(t, 10)
	s.minutesLater()
	for _, send := range []string{"", "backend/server\n", strings.Repeat("x", 3000)} {
		if got := agentSays(t, s, send); got != "up 100%\n" {
			t.Errorf("to %.20q: %q", send, got)
		}
	}
	var idle []net.Conn
	for range 3 * maxAgentConns {
		conn, err := net.Dial("tcp", s.AgentAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	begin := time.Now()
	wantAgent(t, s, "up 100%")
	if took := time.Since(begin); took > 4*agentTime+patience/2 {
		t.Errorf("it took %v", took)
	}
	for _, conn := range idle {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "up 100%\n" {
			t.Errorf("%q, %v", line, err)
		}
	}
}

func TestAgentOptions(t *testing.T) {
	for _, row := range []struct {
		opts  Options
		words string
	}{
		{Options{}, ""},
		{Options{Agent: Agent{Listen: ":8082"}}, ""},
		{Options{Agent: Agent{Listen: "8082"}}, "host:port, such as 127.0.0.1:8082, or off"},
		{Options{Agent: Agent{Listen: ":8080"}}, "already the address of listen"},
		{Options{Agent: Agent{Listen: ":8081"}, Internal: Internal{Listen: "127.0.0.1:8081"}}, "already the address of internal.listen"},
	} {
		_, err := row.opts.Resolve()
		if (err == nil) != (row.words == "") || err != nil && (!strings.HasPrefix(err.Error(), "agent.listen: ") || !strings.Contains(err.Error(), row.words)) {
			t.Errorf("%+v: %v", row.opts.Agent, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := New(Options{Listen: "127.0.0.1:0", Endpoints: echoAndBroadcast(), Agent: Agent{Listen: l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "agent.listen: listen tcp "+l.Addr().String()+": bind: address already in use") {
		t.Errorf("the port is taken: %v", err)
	}
}

// A real HAProxy does what the agent says: it takes the weight, stops sending, and comes back.
func TestHAProxyAgent(t *testing.T) {
	program := testenv.Program(t, "haproxy")
	s := withAgent(t, 4)
	dir := t.TempDir()
	socket := filepath.Join(dir, "stats")
	_, port, _ := net.SplitHostPort(s.AgentAddr().String())
	config := fmt.Sprintf(`global
    stats socket %s level admin
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
listen front
    bind %s
    option httpchk GET /healthz
    server one %s weight 200 check inter 50 agent-check agent-port %s agent-inter 50
`, socket, freeAddress(t), s.Addr(), port)
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	output := &logBuffer{}
	cmd := testenv.Command(program, "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	// The manual, "show servers state": columns 6 to 9 are the operational and the administrative state
	// (1 maintenance, 8 drain, both by force), and the weight now and as it was configured.
	state := func() string {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "show servers state front\n")
		all, _ := io.ReadAll(conn)
		for line := range strings.Lines(string(all)) {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "one" {
				return fmt.Sprintf("operational %s, administrative %s, weight %s of %s", f[5], f[6], f[7], f[8])
			}
		}
		return string(all)
	}
	wantState := func(want string) {
		t.Helper()
		for end := time.Now().Add(patience); state() != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("HAProxy has %s, want %s\n%s", state(), want, output)
			}
		}
	}
	s.minutesLater()
	// The health check's own connections come and go, each of which is a quarter.
	alice, bob := dial(t, s, "/echo"), dial(t, s, "/echo")
	wantState("operational 2, administrative 0, weight 100 of 200")
	s.SetMaintenance(true)
	eventually(t, "HAProxy is in maintenance", func() bool { return strings.Contains(state(), "administrative 1,") })
	alice.send("still here")
	alice.want("still here")
	s.SetMaintenance(false)
	wantState("operational 2, administrative 0, weight 100 of 200")
	_ = bob.conn.Close()
	wantState("operational 2, administrative 0, weight 150 of 200")
	s.Shutdown(context.Background())
	eventually(t, "HAProxy drains it", func() bool { return strings.Contains(state(), "administrative 8,") })
	alice.wantClose(1001, "")
	_ = alice.conn.Close()
}
