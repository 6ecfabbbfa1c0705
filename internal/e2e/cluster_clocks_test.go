package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// clockEnv is by how many seconds the clock is ahead of a program that buildWithClock has built.
const clockEnv = "TEST_CLOCK_AHEAD"

// buildWithClock builds the program with another time.Now: no kernel has a system clock for each process.
func buildWithClock(t *testing.T) string {
	t.Helper()
	root, err := exec.Command(testenv.Program(t, "go"), "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir, source := t.TempDir(), filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		testenv.Missing(t, "the sources of the Go distribution", err)
	}
	const before, after = "sec, nsec, mono := runtimeNow()\n\tif mono == 0 {", "sec, nsec, mono := runtimeNow()\n\tsec += ahead\n\tif mono == 0 {"
	if strings.Count(string(text), before) != 1 {
		t.Fatal("time.Now is not what it was: adapt this test to it")
	}
	ahead := fmt.Sprintf(`package time

import "syscall"

// ahead is by how many seconds this process's clock is.
var ahead = func() (n int64) {
	text, _ := syscall.Getenv(%q)
	for _, c := range []byte(text) {
		if c != '-' {
			n = 10*n + int64(c-'0')
		}
	}
	if len(text) > 0 && text[0] == '-' {
		return -n
	}
	return n
}()
`, clockEnv)
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": strings.Replace(string(text), before, after, 1), "ahead.go": ahead} {
		replace[filepath.Join(source, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file, path := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "carillon")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-overlay", file, "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

const (
	agingConfig = `endpoints: [{path: /ws, mode: topics, topics: {publish: [">"]}}]
topics: [{match: team.>, history: 100000, max_age: 24h, max_bytes: 64MiB}, {match: aging.>, history: 100000, max_age: 20s}]
`
	agingTopics  = 3
	agingClients = 60
	agingPace    = 50 * time.Millisecond // between two messages of a topic
)

// The clocks of three nodes are up to 12 s apart, and one node after the other is killed, so that JetStream has leaders
// with each clock. Topics are what they are elsewhere. Of others messages are kept for 20 s, by whatever clock: clients
// that come and go, and stay away for up to half a minute, get all that they have missed, or are told of a gap.
func TestClocksOfNodesDiffer(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	// A build needs all of the machine, so it does not run while other tests' nodes elect leaders.
	balancer, path := testenv.Program(t, "haproxy"), buildWithClock(t)
	t.Parallel() // most of it is waiting
	s := clusterSite(t, agingConfig, path, []string{clockEnv + "=0"}, []string{clockEnv + "=6"}, []string{clockEnv + "=-6"})
	s.run(s.haproxy(balancer, ""))
	c := s.crowd(30, 2*time.Second)

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	var urls []string
	for _, b := range s.servers {
		urls = append(urls, "ws://"+b.public+"/ws")
	}
	door := make(chan struct{}, 64)
	roamers := make([]*roamer, agingClients)
	for i := range roamers {
		roamers[i] = &roamer{urls: urls, topic: fmt.Sprint("aging.", i%agingTopics), door: door, wander: 2 * time.Second, rest: 30 * time.Second}
		running.Go(func() { roamers[i].roam(ctx) })
	}
	for i := range agingTopics {
		running.Go(func() { s.age(ctx, i) })
	}
	for round := range 6 {
		c.press.goesOn()
		b := s.servers[round%3]
		b.p.signal(syscall.SIGKILL)
		b.p.ended()
		c.press.goesOn()
		b.begin(s.dir)
		b.isReady()
		sleep(ctx, 5*time.Second)
	}
	c.finish()
	cancel()
	running.Wait()
	resumed, gaps := 0, 0
	for i, r := range roamers {
		resumed, gaps = resumed+len(r.away), gaps+r.gaps
		if r.lost != nil || r.twice > 0 {
			t.Errorf("client %d missed what came after %v without a gap reported, and got %d messages twice", i, r.lost, r.twice)
		}
	}
	t.Logf("clients of what is kept for 20 s came back %d times, and were told of %d gaps", resumed, gaps)
	if gaps == 0 || gaps == resumed {
		t.Error("that is not what a stay of up to 30 s should come to")
	}
}

// age publishes a topic whose messages grow old, each until it is acknowledged.
func (s *site) age(ctx context.Context, topic int) {
	client := &http.Client{Timeout: patience}
	for n := 1; ctx.Err() == nil; n++ {
		for i := 0; ctx.Err() == nil; i++ {
			url := fmt.Sprintf("http://%s/v1/topics/aging.%d/messages", s.servers[i%len(s.servers)].internal, topic)
			if posted(ctx, client, url, fmt.Sprintf(`{"n":%d}`, n), fmt.Sprintf("aging-%d", n)) {
				break
			}
			sleep(ctx, 50*time.Millisecond)
		}
		sleep(ctx, agingPace)
	}
}
