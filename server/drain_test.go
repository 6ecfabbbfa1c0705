package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/admin"
)

// goodbye reads up to the close frame, answers it, and returns when it came, what it says and when the
// client is asked to come back.
func (c *client) goodbye() (at time.Time, code codec.CloseCode, reason string, retry time.Duration) {
	for {
		op, payload, err := c.frame()
		if err != nil {
			c.t.Errorf("instead of a close frame: %v", err)
			return
		}
		if op != codec.OpClose || len(payload) < 2 {
			continue
		}
		at, code, reason = time.Now(), codec.CloseCode(binary.BigEndian.Uint16(payload)), string(payload[2:])
		ms, err := strconv.Atoi(reason[strings.LastIndex(reason, "=")+1:])
		if err != nil || !strings.Contains(reason, "; retry=") {
			c.t.Errorf("closed with %q", reason)
		}
		_, _ = c.conn.Write(masked(0x88, payload[:2]))
		_, _ = io.Copy(io.Discard, c.r)
		_ = c.conn.Close()
		return at, code, reason, time.Duration(ms) * time.Millisecond
	}
}

// Three hundred clients are sent away over a second and a half: evenly, those who came first before the others, and
// none is told to come back at the same moment as all the rest. Bob, who came last, is served without delay until his
// own turn. A machine that is busy with other things may need more than one try, but no client is ever sent away before
// its time, and all are told.
func TestDrainIsEven(t *testing.T) {
	inFiveTries(t, func(int) string { return drainEvenly(t) })
}

// inFiveTries tries until something is even: run says what was not.
func inFiveTries(t *testing.T, run func(try int) (uneven string)) {
	t.Helper()
	for try := 1; ; try++ {
		uneven := run(try)
		if uneven == "" || t.Failed() {
			return
		}
		if try == 5 {
			t.Fatal(uneven)
		}
		t.Logf("try %d: %s", try, uneven)
	}
}

// drainEvenly says what was not even.
func drainEvenly(t *testing.T) (uneven string) {
	const crowd, over = 300, 1500 * time.Millisecond
	s, cancel, ended := runUntil(t, Options{Loops: 2, Endpoints: echoAndBroadcast(),
		Drain: Drain{Duration: over, Deadline: patience, CloseCode: 1012}})
	left := make([]time.Time, crowd)
	retries := make([]time.Duration, crowd)
	var wg sync.WaitGroup
	for i := range crowd {
		c := dial(t, s, "/echo")
		wg.Go(func() {
			at, code, _, retry := c.goodbye()
			if left[i], retries[i] = at, retry; code != 1012 {
				t.Errorf("closed with %v", code)
			}
		})
	}
	bob := dial(t, s, "/echo")
	began := time.Now()
	cancel()
	slowest := time.Duration(0)
	for served := true; served; {
		sent := time.Now()
		if _, err := bob.conn.Write(text("here")); err != nil {
			t.Fatal(err)
		}
		op, _, err := bob.frame()
		if err != nil {
			t.Fatal(err)
		}
		if served = op == Text; served {
			slowest = max(slowest, time.Since(sent))
			time.Sleep(time.Millisecond)
		}
	}
	if bobs := time.Since(began); bobs < over {
		t.Errorf("bob was closed after %v, before his turn", bobs)
	}
	_ = bob.conn.Close()
	wg.Wait()
	wantEnd(t, ended)

	var parts [3]int
	for _, at := range left {
		parts[min(int(3*at.Sub(began)/over), 2)]++
	}
	for i, n := range parts {
		if n < crowd/3-crowd/15 || n > crowd/3+crowd/15 {
			uneven = fmt.Sprintf("%d were closed in part %d of 3", n, i+1)
		}
	}
	if late := left[len(left)-1].Sub(left[0]); late < over*8/10 {
		uneven = fmt.Sprintf("the last came %v after the first", late)
	}
	slices.Sort(retries)
	if first, last := retries[0], retries[crowd-1]; first < 100*time.Millisecond || last > 1100*time.Millisecond || last-first < 900*time.Millisecond {
		t.Errorf("they shall come back after %v to %v", first, last)
	}
	if slowest > time.Second {
		uneven = fmt.Sprintf("bob waited %v", slowest)
	}
	t.Logf("in thirds %v, bob waited at most %v", parts, slowest)
	return uneven
}

// In random order every client goes once, and the first to go are not those who came first. Those who go together do
// not come back together.
func TestDrainInRandomOrder(t *testing.T) {
	const crowd = 60
	s, cancel, ended := runUntil(t, Options{Endpoints: echoAndBroadcast(),
		Drain: Drain{Duration: 500 * time.Millisecond, Deadline: patience, Order: OrderRandom}})
	var mu sync.Mutex
	var order []int
	var retries []time.Duration
	var wg sync.WaitGroup
	for i := range crowd {
		c := dial(t, s, "/echo")
		wg.Go(func() {
			_, _, _, retry := c.goodbye()
			mu.Lock()
			defer mu.Unlock()
			order, retries = append(order, i), append(retries, retry)
		})
	}
	cancel()
	wg.Wait()
	wantEnd(t, ended)
	if early := slices.Max(order[:crowd/4]); len(order) != crowd || early < crowd/2 {
		t.Errorf("they went in the order %v", order)
	}
	if early := retries[:crowd/4]; slices.Max(early)-slices.Min(early) < 300*time.Millisecond {
		t.Errorf("clients that went first are to come back after %v", early)
	}
}

// An operator begins a drain and thinks better of it: alice, who came meanwhile, stays. The second drain goes
// its way, and then it is too late.
func TestDrainIsCalledOff(t *testing.T) {
	t.Parallel()
	s := withAPI(t, Options{Drain: Drain{Delay: 2 * patience, Duration: -1, Deadline: 3 * patience}})
	state := func() (st admin.Drain) {
		t.Helper()
		call(t, s, "GET", "/v1/drain", "").is(t, 200).into(t, &st)
		return st
	}
	call(t, s, "DELETE", "/v1/drain", "").isProblem(t, 409, "no-such-drain", "")
	if st := state(); State(st.State) != StateServing || !st.Listening || st.Began != 0 {
		t.Errorf("before: %+v", st)
	}
	var st admin.Drain
	call(t, s, "POST", "/v1/drain", "").is(t, 202).into(t, &st)
	alice := dial(t, s, "/echo")
	if st = state(); State(st.State) != StateDraining || !st.Listening || st.Remaining != 1 || st.Total != 1 ||
		st.ETA < st.Began+2*patience.Milliseconds() || st.Reason == "" || s.State() != StateDraining {
		t.Errorf("in the delay: %+v", st)
	}
	call(t, s, "POST", "/v1/drain", "").is(t, 202) // as it is
	call(t, s, "DELETE", "/v1/drain", "").is(t, 200).into(t, &st)
	if State(st.State) != StateServing || State(state().State) != StateServing {
		t.Errorf("called off: %+v", st)
	}
	alice.send("still here")
	alice.want("still here")

	if !s.StartDrain("a test", 0) || s.StartDrain("another", 0) {
		t.Error("a drain that is under way begins anew")
	}
	at, code, _, _ := alice.goodbyeOpen()
	if code != 1001 || at.IsZero() {
		t.Errorf("closed with %v", code)
	}
	if st = state(); State(st.State) != StateDraining || st.Listening || st.Total != 1 || st.Reason != "a test" {
		t.Errorf("closing: %+v", st)
	}
	call(t, s, "DELETE", "/v1/drain", "").isProblem(t, 409, "drain-under-way", "")
	if err := s.CallOffDrain(); err != ErrDrainUnderWay {
		t.Errorf("called off with %v", err)
	}
	_ = alice.conn.Close()
	eventually(t, "it has ended", func() bool { return s.State() == StateStopped })
	if s.StartDrain("after the end", 0) || s.CallOffDrain() != ErrDrainUnderWay {
		t.Error("a server that has ended drains")
	}
}

// goodbyeOpen is goodbye without an answer, so that the connection stays.
func (c *client) goodbyeOpen() (at time.Time, code codec.CloseCode, reason string, err error) {
	for {
		op, payload, err := c.frame()
		if err != nil || op == codec.OpClose && len(payload) >= 2 {
			if err != nil {
				c.t.Errorf("instead of a close frame: %v", err)
				return at, 0, "", err
			}
			return time.Now(), codec.CloseCode(binary.BigEndian.Uint16(payload)), string(payload[2:]), nil
		}
	}
}

// A program that ends cannot be talked out of it.
func TestTheEndIsNotCalledOff(t *testing.T) {
	t.Parallel()
	s, cancel, ended := runUntil(t, Options{Endpoints: echoAndBroadcast(), Drain: Drain{Delay: time.Second, Duration: -1, Deadline: patience}})
	alice := dial(t, s, "/echo")
	s.StartDrain("over HTTP", 3*time.Second)
	cancel()
	eventually(t, "it cannot be called off", func() bool {
		s.drainState.mu.Lock()
		defer s.drainState.mu.Unlock()
		return s.drainState.now.final
	})
	if err := s.CallOffDrain(); err != ErrDrainUnderWay {
		t.Errorf("called off with %v", err)
	}
	alice.send("hello")
	alice.want("hello")
	alice.goodbye()
	wantEnd(t, ended)
}

// A drain would take a minute, but then there is no time for that.
func TestShutdownHurriesADrain(t *testing.T) {
	for _, row := range []struct {
		name  string
		drain Drain
	}{
		{"in its delay", Drain{Delay: time.Minute}},
		{"while connections are closed", Drain{Duration: time.Minute}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, cancel, ended := runUntil(t, Options{Endpoints: echoAndBroadcast(), Drain: row.drain})
			var clients []*client
			for range 200 { // which would take 2 s
				clients = append(clients, dial(t, s, "/echo"))
			}
			began := time.Now()
			cancel()
			eventually(t, "it drains", func() bool { return s.State() == StateDraining })
			ctx, done := context.WithTimeout(context.Background(), patience)
			defer done()
			s.Shutdown(ctx)
			var wg sync.WaitGroup
			for _, c := range clients {
				wg.Go(func() { c.goodbye() })
			}
			wg.Wait()
			wantEnd(t, ended)
			if took := time.Since(began); took > 1500*time.Millisecond && !testenv.Race {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// Cathy's request is on its way when the port is given up. It still opens a connection, which is then closed
// in its turn; dave, who never asks for anything, is told 503.
func TestDrainTakesWhatIsUnderWay(t *testing.T) {
	s, cancel, ended := runUntil(t, Options{Listen: freeAddress(t), Endpoints: echoAndBroadcast(), Drain: Drain{Duration: 5 * time.Second, Deadline: patience}})
	alice, cathy, dave := dial(t, s, "/echo"), dialRaw(t, s), dialRaw(t, s)
	head := upgradeHead("/echo")
	cathy.write([]byte(head[:60]))
	eventually(t, "the server has seen them all", func() bool { return s.Stats().Accepted == 3 })
	cancel()
	alice.goodbye()
	if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("bob could connect")
	}
	cathy.write([]byte(head[60:]))
	if resp := cathy.response(); resp.StatusCode != 101 {
		t.Errorf("cathy got %s", resp.Status)
	}
	cathy.goodbye()
	resp := dave.response()
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("dave got %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	_ = dave.conn.Close()
	wantEnd(t, ended)
}

// What does not go is cut at the deadline.
func TestDrainDeadline(t *testing.T) {
	limits, ping := off()
	limits.CloseTimeout = patience
	s, cancel, ended := runUntil(t, Options{Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping,
		Drain: Drain{Duration: 100 * time.Millisecond, Deadline: 400 * time.Millisecond}})
	alice := dial(t, s, "/echo") // reads nothing
	eventually(t, "she is there", func() bool { return s.Count() == 1 })
	began := time.Now()
	cancel()
	wantEnd(t, ended)
	if took := time.Since(began); took < 300*time.Millisecond || took > patience/2 {
		t.Errorf("it took %v", took)
	}
	_ = alice.conn.Close()
}

// A connection that is old enough is closed and told when to come back, others are not, and those that came
// together do not leave together. A stream of events says it in its own words.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Endpoints: append(echoAndBroadcast(), topicsEndpoint()),
		Connections: Connections{MaxAge: 4 * time.Second, MaxAgeJitter: 0.75}})
	began := time.Now()
	events := dialRaw(t, s)
	events.write([]byte("GET /ws?topic=a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"))
	var mu sync.Mutex
	var ages []time.Duration
	var wg sync.WaitGroup
	for range 50 {
		c := dial(t, s, "/echo")
		wg.Go(func() {
			at, code, reason, _ := c.goodbye()
			if code != 1001 || !strings.HasPrefix(reason, "connection has reached connections.max_age; retry=") {
				t.Errorf("closed with %v %q", code, reason)
			}
			mu.Lock()
			defer mu.Unlock()
			ages = append(ages, at.Sub(began))
		})
	}
	_ = events.conn.SetReadDeadline(time.Now().Add(patience))
	stream, err := io.ReadAll(events.r)
	if err != nil || !strings.Contains(string(stream), "retry: ") || !strings.Contains(string(stream), "event: close\ndata: {\"code\":1001,") {
		t.Errorf("the stream was %s, %v", stream, err)
	}
	wg.Wait()
	slices.Sort(ages)
	if first, last := ages[0], ages[len(ages)-1]; first < 500*time.Millisecond || last-first < time.Second {
		t.Errorf("they were closed after %v to %v", first, last)
	}
}

func TestPaceOfADrain(t *testing.T) {
	d := Drain{Duration: 10 * time.Second}
	for connections, want := range map[int]time.Duration{0: 0, 1: 10 * time.Millisecond, 500: 5 * time.Second, 1_000_000: 10 * time.Second} {
		if got := d.paceFor(connections); got != want {
			t.Errorf("%d connections go in %v, want %v", connections, got, want)
		}
	}
}
