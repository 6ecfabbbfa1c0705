package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/internal/testenv"
)

const (
	rollingTopics = 50
	rollingPace   = 20 * time.Millisecond // between two messages: one a second for each topic
)

// rollingClients is how many take part. The race detector leaves no time for more than some.
func rollingClients() int {
	if testenv.Race {
		return 500
	}
	return 5000
}

// Two servers behind a balancer are replaced, one after the other, each by a successor on its own port, while clients
// are connected and messages are published to topics with a history. The servers know nothing of each other: publishers
// publish to both, in the same order, and a message has its number in it. Each client that is closed comes back when it
// was told to, its first try succeeds, and it gets from the other server what it has missed meanwhile. In the end each
// has every message.
func TestRollingRestart(t *testing.T) {
	t.Run("haproxy", func(t *testing.T) {
		t.Parallel() // most of it is waiting
		program := testenv.Program(t, "haproxy")
		s := rollingSite(t)
		s.roll(s.haproxy(program, ""), rollingClients(), func(i int) bool { return strings.HasPrefix(s.status(i), "UP") })
	})
	t.Run("nginx", func(t *testing.T) {
		t.Parallel()
		program := testenv.Program(t, "nginx")
		s := rollingSite(t)
		// It does no health checks, so a server is known to be back when it was sent a request.
		s.roll(s.nginx(program, ""), 500, func(i int) bool {
			resp, err := http.Get("http://" + s.address + "/healthz")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return !strings.Contains(ask(t, "GET", "http://"+s.servers[i].internal+"/metrics", ""), "\ncarillon_health_checks_total 0\n")
		})
	})
}

func rollingSite(t *testing.T) *site {
	return newSite(t, "CARILLON_TRUSTED_PROXIES=[127.0.0.1]", "CARILLON_DRAIN_DELAY=1s", "CARILLON_DRAIN_DURATION=5s", "CARILLON_DRAIN_DEADLINE=40s")
}

// roll is the test with one balancer. The function reports whether that one sends clients to a server again.
func (s *site) roll(balancer *exec.Cmd, n int, takes func(server int) bool) {
	t := s.t
	s.run(balancer)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	clients := make([]*roamer, n)
	door := make(chan struct{}, 64)
	for i := range clients {
		clients[i] = &roamer{url: "ws://" + s.address + "/ws", topic: fmt.Sprintf("rolling.%d", i%rollingTopics), door: door}
		running.Go(func() { clients[i].roam(ctx) })
	}
	began := time.Now()
	s.waitForClients(len(clients), 0, 1)
	t.Logf("%d clients came in %.1f s, %d of them to the first server; the balancer has %d KiB of memory", n, time.Since(began).Seconds(),
		s.servers[0].count(), residentKiB(balancer.Process.Pid))

	p := &feed{topics: rollingTopics, began: time.Now(), end: make(chan struct{})}
	for i := range s.servers {
		running.Go(func() { p.publish(ctx, i, s.servers[i].internal) })
	}
	for i := range s.servers {
		s.replace(i, n, p, takes)
	}
	close(p.end)
	var total int
	eventually(t, "all is published", func() bool {
		total = int(p.last.Load())
		return total%rollingTopics == 0 && total == int(p.sent[0].Load()) && total == int(p.sent[1].Load())
	})
	late := time.Now().Add(long)
	for _, c := range clients {
		for int(c.heard.Load()) < total/rollingTopics && time.Now().Before(late) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	cancel()
	running.Wait()
	rollingReport(t, clients, total)
}

// rollingReport checks every client's log, and says how long they were away.
func rollingReport(t *testing.T, clients []*roamer, total int) {
	t.Helper()
	var away, beyond []time.Duration
	var moves, twice, failures int
	for i, c := range clients {
		if want := total / rollingTopics; int(c.heard.Load()) != want || c.lost != nil { // each move is a gap: the other server has an epoch of its own
			t.Errorf("client %d heard %d of %d, and missed %v", i, c.heard.Load(), want, c.lost)
		}
		if c.failed != nil {
			failures++
			t.Errorf("client %d failed to connect: %v", i, c.failed)
		}
		if failures > 20 {
			t.Fatal("and so on")
		}
		moves, twice = moves+len(c.away), twice+c.twice
		away, beyond = append(away, c.away...), append(beyond, c.beyond...)
	}
	if moves < len(clients) { // each server had some of them
		t.Errorf("%d moves of %d clients", moves, len(clients))
	}
	slices.Sort(away)
	slices.Sort(beyond)
	part := func(d []time.Duration, p int) time.Duration { return d[(len(d)-1)*p/100].Round(time.Millisecond) }
	t.Logf("%d messages to %d clients, which moved %d times; %d came twice and were known by their numbers", total, len(clients), moves, twice)
	t.Logf("without a connection: median %v, p99 %v, most %v", part(away, 50), part(away, 99), part(away, 100))
	t.Logf("of which longer than they were told to wait: median %v, p99 %v, most %v", part(beyond, 50), part(beyond, 99), part(beyond, 100))
}

// replace ends a server as a deploy does, and starts its successor when the other one has all the clients: a server
// knows only what was published since its start, so no client may come to it that was away before that.
func (s *site) replace(i, clients int, p *feed, takes func(int) bool) {
	t, b := s.t, s.servers[i]
	t.Helper()
	if i == 0 {
		b.p.signal(syscall.SIGTERM)
	} else if resp, err := http.Post("http://"+b.internal+"/v1/drain", "", nil); err != nil {
		t.Fatal(err)
	} else {
		resp.Body.Close()
	}
	select {
	case <-b.p.done:
	case <-time.After(long):
		t.Fatalf("server %d does not end; it says\n%s", i, b.p.stderr.String())
	}
	if status := b.p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Fatalf("server %d ended with %d:\n%s", i, status, b.p.stderr.String())
	}
	s.waitForClients(clients, 1-i)
	b.start(s.dir)
	eventually(t, "the balancer takes the successor", func() bool { return takes(i) })
	eventually(t, "the successor gets what is published", func() bool { return p.sent[i].Load()+rollingTopics > p.last.Load() })
	t.Logf("server %d is replaced", i)
}

// waitForClients waits until the servers have all clients.
func (s *site) waitForClients(n int, servers ...int) {
	s.t.Helper()
	eventually(s.t, "all clients are there", func() bool {
		sum := 0
		for _, i := range servers {
			sum += s.servers[i].count()
		}
		return sum == n
	})
}

// count is how many connections a server has.
func (b *behind) count() int {
	b.t.Helper()
	var st struct{ Remaining int }
	if err := json.Unmarshal([]byte(ask(b.t, "GET", "http://"+b.internal+"/v1/drain", "")), &st); err != nil {
		b.t.Fatal(err)
	}
	return st.Remaining
}

// status is what HAProxy thinks of a server: "UP", "DOWN", "DRAIN" and so on.
func (s *site) status(i int) string {
	conn, err := net.Dial("unix", s.socket())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "show stat -1 4 -1\n")
	text, _ := io.ReadAll(conn)
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ","); len(f) > 17 && f[1] == serverNames[i] {
			return f[17]
		}
	}
	return ""
}

func residentKiB(pid int) int {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

// feed publishes the same messages to each server, in the same order, at a pace. A server that is away gets
// later what it has not got, as does its successor.
type feed struct {
	topics int
	began  time.Time
	end    chan struct{}   // closed when nothing new is to be published
	last   atomic.Int64    // how many there are
	sent   [2]atomic.Int64 // how many each server has answered
	mu     sync.Mutex
}

func (p *feed) publish(ctx context.Context, server int, address string) {
	client := &http.Client{Timeout: patience}
	for i := int64(0); p.exists(ctx, i); i++ {
		topic, number := i%int64(p.topics), i/int64(p.topics)+1
		url := fmt.Sprintf("http://%s/v1/topics/rolling.%d/messages", address, topic)
		for !posted(ctx, client, url, fmt.Sprintf(`{"n":%d}`, number), fmt.Sprintf("%d-%d", topic, number)) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
		p.sent[server].Store(i + 1)
	}
}

// exists waits until it is time for a message, and reports whether there is one. There are as many for each topic.
func (p *feed) exists(ctx context.Context, i int64) bool {
	for {
		p.mu.Lock()
		last := p.last.Load()
		due := time.Until(p.began.Add(time.Duration(i) * rollingPace))
		ended := false
		select {
		case <-p.end:
			ended = last%int64(p.topics) == 0
		default:
		}
		if i == last && due <= 0 && !ended {
			p.last.Store(last + 1)
			last++
		}
		p.mu.Unlock()
		switch {
		case i < last:
			return true
		case ended || ctx.Err() != nil:
			return false
		}
		time.Sleep(min(max(due, time.Millisecond), rollingPace))
	}
}

// post publishes a message, and returns what the server says. The key, if there is one, makes it safe to try again.
func post(ctx context.Context, client *http.Client, url, message, key string) (status int, text []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, "POST", url, strings.NewReader(message))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(resp.Body)
	return resp.StatusCode, text, err
}

// posted reports whether a message was published.
func posted(ctx context.Context, client *http.Client, url, message, key string) bool {
	status, _, err := post(ctx, client, url, message, key)
	return err == nil && status == http.StatusOK
}

// position is a place in a topic: after the message with this offset.
type position struct {
	Offset uint64 `json:"offset"`
	Epoch  string `json:"epoch"`
}

// roamer is a client that comes back as docs/protocol.md says, and keeps a log by the messages' numbers.
type roamer struct {
	url, topic string
	urls       []string      // if not nil, it takes any of these each time
	door       chan struct{} // has a value for each that is connecting: the test has a processor, not many

	position *position // in the topic, as the server said
	settled  bool      // the connection was of use
	warned   bool      // nothing has come since the first subscription, or since the server has told of a gap
	heard    atomic.Int64
	began    atomic.Bool // it has been subscribed

	take   func(n int64, offset uint64) // if not nil, gets each message instead of the log by numbers
	wander time.Duration                // if not 0, it leaves each connection within that time,
	rest   time.Duration                // and stays away for as long at most

	// For the test, when it has ended.
	gaps         int             // that the server has reported
	lost         []int64         // the number before each gap; before each unreported one, if it rests
	twice        int             // messages that came again
	away, beyond []time.Duration // without a connection, and by how much that was longer than it was told
	failed       error           // the first attempt that failed
}

func (c *roamer) roam(ctx context.Context) {
	var left time.Time // the last connection ended; zero before there was one
	var told time.Duration
	failures := 0
	for ctx.Err() == nil {
		conn, err := c.dial(ctx)
		if err != nil {
			if c.failed == nil && ctx.Err() == nil {
				c.failed = err
			}
			sleep(ctx, backoff(failures))
			failures++
			continue
		}
		if !left.IsZero() {
			c.away = append(c.away, time.Since(left))
			c.beyond = append(c.beyond, time.Since(left)-told)
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		if c.wander > 0 {
			time.AfterFunc(rand.N(c.wander), func() { conn.Close() })
		}
		c.settled = false
		err = c.listen(conn)
		left = time.Now()
		if c.settled {
			failures = 0
		}
		stop()
		conn.Close()
		if told = hint(err); told < 0 && c.wander > 0 && errors.Is(err, net.ErrClosed) {
			told = rand.N(c.rest + 1)
		} else if told < 0 {
			told = backoff(failures)
			failures++
		}
		sleep(ctx, told)
	}
}

// backoff is a random wait after so many failures, of up to 30 s.
func backoff(failures int) time.Duration {
	return rand.N(min(30*time.Second, 250*time.Millisecond<<min(failures, 10)) + 1)
}

// hint is the wait that a server asks for when it closes a connection, or less than 0.
func hint(err error) time.Duration {
	closed := new(websocket.CloseError)
	if errors.As(err, &closed) {
		if m := regexp.MustCompile(`; retry=(\d{1,7})$`).FindStringSubmatch(closed.Text); m != nil {
			n, _ := strconv.Atoi(m[1])
			return time.Duration(n) * time.Millisecond
		}
	}
	return -1
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (c *roamer) dial(ctx context.Context) (*websocket.Conn, error) {
	c.door <- struct{}{}
	defer func() { <-c.door }()
	dialer := websocket.Dialer{Subprotocols: []string{"carillon.v1.json"}, ReadBufferSize: 512, WriteBufferSize: 512, HandshakeTimeout: long}
	url := c.url
	if c.urls != nil {
		url = c.urls[rand.N(len(c.urls))]
	}
	conn, resp, err := dialer.DialContext(ctx, url, nil)
	if err != nil {
		if resp != nil {
			err = fmt.Errorf("%s: %w", resp.Status, err)
		}
		return nil, err
	}
	request := map[string]any{"topic": c.topic}
	if c.position != nil {
		request["since"] = c.position
	}
	return conn, conn.WriteJSON(map[string]any{"id": 1, "subscribe": request})
}

// listen logs what comes until the connection ends.
func (c *roamer) listen(conn *websocket.Conn) error {
	for {
		_, text, err := conn.ReadMessage()
		if err != nil {
			return err
		}
		var frame struct {
			Subscribed *struct {
				position
				Recovered *bool
			}
			Offset uint64
			Data   *struct{ N int64 }
		}
		if err := json.NewDecoder(bytes.NewReader(text)).Decode(&frame); err != nil {
			return err
		}
		switch {
		case frame.Subscribed != nil:
			c.settled = true
			c.began.Store(true)
			if r := frame.Subscribed.Recovered; r != nil && !*r {
				c.gaps++
				c.warned = true
			}
			if c.position == nil {
				c.position, c.warned = &frame.Subscribed.position, true
			} else if c.position.Epoch != frame.Subscribed.Epoch {
				c.position = &position{Epoch: frame.Subscribed.Epoch}
			}
		case frame.Data != nil:
			c.position.Offset = frame.Offset
			if c.take != nil {
				c.take(frame.Data.N, frame.Offset)
			} else {
				c.note(frame.Data.N)
			}
		default:
			return fmt.Errorf("the server says %s", text)
		}
	}
}

func (c *roamer) note(n int64) {
	switch last := c.heard.Load(); {
	case n <= last:
		c.twice++
		return
	case n > last+1 && !(c.warned && c.rest > 0):
		c.lost = append(c.lost, last)
	}
	c.warned = false
	c.heard.Store(n)
}
