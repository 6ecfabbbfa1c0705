package e2e

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"carillon/internal/testenv"
)

// olderRevision is one whose nodes those of this one have to get along with, for as long as a rolling update takes:
// the last release or, as long as there is none, what its cluster begins with.
const olderRevision = "38d27feb54cb"

// buildRevision builds the program as it was.
func buildRevision(t *testing.T, revision string) string {
	t.Helper()
	if out, err := exec.Command("git", "cat-file", "-e", revision+"^{commit}").CombinedOutput(); err != nil {
		t.Skipf("revision %s is needed, in a clone of the repository with its history: %v\n%s", revision, err, out)
	}
	dir := t.TempDir()
	archive, err := exec.Command("git", "archive", revision).Output()
	if err != nil {
		t.Fatal(err)
	}
	untar := exec.Command("tar", "-x", "-C", dir)
	untar.Stdin = bytes.NewReader(archive)
	if out, err := untar.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	path := filepath.Join(dir, "older")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build revision %s: %v\n%s", revision, err, out)
	}
	return path
}

// Three nodes are updated one after the other, with clients and publishers there; one of them goes back meanwhile, as
// in a rollback. Nothing is lost, and no client is told of a gap, although two versions are one cluster all the time.
func TestNodesOfTwoVersionsAreOneCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	// A build needs all of the machine, so it does not run while other tests' nodes elect leaders.
	balancer, older := testenv.Program(t, "haproxy"), buildRevision(t, olderRevision)
	t.Parallel() // most of it is waiting
	s := clusterSite(t, teamConfig, older)
	s.run(s.haproxy(balancer, ""))
	c := s.crowd(60, 0)
	for _, step := range []struct {
		server int
		path   string
	}{{0, ""}, {1, ""}, {1, older}, {1, ""}, {2, ""}} {
		b := s.servers[step.server]
		c.press.goesOn()
		b.p.signal(syscall.SIGTERM)
		b.p.ended()
		b.path = step.path
		b.begin(s.dir)
		b.isReady()
		s.isTaken(step.server)
		c.press.goesOn()
		for _, b := range s.servers {
			if n := b.metric(`carillon_nats_received_messages_total{result="foreign"}`); n > 0 {
				t.Errorf("a node could not read %d messages", n)
			}
		}
	}
	if moves := c.finish(); moves < len(c.clients) {
		t.Errorf("the clients moved only %d times", moves)
	}
}
