package server

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// off is every time-out that can be off.
func off() (Limits, Ping) {
	return Limits{HandshakeTimeout: -1, IdleTimeout: -1, WriteTimeout: -1}, Ping{Interval: -1, Timeout: -1}
}

// A head that dribbles in is cut off at the time-out, counted from accept: each byte does not begin it
// anew.
func TestHandshakeTimeout(t *testing.T) {
	t.Parallel() // most of it is waiting
	const timeout = 2 * time.Second
	limits, ping := off()
	limits.HandshakeTimeout = timeout
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	alice := dial(t, s, "/echo")
	silent, dribbling := dialRaw(t, s), dialRaw(t, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, b := range []byte(upgradeHead("/echo", "X-Fill: "+strings.Repeat("x", 4000))) {
			if _, err := dribbling.conn.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(timeout / 20)
		}
	}()
	for _, c := range []*client{silent, dribbling} {
		resp := c.response()
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != 408 || !strings.Contains(string(body), "2s") || err != nil {
			t.Errorf("%s, %q, %v; want 408", resp.Status, body, err)
		}
		c.wantEOF()
		_ = c.conn.Close()
	}
	<-done
	if n := s.Stats().Refusals[RefuseTimeout]; n != 2 {
		t.Errorf("%d refusals counted, want 2", n)
	}
	alice.send("a handshake that is done has no time-out")
	alice.want("a handshake that is done has no time-out")
}

// The first client of a server that has been idle for long has as much time for its handshake as others.
func TestHandshakeTimeoutOfTheFirstClient(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	limits, ping := off()
	limits.HandshakeTimeout = timeout
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	time.Sleep(timeout + timeout/4)
	first, head := dialRaw(t, s), upgradeHead("/echo")
	first.write([]byte(head[:20]))
	eventually(t, "it is there", func() bool { return s.Stats().Accepted == 1 })
	begun := time.Now()
	for time.Since(begun) < timeout/4 {
		for _, sh := range s.engine.AllShards() {
			sh.PostTick()
		}
		time.Sleep(10 * time.Millisecond)
	}
	first.write([]byte(head[20:]))
	if resp := first.response(); resp.StatusCode != 101 {
		t.Errorf("the handshake is answered %s", resp.Status)
	}
}

// A loop that stood still reads what clients have sent meanwhile before it looks whose time is up.
func TestTimeoutsOfALoopThatStoodStill(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	limits, ping := off()
	limits.HandshakeTimeout, limits.IdleTimeout = timeout, timeout
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	alice, bob := dial(t, s, "/echo"), dialRaw(t, s)
	conn := theConn(t, s)
	head := upgradeHead("/echo")
	bob.write([]byte(head[:20]))
	eventually(t, "he is there", func() bool { return s.Stats().Accepted == 2 })
	blocked, release := make(chan struct{}), make(chan struct{})
	if err := conn.Do(func() { close(blocked); <-release }); err != nil {
		t.Fatal(err)
	}
	<-blocked
	alice.send("in time")
	bob.write([]byte(head[20:]))
	time.Sleep(timeout + timeout/2)
	close(release)
	alice.want("in time")
	if resp := bob.response(); resp.StatusCode != 101 {
		t.Errorf("the handshake is answered %s", resp.Status)
	}
	alice.wantClose(codec.CloseGoingAway, "no message for 2s") // a loop that goes on finds idle clients
}

// Alice talks, bob only pings and pongs, cathy sends fragments but never a whole message: idle are
// bob and cathy.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()                    // most of it is waiting
	const timeout = 4 * time.Second // alice has so long even where the machine has other things to do
	limits, ping := off()
	limits.IdleTimeout, limits.CloseTimeout = timeout, patience
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	began := time.Now()
	alice, bob, cathy := dial(t, s, "/echo"), dial(t, s, "/echo"), dial(t, s, "/echo")
	cathy.write(masked(0x01, []byte("once upon")))
	closed := func() uint64 { return s.Stats().Closes[codec.CloseGoingAway] }
	live := func() {
		alice.send("hello")
		alice.want("hello")
		bob.write(append(masked(0x89, []byte("ping")), masked(0x8a, nil)...))
		cathy.write(masked(0x00, []byte(" a time")))
		time.Sleep(50 * time.Millisecond)
	}
	eventually(t, "one is closed", func() bool { live(); return closed() > 0 })
	if took := time.Since(began); took < timeout*3/4 {
		t.Errorf("idle after %v, want %v", took, timeout)
	}
	eventually(t, "both are closed", func() bool { live(); return closed() > 1 })
	for range 12 { // more than a tick, for alice
		live()
	}
	bob.wantClose(codec.CloseGoingAway, "no message for 4s")
	cathy.wantClose(codec.CloseGoingAway, "no message for 4s")
	if n := closed(); n != 2 || s.Count() != 1 {
		t.Errorf("%d were closed and %d are open, want 2 and alice", n, s.Count())
	}
}

// All listen. Alice answers pings, bob talks instead, cathy is silent: cathy is gone.
func TestPing(t *testing.T) {
	t.Parallel() // most of it is waiting
	limits, ping := off()
	ping.Interval, ping.Timeout, ping.Jitter = 400*time.Millisecond, 4*time.Second, -1
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	alice, bob, cathy := dial(t, s, "/echo"), dial(t, s, "/echo"), dial(t, s, "/echo")

	began := time.Now()
	op, _, err := cathy.frame()
	if op != codec.OpPing || err != nil {
		t.Fatalf("cathy got %v, %v; want a ping", op, err)
	}
	if took := time.Since(began); took < ping.Interval/2 {
		t.Errorf("pinged after %v, want %v", took, ping.Interval)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 { // without an answer to a ping, bob would be gone in 4.4 s
			_, _ = bob.conn.Write(text("busy"))
			time.Sleep(100 * time.Millisecond)
		}
	}()
	go func() {
		for op, payload, err := alice.frame(); err == nil; op, payload, err = alice.frame() {
			if op == codec.OpPing {
				_, _ = alice.conn.Write(masked(0x8a, payload))
			}
		}
	}()
	cathy.wantClose(codec.CloseGoingAway, "no answer to a ping for 4s")
	<-done
	if n := s.Count(); n != 2 {
		t.Errorf("%d are open, want alice and bob", n)
	}
	if n := s.Stats().Closes[codec.CloseGoingAway]; n != 1 {
		t.Errorf("%d were closed, want cathy", n)
	}
}

// With the time-out off, one ping goes out and is waited for.
func TestPingWithoutTimeout(t *testing.T) {
	limits, ping := off()
	ping.Interval = 50 * time.Millisecond
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	c := dial(t, s, "/echo")
	if op, _, err := c.frame(); op != codec.OpPing || err != nil {
		t.Fatalf("got %v, %v; want a ping", op, err)
	}
	time.Sleep(10 * ping.Interval)
	c.send("hello")
	pings := 1
	for {
		op, _, err := c.frame()
		if err != nil {
			t.Fatal(err)
		}
		if op == Text {
			break
		}
		pings++
	}
	if pings != 1 {
		t.Errorf("%d pings to a client that does not answer, want 1", pings)
	}
}

func TestPingJitter(t *testing.T) {
	for _, row := range []struct {
		name   string
		jitter float64
		least  time.Duration
		spread bool
	}{
		{"a fifth by default", 0, 8 * time.Second, true},
		{"none", -1, 10 * time.Second, false},
		{"half", 0.5, 5 * time.Second, true},
		{"all", 1, 0, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := New(Options{Ping: Ping{Interval: 10 * time.Second, Jitter: row.jitter}})
			if err != nil {
				t.Fatal(err)
			}
			const n, bins = 10_000, 20
			width := (10*time.Second - row.least) / bins
			var bin [bins]int
			for id := range uint64(n) {
				d := reactor.Assemble(reactor.Parts{Shard: &reactor.Shard{Engine: &s.engine}, ID: id + 1}).PingInterval()
				if d < row.least || d > 10*time.Second || d < s.engine.Settings().PingEarliest {
					t.Fatalf("connection %d is pinged after %v, want %v to 10s", id, d, row.least)
				}
				if row.spread {
					bin[min(int((d-row.least)/width), bins-1)]++
				}
			}
			if few, many := slices.Min(bin[:]), slices.Max(bin[:]); row.spread && (few < n/bins*9/10 || many > n/bins*11/10) {
				t.Errorf("intervals are not spread evenly: %v", bin)
			}
		})
	}
}

// Cathy freezes while much waits for her, and is cut off; alice is not.
func TestWriteTimeout(t *testing.T) {
	t.Parallel()
	limits, ping := off()
	limits.WriteTimeout = 8 * time.Second // in which all that is to wait for cathy has to be published
	ended := make(chan error, 1)
	endpoints := []Endpoint{{Path: "/listen", SlowConsumer: SlowConsumer{MaxQueue: -1}, Handler: Handler{
		Close: func(c *Conn, err error) { ended <- err },
	}}}
	s := start(t, Options{Loops: 1, Endpoints: endpoints, Limits: limits, Ping: ping})
	alice, cathy := dial(t, s, "/listen"), dialFrozen(t, s, "/listen")
	published := 0
	for ; s.Stats().QueuedBytes < 20*blockSize; published++ {
		publish(t, s, "/listen", published)
		alice.wantBlock(published)
		if len(ended) > 0 { // nothing would be queued ever
			t.Fatalf("cathy is cut off when %d messages are published: %v", published+1, <-ended)
		}
	}
	select {
	case err := <-ended:
		if !strings.Contains(err.Error(), "limits.write_timeout") {
			t.Errorf("cathy's end: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("cathy is not cut off")
	}
	eventually(t, "nothing is queued", func() bool { return s.Stats().QueuedBytes == 0 })
	got := 0
	for cathy.block() == got {
		got++
	}
	st := s.Stats()
	if n := int(st.Drops[DropWriteTimeout]); n < 10 || n+got != published {
		t.Errorf("%d of %d messages arrived and %d were dropped: %v", got, published, n, st.Drops)
	}
	publish(t, s, "/listen", published)
	alice.wantBlock(published)
}

// Cathy reads, but so little that her socket does not call itself writable within the time-out: for
// that, a third of its buffer must be free. She is slow and not frozen, so she stays.
func TestWriteTimeoutSparesTheSlow(t *testing.T) {
	t.Parallel()
	limits, ping := off()
	limits.WriteTimeout = 5 * time.Second // which is also what she may be kept from the processor
	s := start(t, Options{Endpoints: policy(SlowConsumer{MaxQueue: -1}), Limits: limits, Ping: ping})
	cathy := dialFrozen(t, s, "/broadcast")
	published := 0
	for ; s.Stats().QueuedBytes < 20*blockSize; published++ {
		publish(t, s, "/broadcast", published)
	}
	for i := range published {
		if i < 48 && i%6 == 0 {
			time.Sleep(limits.WriteTimeout / 6) // longer than the time-out in all
		}
		cathy.wantBlock(i)
	}
}

// A client that never answers the close frame is cut.
func TestCloseTimeout(t *testing.T) {
	t.Parallel()
	limits, ping := off()
	limits.CloseTimeout = 200 * time.Millisecond
	s := start(t, Options{Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	for _, row := range []struct {
		name string
		end  func(c *client)
	}{
		{"we close and the client says nothing", func(*client) {
			for c := range s.Conns() {
				_ = c.Close(codec.CloseNormal, "")
			}
		}},
		{"the client breaks a rule and stays", func(c *client) { c.write([]byte{0xff, 0xff}) }},
		{"the client closes and stays", func(c *client) { c.write(masked(0x88, nil)) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := dial(t, s, "/echo")
			row.end(c)
			if op, _, err := c.frame(); op != codec.OpClose || err != nil {
				t.Fatalf("got %v, %v; want a close frame", op, err)
			}
			eventually(t, "the socket is closed", func() bool { return s.Stats().Sockets == 0 })
		})
	}
}

// Nothing ever happens to a client whose server has all time-outs off, and the clock goes on.
func TestTimeoutsThatAreOff(t *testing.T) {
	t.Parallel()
	limits, ping := off()
	limits.CloseTimeout = 40 * time.Millisecond // for a short tick
	s := start(t, Options{Endpoints: policy(SlowConsumer{MaxQueue: -1}), Limits: limits, Ping: ping})
	shaking, idle, frozen := dialRaw(t, s), dial(t, s, "/other"), dialFrozen(t, s, "/broadcast")
	shaking.write([]byte("GET /other"))
	published := 0
	for ; s.Stats().QueuedBytes == 0; published++ {
		publish(t, s, "/broadcast", published)
	}
	time.Sleep(time.Second)
	for i := range published {
		frozen.wantBlock(i)
	}
	idle.send("hello")
	idle.want("hello")
	shaking.write([]byte(strings.TrimPrefix(upgradeHead("/other"), "GET /other")))
	if resp := shaking.response(); resp.StatusCode != 101 {
		t.Errorf("late handshake: %s", resp.Status)
	}
}
