package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"carillon/internal/testenv"
)

// networkEnv is set in a process of these tests that has a network of its own.
const networkEnv = "CARILLON_TEST_NETWORK"

// inNetwork runs the test once more, in a process that has a network of its own, and reports whether this is that
// process.
func inNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(networkEnv) != "" {
		http.DefaultTransport = withToken{http.DefaultTransport}
		return true
	}
	for _, program := range []string{"ip", "bridge", "nsenter", "haproxy"} {
		testenv.Program(t, program)
	}
	path, err := binary()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(t.Name()), "/", "$/^") + "$"
	cmd := testenv.Command(self, "-test.run="+pattern, "-test.v", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), networkEnv+"=1", binaryEnv+"="+path)
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EUSERS) {
		testenv.Missing(t, "a network of its own (root, or namespaces for users)", err)
	}
	t.Logf("in a network of its own:\n%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// withToken shows the token that a server wants whose internal interface can be reached from other machines.
type withToken struct{ http.RoundTripper }

const networkToken = "only-the-machines-of-the-test-know-it"

func (w withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+networkToken)
	return w.RoundTripper.RoundTrip(r)
}

// network is two bridges. Each machine is a network namespace that is connected to both: clients, balancers and
// requests of the test come by the front, where this process is, too; the machines reach each other by the back.
type network struct {
	t        *testing.T
	machines []*machine
}

type machine struct {
	n           *network
	number      int
	pid         int // of a process that holds the namespace
	front, back string
}

// frontDoor is this process's address. These addresses are for documents (RFC 5737): they are in use nowhere.
const frontDoor = "192.0.2.1"

func newNetwork(t *testing.T, machines int) *network {
	t.Helper()
	n := &network{t: t}
	n.do("ip", "link", "set", "lo", "up")
	for _, bridge := range []string{"front", "back"} {
		n.do("ip", "link", "add", bridge, "type", "bridge")
		n.do("ip", "link", "set", bridge, "up")
	}
	n.do("ip", "address", "add", frontDoor+"/24", "dev", "front")
	for range machines {
		n.add()
	}
	return n
}

// do runs a command that must succeed.
func (n *network) do(program string, args ...string) {
	n.t.Helper()
	if out, err := exec.Command(testenv.Program(n.t, program), args...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

func (n *network) add() {
	t := n.t
	t.Helper()
	i := len(n.machines)
	holder := testenv.Command("cat")
	holder.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	r, w := io.Pipe()
	holder.Stdin = r
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Close()
		_ = holder.Wait()
	})
	m := &machine{n: n, number: i, pid: holder.Process.Pid, front: fmt.Sprint("192.0.2.", 11+i), back: fmt.Sprint("198.51.100.", 11+i)}
	n.machines = append(n.machines, m)
	m.do("ip", "link", "set", "lo", "up")
	for bridge, address := range map[string]string{"front": m.front, "back": m.back} {
		n.do("ip", "link", "add", m.port(bridge), "type", "veth", "peer", "name", bridge, "netns", fmt.Sprint(m.pid))
		n.do("ip", "link", "set", m.port(bridge), "master", bridge, "up")
		m.do("ip", "address", "add", address+"/24", "dev", bridge)
		m.do("ip", "link", "set", bridge, "up")
	}
}

// port is the machine's end at a bridge.
func (m *machine) port(bridge string) string { return fmt.Sprint(bridge, m.number) }

// enter is what runs a command on the machine.
func (m *machine) enter() []string {
	return []string{testenv.Program(m.n.t, "nsenter"), "-t", fmt.Sprint(m.pid), "-n", "--"}
}

func (m *machine) do(args ...string) {
	m.n.t.Helper()
	args = append(m.enter(), args...)
	m.n.do(args[0], args[1:]...)
}

// cut has bridges drop everything from and to the machine silently, or ends that.
func (m *machine) cut(cut bool, bridges ...string) {
	m.n.t.Helper()
	state := "3" // forwarding
	if cut {
		state = "0" // disabled
	}
	for _, bridge := range bridges {
		m.n.do("bridge", "link", "set", "dev", m.port(bridge), "state", state)
	}
}

// site has a server on each of the first machines.
func (n *network) site(servers int, config string) *site {
	t := n.t
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), address: "127.0.0.9:8080"}
	s.write(config)
	for _, m := range n.machines[:servers] {
		b := &behind{t: t, public: m.front + ":8080", internal: m.front + ":8081", agent: m.front + ":8082", enter: m.enter()}
		b.env = append(b.places(), "CARILLON_TRUSTED_PROXIES=["+frontDoor+"]", "CARILLON_INTERNAL_TOKEN="+networkToken)
		s.servers = append(s.servers, b)
	}
	return s
}

// embedded is a cluster with a node on each machine, whose NATS servers talk by the back.
func (n *network) embedded(config string) *site {
	n.t.Helper()
	s := n.site(len(n.machines), config)
	var routes []string
	for _, m := range n.machines {
		routes = append(routes, m.back+":6222")
	}
	s.join(routes)
	return s
}

// around is a cluster around a NATS server on the last machine, to which the nodes talk by the back.
func (n *network) around(config string) *site {
	t := n.t
	t.Helper()
	m := n.machines[len(n.machines)-1]
	server := &natsServer{t: t, client: m.back + ":4222", monitor: m.front + ":8222", file: filepath.Join(t.TempDir(), "nats.conf"), enter: m.enter()}
	server.write("nats", "")
	server.begin()
	server.isWell()
	s := n.site(len(n.machines)-1, config)
	s.joinBy([]string{"nats://" + server.client})
	return s
}
