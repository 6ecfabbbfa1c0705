package server

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// crowd is as many connections as a test opens: 15,000, but a third of them under the race detector. It leaves room
// below a descriptor limit of 20,000; where the limit is lower, the tests that need it say so.
const crowd = 15000 / testenv.RaceFactor

func needDescriptors(t testing.TB, n int) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(n+500) {
		t.Skipf("needs %d descriptors, the limit is %d: ulimit -n %d", n+500, limit.Cur, n+500)
	}
}

// A crowd comes, every one of them gets each message exactly once and in order, they go, and
// the memory is back.
func TestCrowd(t *testing.T) {
	needDescriptors(t, crowd)
	const paced, burst = 5, 25
	s := start(t, Options{Endpoints: echoAndBroadcast(), Ping: Ping{Interval: -1}})
	lone := dial(t, s, "/echo") // so that every loop's own memory is there before we look
	lone.send("x")
	lone.want("x")
	before := heapBytes()

	w := startSwarm(t, s, swarmOrder{Path: "/broadcast", Conns: crowd, Expect: paced + burst})
	eventually(t, "all are open", func() bool { return s.Count() == crowd+1 })
	for m := range paced {
		if err := s.Broadcast("/broadcast", Binary, numbered(m, 128)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it was handed out", func() bool { return s.engine.BacklogBytes() == 0 })
	}
	for m := range burst {
		if err := s.Broadcast("/broadcast", Binary, numbered(paced+m, 128)); err != nil {
			t.Fatal(err)
		}
	}
	w.wait("complete")
	eventually(t, "each is counted once", func() bool { return s.Stats().Deliveries == crowd*(paced+burst)+1 })
	r := w.end()
	if r.Wrong > 0 || r.Incomplete > 0 || r.Messages != crowd*(paced+burst) || r.Cut > 0 || r.Closed > 0 {
		t.Errorf("the clients report %+v", r)
	}
	eventually(t, "all are gone", func() bool { return s.engine.Sockets.Load() == 1 && s.Count() == 1 })
	// gnet's map of connections keeps its size, about 40 B for each that there was.
	var left int64
	defer func() { t.Logf("%d B of heap are left of each connection", left/crowd) }()
	eventually(t, "their memory is given back", func() bool { left = heapBytes() - before; return left <= crowd*80*testenv.RaceFactor })
	lone.send("still here")
	lone.want("still here")
}

// A crowd that is asked to go gets what waits for it and a close frame, every one.
func TestCrowdShutsDown(t *testing.T) {
	const conns = crowd / 3
	needDescriptors(t, conns)
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	w := startSwarm(t, s, swarmOrder{Path: "/broadcast", Conns: conns, Expect: 10})
	for m := range 10 {
		_ = s.Broadcast("/broadcast", Binary, numbered(m, 1000))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s.Shutdown(ctx)
	w.wait("complete")
	eventually(t, "all are gone", func() bool { return s.engine.Sockets.Load() == 0 })
	if r := w.end(); r.Closed != conns || r.Incomplete > 0 || r.Wrong > 0 {
		t.Errorf("the clients report %+v", r)
	}
}

// A crowd is sent away over some seconds: as many in each part of the time as in any other, to a tenth, while those who
// are still there are served as ever. A machine that is busy with other things may need more than one try for that, and
// a smaller crowd, but no client is ever sent away before its time, and all are told.
func TestCrowdDrainsEvenly(t *testing.T) {
	needDescriptors(t, crowd)
	d := evenDrain{parts: 5, over: 3 * time.Second, share: 10, longest: 200 * time.Millisecond}
	smallest := 1
	if testenv.Race { // the processors are not fast enough for it
		d.share, d.longest, smallest = 4, time.Second, 2
	}
	inFiveTries(t, func(try int) string {
		d.conns = crowd / max(min(try, 4), smallest)
		return d.run(t)
	})
}

type evenDrain struct {
	conns, parts  int
	share         int // of what is due in a part, by which it may be wrong: one in so many
	over, longest time.Duration
}

// run says what was not even.
func (d *evenDrain) run(t *testing.T) (uneven string) {
	s := start(t, Options{Endpoints: echoAndBroadcast(), Drain: Drain{Duration: d.over, Deadline: d.over + patience}})
	w := startSwarm(t, s, swarmOrder{Path: "/broadcast", Conns: d.conns})
	echoes := echoUntilTheEnd(dial(t, s, "/echo"))
	s.StartDrain("a test", 0)
	eventually(t, "connections are closed", func() bool { return s.engine.Schedule.Load() != nil })
	began := s.engine.Schedule.Load().Began
	due := func(passed time.Duration) int { return int(int64(d.conns) * int64(passed) / int64(d.over)) }
	var last time.Duration
	closed, slack := 0, d.conns/d.parts/d.share
	for part := 1; part < d.parts; part++ { // in the last one the others have to come to their end as well
		time.Sleep(time.Until(began.Add(d.over * time.Duration(part) / time.Duration(d.parts))))
		now := d.conns + 1 - s.Count()
		passed := time.Since(began)
		if now > due(passed)+slack {
			t.Errorf("%d are closed after %v of %v, before it is their turn", now, passed, d.over)
		}
		if n, want := now-closed, due(passed)-due(last); n < want-slack || n > want+slack {
			uneven = fmt.Sprintf("%d were closed in part %d, want %d", n, part, want)
		}
		closed, last = now, passed
	}
	eventually(t, "all are gone", func() bool { return s.engine.Sockets.Load() == 0 })
	all := <-echoes
	if len(all) == 0 {
		t.Fatal("no client was served meanwhile")
	}
	slices.Sort(all)
	p99 := all[len(all)*99/100]
	if p99 > d.longest {
		uneven = fmt.Sprintf("an echo takes up to %v", p99)
	}
	t.Logf("%d echoes meanwhile, half of them within %v, 99 %% within %v", len(all), all[len(all)/2], p99)
	if r := w.end(); r.Cut > 0 || r.Closed != d.conns {
		t.Errorf("the clients report %+v", r)
	}
	return uneven
}

// echoUntilTheEnd has a client ask again and again, and says in the end how long each answer took.
func echoUntilTheEnd(c *client) <-chan []time.Duration {
	echoes := make(chan []time.Duration, 1)
	go func() {
		var all []time.Duration
		defer func() { echoes <- all }()
		for {
			sent := time.Now()
			if _, err := c.conn.Write(text("here")); err != nil {
				return
			}
			if op, _, err := c.frame(); err != nil || op != Text {
				_ = c.conn.Close()
				return
			}
			all = append(all, time.Since(sent))
			time.Sleep(time.Millisecond)
		}
	}()
	return echoes
}

// The memory of a connection that does nothing, gnet's part included.
func TestIdleMemory(t *testing.T) {
	if testenv.Race {
		t.Skip("the race detector changes what memory costs")
	}
	needDescriptors(t, crowd)
	s := start(t, Options{Endpoints: echoAndBroadcast(), Ping: Ping{Interval: -1}})
	dial(t, s, "/echo")
	before := heapBytes()
	startSwarm(t, s, swarmOrder{Path: "/broadcast", Conns: crowd, Discard: true})
	if each := (heapBytes() - before) / crowd; each > 600 {
		t.Errorf("%d B of heap for each idle connection, want at most 600", each)
	}
}

// Neither echo nor broadcast allocates for a message or for a receiver.
func TestAllocations(t *testing.T) {
	if testenv.Race {
		t.Skip("the race detector allocates")
	}
	reactor.CheckOwner = false
	defer func() { reactor.CheckOwner = true }()
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast(), Ping: Ping{Interval: -1}})

	c := dial(t, s, "/echo")
	request, answer := masked(0x82, make([]byte, 128)), make([]byte, 132)
	echo := func() {
		if _, err := c.conn.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.r, answer); err != nil {
			t.Fatal(err)
		}
	}
	echo()
	if n := testing.AllocsPerRun(2000, echo); n != 0 {
		t.Errorf("an echo takes %v allocations", n)
	}

	const conns = 1000
	startSwarm(t, s, swarmOrder{Path: "/broadcast", Conns: conns, Discard: true})
	payload := numbered(0, 128)
	broadcast := func() {
		_ = s.Broadcast("/broadcast", Binary, payload)
		for s.engine.BacklogBytes() != 0 {
			time.Sleep(50 * time.Microsecond)
		}
	}
	broadcast()
	if n := testing.AllocsPerRun(200, broadcast); n > 5 {
		t.Errorf("a broadcast to %d takes %v allocations", conns, n)
	}
}
