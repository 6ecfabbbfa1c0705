// Package e2e tests the program as its users have it: built, started, and talked to from outside.
package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"carillon/internal/testenv"

	"github.com/gorilla/websocket"
)

// soon bounds everything that must happen without waiting for a time-out of the server. It is for a machine that is
// busy with other tests: no test that passes waits for it.
const soon = 30 * time.Second

var buildDir string

func TestMain(m *testing.M) {
	if os.Getenv(natsEnv) != "" {
		os.Exit(runNATS())
	}
	if err := enterRoot(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue {
		_ = n.Value.Set("12") // they wait for other programs most of the time
	}
	status := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(status)
}

// enterRoot makes the root of the repository the working directory: the tests build the program there, and read the
// documents and the files of deploy/.
func enterRoot() error {
	for {
		if _, err := os.Stat("go.mod"); err == nil {
			return nil
		}
		dir, err := os.Getwd()
		if err != nil {
			return err
		}
		if dir == filepath.Dir(dir) {
			return errors.New("there is no go.mod above the tests")
		}
		if err := os.Chdir(".."); err != nil {
			return err
		}
	}
}

// binaryEnv has the program, in a process that a test of these has started.
const binaryEnv = "CARILLON_TEST_BINARY"

// binary builds the program, for the first test that runs it: fuzzing starts many processes of this
// test, and they need none.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(binaryEnv); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "carillon-test-")
	if err != nil {
		return "", err
	}
	buildDir = dir
	path := filepath.Join(dir, "carillon")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

// program is a running carillon.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout chan string // one line at a time, closed at the end
	stderr testenv.Recording
	done   chan struct{}
	seen   []string
}

// start runs the program in an empty directory, on a free port unless env says otherwise.
func start(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	return startCommand(t, env, exec.Command(path, args...))
}

func startCommand(t *testing.T, env []string, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{t: t, cmd: cmd, stdout: make(chan string, 100), done: make(chan struct{})}
	testenv.EndWithTests(cmd, syscall.SIGKILL)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "CARILLON_LISTEN=127.0.0.1:0", "CARILLON_INTERNAL_LISTEN=127.0.0.1:0"}, env...)
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	r, w := io.Pipe()
	cmd.Stdout = w
	heard := make(chan os.Signal, 1) // the program would ignore what nohup or a shell's & have these tests ignore
	signal.Notify(heard, syscall.SIGHUP, os.Interrupt)
	defer signal.Stop(heard)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.stdout)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			p.stdout <- lines.Text()
		}
	}()
	go func() {
		defer close(p.done)
		_ = cmd.Wait()
		w.Close()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.done
	})
	return p
}

// until reads standard output up to the line that contains the words, and returns that line.
func (p *program) until(words string) string {
	p.t.Helper()
	late := time.After(soon)
	for {
		select {
		case line, ok := <-p.stdout:
			if !ok {
				<-p.done
				p.t.Fatalf("ended without printing %q, after\n%s\nand on standard error\n%s", words, p.output(), &p.stderr)
			}
			p.seen = append(p.seen, line)
			if strings.Contains(line, words) {
				return line
			}
		case <-late:
			p.t.Fatalf("did not print %q in time, but\n%s", words, p.output())
		}
	}
}

func (p *program) output() string { return strings.Join(p.seen, "\n") }

var wsURL = regexp.MustCompile(`ws://\S+`)

// url waits for the start and returns the URL that the program printed for a path.
func (p *program) url(path string) string {
	p.t.Helper()
	url := wsURL.FindString(p.until(path + " "))
	p.until("Stop with")
	return url
}

func (p *program) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// end waits for the end and returns the exit status and the rest of both outputs.
func (p *program) end() (status int, stdout, stderr string) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(soon):
		p.t.Fatalf("still runs after %v; it printed\n%s", soon, p.output())
	}
	for line := range p.stdout {
		stdout += line + "\n"
	}
	return p.cmd.ProcessState.ExitCode(), stdout, p.stderr.String()
}

func dial(t *testing.T, url string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		t.Fatalf("dial %s: %v", url, err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(soon))
	return conn
}

func say(t *testing.T, conn *websocket.Conn, text string) {
	t.Helper()
	if err := conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, conn *websocket.Conn, want string) {
	t.Helper()
	if _, got, err := conn.ReadMessage(); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func TestServesWithoutAnyFile(t *testing.T) {
	p := start(t, nil)
	echo := wsURL.FindString(p.until("/echo"))
	line := p.until("/broadcast")
	p.until("Stop with")
	if want := regexp.MustCompile(`^  ws://127\.0\.0\.1:\d+/broadcast  broadcast  no           none$`); !want.MatchString(line) {
		t.Errorf("printed %q", line)
	}
	if !strings.Contains(p.output(), "Accepts up to ") {
		t.Errorf("does not say how many connections it can hold:\n%s", p.output())
	}

	alice := dial(t, echo)
	say(t, alice, "hello")
	hear(t, alice, "hello")

	bob, cathy := dial(t, wsURL.FindString(line)), dial(t, wsURL.FindString(line))
	say(t, cathy, "to all")
	hear(t, bob, "to all")
	hear(t, cathy, "to all")
}

var internalURL = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)

// What is published at the address that the program prints reaches subscribers at /ws.
func TestPublishesOverHTTP(t *testing.T) {
	p := start(t, nil)
	ws := wsURL.FindString(p.until("/ws "))
	at := internalURL.FindString(p.until("Internal HTTP interface, local only, without a token: http://"))
	p.until("Stop with")
	alice := dial(t, ws+"?topic=news")
	for subscribed := false; !subscribed; {
		resp, err := http.Post(at+"/v1/topics/news/messages", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		var receipt struct{ Subscribers int }
		if err := json.NewDecoder(resp.Body).Decode(&receipt); err != nil || resp.StatusCode != 200 {
			t.Fatal(resp.Status, err)
		}
		resp.Body.Close()
		subscribed = receipt.Subscribers == 1
	}
	hear(t, alice, "hello")
}

func TestTheInternalInterfaceIsAnnounced(t *testing.T) {
	p := start(t, []string{"CARILLON_INTERNAL_LISTEN=off"})
	p.until("Stop with")
	if !strings.Contains(p.output(), "No internal HTTP interface: internal.listen is off.") {
		t.Errorf("printed\n%s", p.output())
	}
	p = start(t, []string{"CARILLON_INTERNAL_LISTEN=0.0.0.0:0", "CARILLON_INTERNAL_TOKEN=hush-hush-hush-hush", "CARILLON_LOG_LEVEL=debug"})
	p.until("Stop with")
	if !strings.Contains(p.output(), "Internal HTTP interface, with a token: http://localhost:") {
		t.Errorf("printed\n%s", p.output())
	}
	p.signal(syscall.SIGTERM)
	if _, stdout, stderr := p.end(); strings.Contains(p.output()+stdout+stderr, "hush-hush-hush-hush") {
		t.Errorf("the token is printed:\n%s%s%s", p.output(), stdout, stderr)
	}
}

func TestHandshakeOnTheWire(t *testing.T) {
	url := start(t, nil).url("/echo")
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "ws://"), "/echo"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(soon))
	// The key and the answer are those of RFC 6455, section 1.3.
	if _, err := io.WriteString(conn, "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var head strings.Builder
	r := bufio.NewReader(conn)
	for !strings.HasSuffix(head.String(), "\r\n\r\n") {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatalf("%v after %q", err, head.String())
		}
		head.WriteByte(b)
	}
	if got := head.String(); !strings.HasPrefix(got, "HTTP/1.1 101 ") || !strings.Contains(got, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
		t.Errorf("answered %q", got)
	}
}

func TestAWildcardAddressIsShownAsLocalhost(t *testing.T) {
	for _, listen := range []string{":0", "0.0.0.0:0"} {
		t.Run(listen, func(t *testing.T) {
			url := start(t, []string{"CARILLON_LISTEN=" + listen}).url("/echo")
			if !strings.HasPrefix(url, "ws://localhost:") {
				t.Fatalf("printed %s", url)
			}
			alice := dial(t, url)
			say(t, alice, "hello")
			hear(t, alice, "hello")
		})
	}
}

func TestATakenPortIsOneLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	status, stdout, stderr := start(t, []string{"CARILLON_LISTEN=" + l.Addr().String(), "CARILLON_LOG_LEVEL=error"}).end()
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 ||
		!strings.HasPrefix(stderr, "carillon: ") || !strings.Contains(stderr, l.Addr().String()) || !strings.Contains(stderr, "in use") {
		t.Errorf("exit status %d, printed %q and %q", status, stdout, stderr)
	}
}

// The program serves over a unix socket as well as over TCP, is managed over another, and leaves neither behind.
func TestUnixSockets(t *testing.T) {
	dir := testenv.SocketDir(t)
	public, internal := filepath.Join(dir, "public"), filepath.Join(dir, "internal")
	p := start(t, []string{"CARILLON_LISTEN=unix:" + public, "CARILLON_LISTENERS=[{listen: '127.0.0.1:0'}]", "CARILLON_INTERNAL_LISTEN=unix:" + internal})
	echo := p.url("/echo")
	printed := p.output()
	for _, words := range []string{"carillon is listening on unix:" + public + ", 127.0.0.1:", "without a token: curl --unix-socket " + internal + " http://localhost/v1/openapi.json\n"} {
		if !strings.Contains(printed, words) {
			t.Errorf("%q is not in\n%s", words, printed)
		}
	}
	for path, mode := range map[string]os.FileMode{public: 0o660, internal: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode|os.ModeSocket {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", public)
	}}
	alice, _, err := dialer.Dial("ws://localhost/echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer alice.Close()
	say(t, alice, "hello")
	hear(t, alice, "hello")
	bob := dial(t, echo)
	say(t, bob, "hello")
	hear(t, bob, "hello")

	for _, row := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"health --api unix:" + internal, 0, "{\"status\":\"ok\"}\n", ""},
		{"health --ready", 0, "{\"status\":\"ok\"}\n", ""},
		{"health --api unix:" + internal + "x", 1, "", "carillon: get /livez: dial unix " + internal + "x: connect: no such file or directory\n"},
		{"publish news hello --output json --api unix:" + internal, 0, `{"offset":1,`, ""},
	} {
		status, stdout, stderr := start(t, []string{"CARILLON_INTERNAL_LISTEN=unix:" + internal}, strings.Fields(row.args)...).end()
		if status != row.status || !strings.HasPrefix(stdout, row.stdout) || stderr != row.stderr {
			t.Errorf("%s: exit status %d, printed %q and %q", row.args, status, stdout, stderr)
		}
	}
	_, _ = alice.Close(), bob.Close()
	p.signal(syscall.SIGTERM)
	if status, _, stderr := p.end(); status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestATakenInternalPortIsOneLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	status, stdout, stderr := start(t, []string{"CARILLON_INTERNAL_LISTEN=" + l.Addr().String(), "CARILLON_LOG_LEVEL=error"}).end()
	if want := "carillon: internal.listen: listen tcp " + l.Addr().String() + ": bind: address already in use\n"; status != 1 || stdout != "" || stderr != want {
		t.Errorf("exit status %d, printed %q and %q", status, stdout, stderr)
	}
}

func TestTheLimitOfOpenFilesIsExplained(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	p := startCommand(t, nil, exec.Command("sh", "-c", `ulimit -n 300 && exec "$0"`, path))
	p.until("Stop with")
	if !regexp.MustCompile(`Accepts up to [12]\d\d connections \(limit of open files\)`).MatchString(p.output()) ||
		!strings.Contains(p.output(), "ulimit -n") {
		t.Errorf("printed\n%s", p.output())
	}

	p = start(t, []string{"CARILLON_LIMITS_MAX_CONNECTIONS=5"})
	p.until("Stop with")
	if !strings.Contains(p.output(), "Accepts up to 5 connections (limits.max_connections).") || strings.Contains(p.output(), "ulimit") {
		t.Errorf("printed\n%s", p.output())
	}
}

func TestTheLogIsJSONOnStandardError(t *testing.T) {
	p := start(t, []string{"CARILLON_LOG_FORMAT=json", "CARILLON_LOG_LEVEL=debug"})
	p.until("Stop with")
	p.signal(syscall.SIGTERM)
	_, _, stderr := p.end()
	if stderr == "" {
		t.Error("nothing was logged")
	}
	for line := range strings.Lines(stderr) {
		if !json.Valid([]byte(line)) {
			t.Errorf("logged %q", line)
		}
	}
}

// minimal is a configuration with as little as there has to be.
const minimal = "endpoints: [{path: /a, mode: echo}]\n"

func TestCommands(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.yaml", minimal)
	bad := file("bad.yaml", "endpoints:\n  - path: /a\n    mode: sing\nlimits:\n  max_head: 1\n")
	doubtful := file("doubtful.yaml", minimal+"ping: {interval: 30s, lb_idle_timeout: 30s}\n")
	none := filepath.Join(dir, "none.yaml")
	for _, test := range []struct {
		sentence string
		args     string
		env      string
		status   int
		stdout   string // the whole of it, or how it begins where it ends with ...
		stderr   string
	}{
		{"a good file is ok", "config --check " + good, "", 0, good + ": ok\n", ""},
		{"a bad file is taken apart", "config --check " + bad, "", 1,
			bad + ":5:13: limits.max_head: 1B is out of range: expected 256B to 1MiB\n" +
				bad + ":3:11: endpoints[0].mode: \"sing\" is unknown: expected echo, broadcast or topics\n", ""},
		{"a check counts the environment", "config --check " + good, "CARILLON_LOOPS=x", 1,
			"CARILLON_LOOPS: loops: \"x\" is not a whole number: expected one such as 1000\n", ""},
		{"a file that is hardly meant so is ok with a warning", "config --check " + doubtful, "", 0,
			"warning: " + doubtful + ":2:18: ping.interval: 30s is not well below ping.lb_idle_timeout, 30s, so the balancer will cut idle connections before a ping is sent: expected 15s or less\n" +
				doubtful + ": ok\n", ""},
		{"a file that is not there cannot be checked", "config --check " + none, "", 1, "",
			"carillon: read the configuration: open " + none + ": no such file or directory\n"},
		{"the configuration is printed", "config", "", 0, "listen: 127.0.0.1:0\nlisten_mode: \"0660\"\ntakeover: false\npublic_url: \"\"\ntls:\n  certificates: []\n...", ""},
		{"a bad file starts nothing", "--config " + bad, "", 1, "",
			"carillon: " + bad + ":5:13: limits.max_head: 1B is out of range: expected 256B to 1MiB\n" +
				"carillon: " + bad + ":3:11: endpoints[0].mode: \"sing\" is unknown: expected echo, broadcast or topics\n"},
		{"a bad variable starts nothing", "", "CARILLON_LOPS=1", 1, "",
			"carillon: CARILLON_LOPS: unknown variable, did you mean CARILLON_LOOPS?\n"},
		{"a public interface without a token starts nothing", "", "CARILLON_INTERNAL_LISTEN=0.0.0.0:8081", 1, "",
			"carillon: CARILLON_INTERNAL_LISTEN: internal.listen: 0.0.0.0:8081 is reachable from other machines: expected internal.token (CARILLON_INTERNAL_TOKEN) as well, or an address such as 127.0.0.1:8081\n"},
		{"a missing file starts nothing", "--config " + none, "", 1, "",
			"carillon: read the configuration: open " + none + ": no such file or directory\n"},
		{"an unknown flag is wrong usage", "--cofnig x", "", 2, "",
			"carillon: unknown flag: --cofnig\ncarillon: run carillon --help for usage\n"},
		{"an unknown command is wrong usage", "sevre", "", 2, "",
			"carillon: unknown command \"sevre\" for \"carillon\"\ncarillon: run carillon --help for usage\n"},
		{"a file has a name", "config --check=", "", 2, "",
			"carillon: invalid argument \"\" for \"--check\" flag: expected a file name\ncarillon: run carillon --help for usage\n"},
		{"a file and a check exclude each other", "config --check a --config b", "", 2, "",
			"carillon: if any flags in the group [config check] are set none of the others can be; [check config] were all set\ncarillon: run carillon --help for usage\n"},
		{"there is help", "--help", "", 0, "Serves WebSocket endpoints...", ""},
		{"there is a version", "version", "", 0, "carillon ...", ""},
		{"there is a version as a flag", "--version", "", 0, "carillon ...", ""},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			var env []string
			if test.env != "" {
				env = []string{test.env}
			}
			status, stdout, stderr := start(t, env, strings.Fields(test.args)...).end()
			if begin, ok := strings.CutSuffix(test.stdout, "..."); ok && strings.HasPrefix(stdout, begin) {
				stdout = test.stdout
			}
			if status != test.status || stdout != test.stdout || stderr != test.stderr {
				t.Errorf("exit status %d, printed\n%s\nand\n%s", status, stdout, stderr)
			}
		})
	}
}

func TestThePrintedConfigurationIsAFile(t *testing.T) {
	env := []string{"CARILLON_LOOPS=3", "CARILLON_LIMITS_IDLE_TIMEOUT=90s", "CARILLON_PING_INTERVAL=off"}
	_, first, _ := start(t, env, "config").end()
	path := filepath.Join(t.TempDir(), "printed.yaml")
	if err := os.WriteFile(path, []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	status, second, stderr := start(t, nil, "config", "--config", path).end()
	if status != 0 || first != second || !strings.Contains(first, "loops: 3\n") {
		t.Errorf("exit status %d, %q; printed first\n%s\nthen\n%s", status, stderr, first, second)
	}
}

// The memory limit in force, and why it is that, is said wherever one looks for it.
func TestTheMemoryLimitIsExplained(t *testing.T) {
	limit := "GOMEMLIMIT=1000MiB"
	if _, printed, _ := start(t, []string{limit}, "config").end(); !strings.Contains(printed, "\n  max_memory: 0 # 800MiB here: 80% of GOMEMLIMIT, 1000MiB\n") {
		t.Errorf("the configuration is\n%s", printed)
	}
	if _, printed, _ := start(t, []string{limit, "CARILLON_LIMITS_MAX_MEMORY=off"}, "config").end(); !strings.Contains(printed, "\n  max_memory: \"off\"\n") {
		t.Errorf("the configuration is\n%s", printed)
	}
	for _, row := range []struct{ env, announced, logged string }{
		{"CARILLON_PING_INTERVAL=20s", "Refuses new connections above 800MiB of memory (80% of GOMEMLIMIT, 1000MiB).", `max_memory=800MiB source="80% of GOMEMLIMIT, 1000MiB"`},
		{"CARILLON_LIMITS_MAX_MEMORY=900MiB", "Refuses new connections above 900MiB of memory (limits.max_memory)", "max_memory=900MiB source=limits.max_memory"},
		{"CARILLON_LIMITS_MAX_MEMORY=off", "No memory limit (limits.max_memory).", "max_memory=off source=limits.max_memory"},
	} {
		p := start(t, []string{limit, row.env})
		p.until(row.announced)
		p.until("Stop with")
		p.signal(os.Interrupt)
		if _, _, log := p.end(); !strings.Contains(log, row.logged) {
			t.Errorf("%s: the log is\n%s", row.env, log)
		}
	}
}
