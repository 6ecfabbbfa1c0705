package server

import (
	"encoding/binary"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/admin"
)

// guarded is a server whose memory the test says.
type guarded struct {
	*Server
	log *logBuffer

	mu        sync.Mutex
	use       memoryUse
	system    memorySystem
	collected atomic.Int64
	released  atomic.Int64
}

func startGuarded(t *testing.T, max Size, system memorySystem, collect func()) *guarded {
	t.Helper()
	g := &guarded{system: system}
	endpoints := append(policy(SlowConsumer{MaxQueue: -1}), Endpoint{Path: "/echo", Mode: ModeEcho})
	g.Server, g.log = startChanged(t, Options{Loops: 1, Endpoints: endpoints, Limits: Limits{MaxMemory: max}}, func(s *Server) {
		s.memory.find = func() memorySystem { g.mu.Lock(); defer g.mu.Unlock(); return g.system }
		s.memory.measure = func(*memoryLimit) memoryUse { g.mu.Lock(); defer g.mu.Unlock(); return g.use }
		s.memory.collect = func(release bool) {
			collect()
			g.collected.Add(1)
			if release {
				g.released.Add(1)
			}
		}
		watchful(s)
	})
	return g
}

func (g *guarded) uses(u memoryUse) { g.mu.Lock(); defer g.mu.Unlock(); g.use = u }

func (g *guarded) isOver() bool { return g.memory.over.Load() }

// The internal interface says what the limit is, and why.
func TestAPIMemory(t *testing.T) {
	s := withAPI(t, Options{Limits: Limits{MaxMemory: 5 << 40}})
	var m admin.Memory
	call(t, s, "GET", "/v1/memory", "").is(t, 200).into(t, &m)
	if m.Max != 5<<40 || m.Source != "limits.max_memory" || m.Used < 1<<20 || m.Held != 0 || m.Refusing {
		t.Errorf("it says %+v", m)
	}
	call(t, s, "GET", "/v1/memory?x=1", "").isProblem(t, 400, "bad-request", "unknown")
	reloaded(t, s, "limits.max_memory", func(o *Options) { o.Limits.MaxMemory = -1 })
	call(t, s, "GET", "/v1/memory", "").is(t, 200).into(t, &m)
	if m.Max != -1 {
		t.Errorf("it says %+v", m)
	}
}

// Garbage is collected, and is no reason to refuse or to close clients.
func TestGarbageIsNoWantOfMemory(t *testing.T) {
	g := startGuarded(t, 1000, memorySystem{}, func() {})
	cathy := dialFrozen(t, g.Server, "/broadcast")
	for n := 0; g.Stats().QueuedBytes < 1<<20; n++ {
		publish(t, g.Server, "/broadcast", n)
	}
	g.uses(memoryUse{used: 5000, kept: 900})
	eventually(t, "garbage is collected", func() bool { return g.collected.Load() > 2 })
	if g.isOver() || g.Stats().Cuts[CutMemory] > 0 || g.released.Load() > 0 {
		t.Errorf("over %v, cut %v, given back %d times", g.isOver(), g.Stats().Cuts, g.released.Load())
	}
	cathy.thaw(1)
}

// The kernel's memory for sockets fills the container while the runtime uses little.
func TestTheCgroupIsNearlyFull(t *testing.T) {
	group := &cgroup{name: "/pod", file: "memory.max", limit: 1000 << 20}
	g := startGuarded(t, 0, memorySystem{group: group, physical: 64 << 30}, func() {})
	if limit, source := g.MaxMemory(); limit != 800<<20 || source != "80% of memory.max of the cgroup /pod, 1000MiB" {
		t.Errorf("the limit is %v: %s", limit, source)
	}
	g.uses(memoryUse{used: 300 << 20, kept: 300 << 20, group: 890 << 20, other: 590 << 20})
	eventually(t, "it has looked", func() bool { return g.memory.used.Load() == 300<<20 })
	if g.isOver() {
		t.Error("it refuses already at 89 %")
	}
	// What the runtime has free can be given back, so that closing clients would be for nothing.
	g.uses(memoryUse{used: 300 << 20, kept: 300 << 20, group: 910 << 20, other: 500 << 20})
	eventually(t, "free memory is given back", func() bool { return g.released.Load() > 0 })
	if g.isOver() {
		t.Error("it refuses although there is free memory")
	}
	g.uses(memoryUse{used: 300 << 20, kept: 300 << 20, group: 910 << 20, other: 610 << 20})
	eventually(t, "it refuses", g.isOver)
	c := dialRaw(t, g.Server)
	c.write([]byte(upgradeHead("/echo")))
	if resp := c.response(); resp.StatusCode != 503 {
		t.Error(resp.Status)
	}
	if !strings.Contains(g.log.String(), "cgroup_used=910MiB cgroup_limit=1000MiB") {
		t.Errorf("the log is\n%s", g.log)
	}
	g.uses(memoryUse{used: 300 << 20, kept: 300 << 20, group: 500 << 20, other: 200 << 20})
	eventually(t, "new connections are accepted again", func() bool { return !g.isOver() })
}

// So little is left that the kernel may not wait for a collection of garbage, which does not end here.
func TestWantOfMemoryIsUrgent(t *testing.T) {
	for _, row := range []struct {
		sentence string
		max      Size
		system   memorySystem
		use      memoryUse
	}{
		{"the runtime uses nearly all of the container", 0, memorySystem{group: &cgroup{limit: 100 << 20}}, memoryUse{used: 93 << 20, kept: 10 << 20, group: 93 << 20}},
		{"sockets do", 0, memorySystem{group: &cgroup{limit: 100 << 20}}, memoryUse{used: 10 << 20, kept: 10 << 20, group: 96 << 20, other: 80 << 20}},
		{"the machine has no more", 50 << 20, memorySystem{physical: 100 << 20}, memoryUse{used: 93 << 20, kept: 10 << 20}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			ended := make(chan struct{})
			defer close(ended)
			g := startGuarded(t, row.max, row.system, func() { <-ended })
			cathy := dialFrozen(t, g.Server, "/broadcast")
			for n := 0; g.Stats().QueuedBytes < 1<<20; n++ {
				publish(t, g.Server, "/broadcast", n)
			}
			g.uses(row.use)
			eventually(t, "cathy is closed", func() bool { return g.Stats().Cuts[CutMemory] == 1 })
			if !g.isOver() {
				t.Error("new connections are accepted")
			}
			cathy.readUntilClose(codec.CloseTryAgainLater, "server is low on memory")
		})
	}
}

// begun is a message of n bytes of which as many have come as are here.
func begun(announced uint64, here int) []byte {
	b := append([]byte{0x82, 0x80 | 127}, make([]byte, 8+4+here)...)
	binary.BigEndian.PutUint64(b[2:], announced)
	return b
}

// Bob and cathy have sent much of a message, dave little of one, and the rest does not come. Above the limit those that
// hold most go, in parts of a message too, and what else comes from them is not kept.
func TestIncompleteMessagesAreShed(t *testing.T) {
	g := startGuarded(t, 1000, memorySystem{}, func() {})
	alice, bob, cathy, dave := dial(t, g.Server, "/echo"), dial(t, g.Server, "/echo"), dial(t, g.Server, "/echo"), dial(t, g.Server, "/echo")
	held := func() int64 { return g.engine.HeldBytes() }
	bob.write(begun(1<<20, 900<<10))
	cathy.write(begun(1<<20, 300<<10))
	dave.write(begun(70<<10, 5<<10))
	eventually(t, "it is counted", func() bool { return held() >= 1200<<10 })
	if n := held(); n > 3<<20 {
		t.Errorf("it counts %d", n)
	}
	g.uses(memoryUse{used: 1001, kept: 1001})
	bob.wantEnd(codec.CloseTryAgainLater, "server is low on memory")
	cathy.wantEnd(codec.CloseTryAgainLater, "server is low on memory")
	eventually(t, "nothing is kept", func() bool { return held() == 0 })
	bob.write(make([]byte, 100<<10))
	alice.send("still here")
	alice.want("still here")
	dave.write(make([]byte, 65<<10))
	if op, payload, err := dave.frame(); op != codec.OpBinary || len(payload) != 70<<10 || err != nil {
		t.Errorf("dave got %v, %d bytes, %v", op, len(payload), err)
	}
	if n := g.Stats().Cuts[CutMemory]; n != 2 || held() != 0 {
		t.Errorf("%d were closed, %d bytes are kept", n, held())
	}
}

// What is kept of messages is counted as long as it is kept, and no longer.
func TestIncompleteMessagesAreCounted(t *testing.T) {
	g := startGuarded(t, -1, memorySystem{}, func() {})
	alice, bob := dial(t, g.Server, "/echo"), dial(t, g.Server, "/echo")
	for range 3 {
		alice.write(begun(200<<10, 100<<10))
		bob.write(begun(200<<10, 100<<10))
		eventually(t, "it is counted", func() bool { return g.engine.HeldBytes() >= 200<<10 })
		alice.write(make([]byte, 100<<10))
		if _, payload, err := alice.frame(); len(payload) != 200<<10 || err != nil {
			t.Fatalf("%d bytes, %v", len(payload), err)
		}
		bob.kill()
		eventually(t, "nothing is", func() bool { return g.engine.HeldBytes() == 0 && g.Count() == 1 })
		bob = dial(t, g.Server, "/echo")
	}
}

// A container's limit changes while the server runs.
func TestMaxMemoryFollowsTheCgroup(t *testing.T) {
	g := startGuarded(t, 0, memorySystem{group: &cgroup{name: "/a", file: "memory.max", limit: 100 << 20}}, func() {})
	m := newMemoryGuard(g.Server)
	m.find = g.memory.find
	if l := m.limitNow(); l.mark != 80<<20 {
		t.Errorf("it is %v", Size(l.mark))
	}
	if strings.Contains(g.log.String(), `level=INFO msg="memory limit`) {
		t.Errorf("each start is in the log of the application:\n%s", g.log)
	}
	g.mu.Lock()
	g.system.group = &cgroup{name: "/a", file: "memory.max", limit: 200 << 20}
	g.mu.Unlock()
	if l := m.limitNow(); l.mark != 80<<20 {
		t.Errorf("the environment is read all the time: %v", Size(l.mark))
	}
	m.refreshed -= memoryRefresh
	if l := m.limitNow(); l.mark != 160<<20 || l.source != "80% of memory.max of the cgroup /a, 200MiB" {
		t.Errorf("it is %v, %s", Size(l.mark), l.source)
	}
	if !strings.Contains(g.log.String(), `level=INFO msg="memory limit changed" max_memory=160MiB`) {
		t.Errorf("the change is not in the log:\n%s", g.log)
	}
}

// The less room there is, the sooner it is looked again.
func TestMemoryIsLookedAtInTime(t *testing.T) {
	g := memoryGuard{every: memoryEvery}
	for room, most := range map[int64]time.Duration{-1: memoryFastest, 0: memoryFastest, 100 << 20: 110 * time.Millisecond, 400 << 20: 450 * time.Millisecond} {
		if pause := g.pause(room); pause < memoryFastest || pause > most {
			t.Errorf("%v before the limit it waits %v", Size(room), pause)
		}
	}
	if pause := g.pause(1 << 50); pause != memoryEvery {
		t.Errorf("far from the limit it waits %v", pause)
	}
}
