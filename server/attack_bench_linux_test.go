package server

// BenchmarkUnderAttack measures what an attack does to well-behaved clients of a server with default limits.
//
//	go test -run '^$' -bench 'UnderAttack/history' -benchtime 1x ./server
//	CARILLON_BENCH_ATTACK=3s go test -run '^$' -bench 'UnderAttack' -benchtime 1x -timeout 1h ./server
//
// CARILLON_BENCH_ATTACK is the length of the attack, and of the quiet time before and after it. Without it each attack
// runs for 150 ms and by one connection only, so that the benchmark is known to work.
//
// Each row starts two processes: the server, with two loops, and the attacker, which yields the processors to the
// others (by nice; run it as root for the full effect). What is measured is therefore what the server does for the
// attacker, not what the attacker takes by itself. The well-behaved clients are in this process: two or more WebSockets
// on each loop, with 20 echoes a second each; a publisher of 20 messages a second to a topic with subscribers on
// WebSockets and a stream of server-sent events; and one new connection each 100 ms. Each time counts from the moment
// at which the request was due, not from when it was sent.
//
//	quiet-*, attack-*, after-*   times of echoes in the phases
//	extra-p99-ms, extra-max-ms   attack less quiet
//	connect-max-ms               the longest handshake during the attack, TCP's included; half of them with TLS if that is attacked
//	topic-max-ms                 the longest time from publisher to subscriber during the attack
//	beside-*                     the longest time of a large message of one more client, in attacks that hold up such messages
//	lost                         echoes and messages that did not come, and clients that were cut off
//	rss-*-MiB                    resident memory: before; highest; after, when memory that is free has been returned
//	units/s                      how often the attack was carried out, as the attacker counts it

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sys/unix"

	"carillon/internal/testenv"
)

const attackEnv = "CARILLON_TEST_ATTACK_ORDER"

func init() { childMains["attacked"], childMains["attacker"] = serveAttacked, runAttacker }

// attackOrder is what the two child processes are told.
type attackOrder struct {
	Attack string
	Conns  int
	Slow   bool // 1 KB/s on each connection
	Short  bool // the attack need not have its full size

	Seeds     []attackSeed
	HMACKey   string // file
	ECKey     string // file
	Address   string
	TLS       string
	Epochs    map[string]string
	HMACBad   string // tokens
	ECBad     string
	LongToken string // a good one, with a long subject
	attackOf  attackRow
}

// attackSeed is topics with history.
type attackSeed struct {
	Topic  string // the name of one topic, or what several begin with
	Topics int    // 0 for one
	N      int    // messages; negative for those of control characters
	Size   int
}

// shortAttack is for a benchmark that only has to work.
const shortAttack = 150 * time.Millisecond

func BenchmarkUnderAttack(b *testing.B) {
	length, err := time.ParseDuration(os.Getenv("CARILLON_BENCH_ATTACK"))
	short := err != nil
	if short {
		length = shortAttack
	}
	for _, row := range attackRows() {
		b.Run(row.name, func(b *testing.B) {
			for _, v := range row.variants() {
				if short && v.conns != row.variants()[0].conns {
					continue
				}
				b.Run(v.name, func(b *testing.B) {
					for range b.N {
						underAttack(b, attackOrder{Attack: row.name, Conns: v.conns, Slow: v.slow, Short: short, attackOf: row}, length)
					}
				})
			}
		})
	}
}

func underAttack(b *testing.B, order attackOrder, length time.Duration) {
	issuer, stranger := newIssuer(b), newIssuer(b)
	order.HMACKey, order.ECKey = issuer.File("HS256"), issuer.File("ES256")
	order.HMACBad, order.ECBad = stranger.Token("HS256", alice()), stranger.Token("ES256", alice())
	order.LongToken = issuer.Token("HS256", jwt.MapClaims{"sub": strings.Repeat("x", 5000)})
	order.Seeds = order.attackOf.seeds
	server := startChild(b, "attacked", order)
	defer server.end()
	var told struct {
		Address, TLS string
		Epochs       map[string]string
	}
	server.hear(&told)
	order.Address, order.TLS, order.Epochs = told.Address, told.TLS, told.Epochs

	attacker := startChild(b, "attacker", order)
	defer attacker.end()
	attacker.hear(new(bool)) // ready

	secured := ""
	if strings.HasPrefix(order.Attack, "tls") {
		secured = order.TLS
	}
	z := newGoodClients(b, order.Address, secured, server)
	defer z.close()
	if order.attackOf.beside != nil {
		z.besides(order.attackOf.beside())
	}
	time.Sleep(goodInterval)
	z.begin(phaseQuiet)
	time.Sleep(length)
	before := server.memory("VmRSS")
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", server.cmd.Process.Pid), []byte("5"), 0) // VmHWM begins again

	attacker.say("go")
	z.begin(phaseAttack)
	time.Sleep(length)
	attacker.say("stop")
	var carried struct{ Units, Cuts int }
	attacker.hear(&carried)
	attacker.end()
	z.begin(phaseAfter)
	time.Sleep(max(length/2, shortAttack))
	z.end()
	highest := server.memory("VmHWM")
	server.say("free")
	server.hear(new(bool))

	ms := func(d time.Duration) float64 { return float64(d.Round(10*time.Microsecond)) / 1e6 }
	quiet, under, after := z.times(phaseQuiet, z.echoes...), z.times(phaseAttack, z.echoes...), z.times(phaseAfter, z.echoes...)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ms(quiet.p50), "quiet-p50-ms")
	b.ReportMetric(ms(quiet.p99), "quiet-p99-ms")
	b.ReportMetric(ms(quiet.max), "quiet-max-ms")
	b.ReportMetric(ms(under.p50), "attack-p50-ms")
	b.ReportMetric(ms(under.p99), "attack-p99-ms")
	b.ReportMetric(ms(under.max), "attack-max-ms")
	b.ReportMetric(ms(after.max), "after-max-ms")
	b.ReportMetric(ms(under.p99-quiet.p99), "extra-p99-ms")
	b.ReportMetric(ms(under.max-quiet.max), "extra-max-ms")
	b.ReportMetric(ms(time.Duration(z.connect.Load())), "connect-max-ms")
	b.ReportMetric(ms(time.Duration(z.topic.Load())), "topic-max-ms")
	if z.beside != nil {
		b.ReportMetric(ms(z.times(phaseQuiet, z.beside).max), "beside-quiet-max-ms")
		b.ReportMetric(ms(z.times(phaseAttack, z.beside).max), "beside-max-ms")
	}
	b.ReportMetric(float64(z.lost()), "lost")
	b.ReportMetric(before, "rss-before-MiB")
	b.ReportMetric(highest, "rss-peak-MiB")
	b.ReportMetric(server.memory("VmRSS"), "rss-after-MiB")
	b.ReportMetric(float64(carried.Units)/length.Seconds(), "units/s")
	b.ReportMetric(float64(carried.Cuts), "cuts")
	for _, problem := range z.problems {
		b.Log(problem)
	}
}

// attackChild is a process of the test program.
type attackChild struct {
	b     *testing.B
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader
	ended sync.Once
}

func startChild(b *testing.B, name string, order attackOrder) *attackChild {
	text, _ := json.Marshal(order)
	c := &attackChild{b: b, cmd: testenv.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), childEnv+"="+name, attackEnv+"="+string(text))
	c.cmd.Stderr = os.Stderr
	c.stdin, _ = c.cmd.StdinPipe()
	stdout, _ := c.cmd.StdoutPipe()
	if err := c.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	c.lines = bufio.NewReader(stdout)
	return c
}

func (c *attackChild) say(word string) { _, _ = fmt.Fprintln(c.stdin, word) }

// hear reads the child's next line, which is JSON.
func (c *attackChild) hear(v any) {
	c.b.Helper()
	line, err := c.lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, v)
	}
	if err != nil {
		c.b.Fatalf("the %v said %q: %v", c.cmd.Args, line, err)
	}
}

func (c *attackChild) end() {
	c.ended.Do(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	})
}

// memory is a line of the process's status, in MiB.
func (c *attackChild) memory(key string) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key+":" {
			kb, _ := strconv.Atoi(f[1])
			return float64(kb >> 10)
		}
	}
	return 0
}

func orderOf() (order attackOrder) {
	if err := json.Unmarshal([]byte(os.Getenv(attackEnv)), &order); err != nil {
		panic(err)
	}
	return order
}

// Priorities of the processes, as nice values. The two below 0 need root; without it they are 0.
const (
	niceClients  = -10
	niceServer   = -5
	niceAttacker = 5
)

// setNice sets the priority of all threads of this process. A thread that starts later inherits it from the thread that
// starts it.
func setNice(nice int) {
	eachThread(func(tid int) { _ = unix.Setpriority(unix.PRIO_PROCESS, tid, nice) })
}

// serveAttacked is the server's process.
func serveAttacked() {
	setNice(0)
	setNice(niceServer)
	order := orderOf()
	opts := attackedOptions(&order)
	if change := attackRowOf(order.Attack).change; change != nil {
		change(&opts)
	}
	s, err := New(opts)
	if err != nil {
		panic(err)
	}
	go func() {
		if err := s.Run(context.Background()); err != nil {
			panic(err)
		}
	}()
	<-s.Started()
	for _, seed := range order.Seeds {
		if order.Short {
			seed.Topics = min(seed.Topics, 8)
		}
		for i := range max(seed.Topics, 1) {
			name := seed.Topic
			if seed.Topics > 0 {
				name += strconv.Itoa(i)
			}
			fill := "x"
			if seed.N < 0 {
				fill, seed.N = "\x01", -seed.N
			}
			for range seed.N {
				if _, err := s.Publish(Publication{Topic: name, Payload: []byte(strings.Repeat(fill, seed.Size))}); err != nil {
					panic(err)
				}
			}
		}
	}
	epochs := map[string]string{}
	for _, name := range []string{"k1.a", "k10.a"} {
		t, _ := s.Topic(name)
		epochs[name] = t.Epoch
	}
	debug.FreeOSMemory()
	out := json.NewEncoder(os.Stdout)
	_ = out.Encode(map[string]any{"Address": s.Addr().String(), "TLS": s.Addrs()[1].String(), "Epochs": epochs})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "loops": // how many echo clients each loop has
			counts := make([]int, 2)
			shards := s.engine.AllShards()
			for c := range s.Conns() {
				if i := slices.Index(shards, c.shard()); i >= 0 && c.Path() == "/echo" {
					counts[i]++
				}
			}
			_ = out.Encode(counts)
		case "free":
			debug.FreeOSMemory()
			_ = out.Encode(true)
		}
	}
}

// attackedOptions are default limits, and an endpoint of each kind.
func attackedOptions(order *attackOrder) Options {
	bearer := func(path, algorithm, file string) Endpoint {
		return Endpoint{Path: path, Mode: ModeEcho, Auth: Auth{JWT: JWT{Algorithms: []string{algorithm}, KeyFile: file}}}
	}
	return Options{
		Listen:    "127.0.0.1:0",
		Listeners: []Listener{{Listen: "127.0.0.1:0", TLS: TLS{Config: testTLS()}}},
		Loops:     2,
		Endpoints: []Endpoint{
			{Path: "/echo", Mode: ModeEcho},
			{Path: "/flate", Mode: ModeEcho, Compression: Compression{Enabled: true}},
			{Path: "/broadcast", Mode: ModeBroadcast},
			{Path: "/oldest", Mode: ModeBroadcast, SlowConsumer: SlowConsumer{Policy: PolicyDropOldest}},
			{Path: "/ws", Mode: ModeTopics, Topics: TopicAccess{Publish: []string{">"}, Patterns: true, Presence: true}},
			{Path: "/zws", Mode: ModeTopics, Compression: Compression{Enabled: true}, Topics: TopicAccess{Publish: []string{">"}, Patterns: true, Presence: true}},
			bearer("/hmac", "HS256", order.HMACKey),
			bearer("/ec", "ES256", order.ECKey),
			{Path: "/tokens", Mode: ModeTopics, Auth: Auth{JWT: JWT{Algorithms: []string{"HS256"}, KeyFile: order.HMACKey}}},
		},
		Topics: []TopicRule{
			{Match: "k1.>", History: 1000, MaxAge: -1},
			{Match: "k10.>", History: 10_000, MaxAge: -1},
			{Match: "latest.>", Latest: true},
		},
		HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello") }),
		// As the program does it: the level is info.
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}
