package server

import (
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// watchful has a server look at its memory often.
func watchful(s *Server) { s.memory.every = 20 * time.Millisecond }

// fakeUse has all that is used be in use.
func fakeUse(used *atomic.Int64) func(*memoryLimit) memoryUse {
	return func(*memoryLimit) memoryUse { return memoryUse{used: used.Load(), kept: used.Load()} }
}

// A mark that is too low for the process itself: no new client comes in, and those that are there notice nothing, since
// none is slow.
func TestMemoryAboveTheMark(t *testing.T) {
	var used atomic.Int64
	s, log := startChanged(t, Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxMemory: 1000}}, func(s *Server) {
		s.memory.measure, s.memory.collect = fakeUse(&used), func(bool) {}
		watchful(s)
	})
	alice := dial(t, s, "/echo")
	for _, row := range []struct {
		sentence string
		used     int64
		over     bool
	}{
		{"above the mark no clients come in", 1001, true},
		{"and it stays so just below it", 990, true},
		{"well below it they do", 900, false},
		{"and still do at the mark", 1000, false},
		{"until it is exceeded again", 5000, true},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			used.Store(row.used)
			eventually(t, row.sentence, func() bool { return s.memory.used.Load() == row.used && s.memory.over.Load() == row.over })
			if c := dialRaw(t, s); row.over {
				wantReasons(t, s, "/readyz", "memory")
				wantHealth(t, s, 503, "memory")
				c.write([]byte(upgradeHead("/echo")))
				if resp := c.response(); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
					t.Errorf("%s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
				}
			} else {
				wantReasons(t, s, "/readyz")
				wantHealth(t, s, 200, "ok")
				dial(t, s, "/echo")
			}
			alice.send(row.sentence)
			alice.want(row.sentence)
		})
	}
	if st := s.Stats(); st.Refusals[RefuseMemory] != 3 || st.Cuts[CutMemory] != 0 {
		t.Errorf("%d refused, %d cut; want 3 and none", st.Refusals[RefuseMemory], st.Cuts[CutMemory])
	}
	if n := strings.Count(log.String(), "limits.max_memory reached"); n != 2 {
		t.Errorf("it is said %d times, want 2", n)
	}
}

// Cathy and dave do not read; much waits for cathy, and less for dave. Above the mark cathy has to go, and
// when that is enough dave may stay. Alice gets everything.
func TestTheSlowestAreShed(t *testing.T) {
	var used atomic.Int64
	endpoints := policy(SlowConsumer{MaxQueue: -1})
	s, _ := startChanged(t, Options{Loops: 1, Endpoints: endpoints, Limits: Limits{MaxMemory: 1000}}, func(s *Server) {
		s.memory.measure, s.memory.collect = fakeUse(&used), func(bool) {
			if s.Stats().Cuts[CutMemory] > 0 {
				used.Store(500)
			}
		}
		watchful(s)
	})
	alice := dial(t, s, "/broadcast")
	cathy := dialFrozen(t, s, "/broadcast")
	eventually(t, "cathy is there", func() bool { return s.Count() == 2 })
	n := 0
	more := func(until func() bool) {
		t.Helper()
		for ; !until(); n++ {
			publish(t, s, "/broadcast", n)
			alice.wantBlock(n)
		}
	}
	more(func() bool { return s.Stats().QueuedBytes > 1<<20 })
	dave := dialFrozen(t, s, "/broadcast")
	eventually(t, "dave is there", func() bool { return s.Count() == 3 })
	more(func() bool { // both have a queue, and cathy's is the longer one
		lens := queues(s)
		return len(lens) == 2 && min(lens[0], lens[1]) > reactor.ShedLeast
	})
	used.Store(1001)
	eventually(t, "cathy is shed", func() bool { return s.Stats().Cuts[CutMemory] == 1 })
	cathy.readUntilClose(codec.CloseTryAgainLater, "server is low on memory")
	eventually(t, "it is over", func() bool { return !s.memory.over.Load() })
	alice.write(masked(0x81, []byte("still here")))
	alice.want("still here")
	if s.Count() != 2 || s.Stats().Cuts[CutMemory] != 1 || s.Stats().Drops[DropMemory] == 0 {
		t.Errorf("%d are left, %v, %v", s.Count(), s.Stats().Cuts, s.Stats().Drops)
	}
	dave.thaw(1)
}

// queues are the bytes that wait for each slow consumer.
func queues(s *Server) (list []int) {
	done := make(chan struct{})
	for c := range s.Conns() {
		c.shard().PostDo(c.core(), 0, func() {
			for _, other := range c.shard().Stalled {
				list = append(list, other.Outbox().Bytes)
			}
			close(done)
		})
		<-done
		return list
	}
	return nil
}

// Ten clients that never read hold more than the mark. All that holds it is closed, and the memory is
// there again: what is measured is the real heap.
func TestSheddingFreesMemory(t *testing.T) {
	before := memoryUsed()
	mark := before + 48<<20
	opts := Options{Loops: 1, Endpoints: append(policy(SlowConsumer{MaxQueue: -1}), Endpoint{Path: "/echo", Mode: ModeEcho}), Limits: Limits{MaxMemory: Size(mark), CloseTimeout: few}}
	s, _ := startChanged(t, opts, watchful)
	alice := dial(t, s, "/echo")
	for range 10 {
		dialFrozen(t, s, "/broadcast")
	}
	eventually(t, "all are there", func() bool { return s.Count() == 11 })
	payload := make([]byte, 1<<20)
	for s.Stats().Cuts[CutMemory] == 0 {
		if err := s.Broadcast("/broadcast", Binary, payload); err != nil && err != ErrOverloaded {
			t.Fatal(err)
		}
		alice.send("and I")
		alice.want("and I")
		if s.memory.over.Load() {
			eventually(t, "a client is shed", func() bool { return s.Stats().Cuts[CutMemory] > 0 })
		}
	}
	eventually(t, "memory is below the mark", func() bool { return !s.memory.over.Load() && s.Stats().Cuts[CutMemory] == 10 })
	eventually(t, "it is so by the heap, too", func() bool { // what else is in this process may be garbage
		runtime.GC()
		return memoryUsed() <= mark
	})
	dial(t, s, "/echo")
	alice.send("still here")
	alice.want("still here")
	runtime.KeepAlive(payload)
}

// The measure counts what is kept and not what is free.
func TestMemoryUsed(t *testing.T) {
	testenv.HeapInUse()
	before := memoryUsed()
	ballast := make([]byte, 64<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	if grown := memoryUsed() - before; grown < 60<<20 || grown > 80<<20 {
		t.Errorf("64 MiB count %v", Size(grown))
	}
	runtime.KeepAlive(ballast)
	ballast = nil
	testenv.HeapInUse()
	if grown := memoryUsed() - before; grown > 16<<20 {
		t.Errorf("%v stay when they are free", Size(grown))
	}
}
