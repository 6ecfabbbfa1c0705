package server

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/server/internal/fair"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
)

// A client sends more in one go than a turn is for. All of it is answered in its order, and what it sends last before
// it closes its side, too.
func TestInputThatWaitsIsServed(t *testing.T) {
	const messages = 200_000
	s := start(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/echo", Mode: ModeEcho}}})
	c := dial(t, s, "/echo")
	var sending sync.WaitGroup
	sending.Go(func() {
		var all []byte
		for i := range messages {
			all = append(all, text(fmt.Sprint(i))...)
		}
		for part := range slicesOf(all, 300_000) {
			if _, err := c.conn.Write(part); err != nil {
				t.Error(err)
				return
			}
		}
		_, _ = c.conn.Write(masked(0x88, []byte{3, 232}))
	})
	for i := range messages {
		c.want(fmt.Sprint(i))
	}
	c.wantClose(1000, "")
	sending.Wait()
	eventually(t, "nothing is left of it", func() bool { return s.Count() == 0 })
}

func slicesOf(b []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			m := min(n, len(b))
			if !yield(b[:m]) {
				return
			}
			b = b[m:]
		}
	}
}

// Alice's echoes do not wait for all that four others on her loop have asked for, but for a turn of theirs.
func TestHeavyClientsHaveTurns(t *testing.T) {
	const heavy, asked = 4, 400
	opts := topics(TopicRule{Match: "log", History: 1000})
	opts.Loops = 1
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/echo", Mode: ModeEcho})
	s := start(t, opts)
	for range 1000 {
		mustPublish(t, s, "log", strings.Repeat("x", 100))
	}
	alice := dial(t, s, "/echo")
	var answered atomic.Int64
	var all sync.WaitGroup
	for range heavy {
		c := dial(t, s, "/ws", speakJSON)
		c.write(repeat(text(`{"id":1,"history":{"topic":"log","limit":1000}}`), asked))
		all.Go(func() {
			for range asked {
				if _, _, err := c.frame(); err != nil {
					t.Error(err)
					return
				}
				answered.Add(1)
			}
		})
	}
	eventually(t, "they are being answered", func() bool { return answered.Load() > 0 })
	for range 10 {
		alice.send("hello")
		alice.want("hello")
	}
	if n := answered.Load(); n > heavy*asked/2 {
		t.Errorf("%d of %d were answered before ten echoes", n, heavy*asked)
	}
	all.Wait()
}

// What a client has asked for that is gone is not answered, and the loop does not look at it for long.
func TestRequestsOfAGoneClientAreDropped(t *testing.T) {
	t.Parallel()
	n := newFakeNet(1)
	s := clustered(t, n, 1, topics(TopicRule{Match: "log", History: 10}), unchanged)[0]
	hold := make(chan struct{})
	fakeOf(s).mail.put(func() { <-hold })
	c := dial(t, s, "/ws", speakJSON)
	c.write(repeat(text(`{"id":1,"publish":{"topic":"log","data":1}}`), reactor.MaxSlots+100))
	eventually(t, "they wait", func() bool { return s.Stats().MessagesIn >= reactor.MaxPublishing })
	_ = c.conn.Close()
	close(hold)
	eventually(t, "no client is left", func() bool { return s.Count() == 0 })
	d := dial(t, s, "/ws", speakJSON)
	if m := d.ask(`{"id":2,"ping":{}}`); m.Pong == nil {
		t.Error(m.text)
	}
}

// On a loop that has much to hand out, large messages are held back, and come through one after the other. Small ones
// are not.
func TestLargeMessagesAreHeldBack(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast()})
	alice := dial(t, s, "/echo")
	conn := theConn(t, s)
	const much = 2 * reactor.MuchBacklog
	onLoop(t, conn, func(sh *reactor.Shard) { sh.Backlog.Add(much) })
	large := strings.Repeat("x", 1<<20-100)
	var all sync.WaitGroup
	var back atomic.Int64
	for range 5 {
		c := dial(t, s, "/echo")
		all.Go(func() {
			if _, err := c.conn.Write(text(large)); err != nil {
				t.Error(err)
			}
			if _, payload, err := c.frame(); err != nil || string(payload) != large {
				t.Errorf("%d bytes came back, %v", len(payload), err)
			}
			back.Add(1)
		})
	}
	eventually(t, "some are held back", func() (held bool) {
		onLoop(t, conn, func(sh *reactor.Shard) {
			for _, w := range sh.Run.Blocked {
				held = held || w.HeldBack
			}
		})
		return held || back.Load() == 5
	})
	if back.Load() == 5 {
		t.Error("none was held back")
	}
	for range 10 {
		alice.send("hello")
		alice.want("hello")
	}
	all.Wait()
	onLoop(t, conn, func(sh *reactor.Shard) { sh.Backlog.Add(-much) })
	eventually(t, "no connection waits", func() (none bool) {
		onLoop(t, conn, func(sh *reactor.Shard) { none = len(sh.Run.Blocked) == 0 })
		return none
	})
}

// On a loop that has much to hand out, publishers that have used little of it go on before one that has used much.
func TestPublishersThatUseLittleGoFirst(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast()})
	alice := dial(t, s, "/broadcast")
	conn := theConn(t, s)
	bob := dial(t, s, "/broadcast")
	onLoop(t, conn, func(sh *reactor.Shard) {
		sh.Backlog.Add(2 * reactor.MuchBacklog)
		conn.core().NeedWorkload().Used.AddTurn(time.Second, sh.Engine.Uptime())
	})
	alice.write(append(text("alice 1"), text("alice 2")...))
	bob.want("alice 1")
	bob.write(append(append(text("bob 1"), text("bob 2")...), text("bob 3")...))
	for _, want := range []string{"bob 1", "bob 2", "bob 3", "alice 2"} {
		bob.want(want)
	}
	onLoop(t, conn, func(sh *reactor.Shard) { sh.Backlog.Add(-2 * reactor.MuchBacklog) })
}

// While a loop is filling no publisher goes on, however little it has used: together they would fill it, and messages
// of others would be refused.
func TestPublishersWaitForALoopThatIsFilling(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast()})
	bob := dial(t, s, "/broadcast")
	conn := theConn(t, s)
	much := int64(s.opts().Limits.MaxBacklog/8 + 1<<20)
	onLoop(t, conn, func(sh *reactor.Shard) { sh.Backlog.Add(much) })
	bob.write(append(text("1"), text("2")...))
	bob.want("1")
	time.Sleep(200 * time.Millisecond)
	onLoop(t, conn, func(sh *reactor.Shard) {
		if n := len(sh.Run.Blocked); n != 1 || s.Stats().MessagesIn != 1 {
			t.Errorf("%d publishers wait, and %d messages came in", n, s.Stats().MessagesIn)
		}
		sh.Backlog.Add(-much)
	})
	bob.want("2")
}

// A publisher is charged for what its messages are encoded to for others.
func TestPublishersAreChargedForFanOut(t *testing.T) {
	opts := topics()
	opts.Loops = 1
	s := start(t, opts)
	alice := dial(t, s, "/ws?topic=a")
	conn := theConn(t, s)
	bob := dial(t, s, "/ws", speakJSON)
	bob.subscribed("a")
	charged := func() (used time.Duration) {
		onLoop(t, conn, func(sh *reactor.Shard) {
			if w := conn.core().Workload(); w != nil {
				used = w.Used.Lately(sh.Engine.Uptime())
			}
		})
		return used
	}
	const size = 300_000
	before := charged()
	alice.send(strings.Repeat("\x01", size))
	if m := bob.said(); m.Offset != 1 {
		t.Fatal(m.text)
	}
	if used, least := charged()-before, 7*size*3*time.Nanosecond; used < least {
		t.Errorf("alice was charged %v, want at least %v", used, least)
	}
}

// What waits on a loop counts with all its forms, before they are encoded.
func TestBacklogCountsEncodedForms(t *testing.T) {
	held := newHold()
	opts := topics()
	opts.Loops = 1
	opts.Endpoints = append(opts.Endpoints, held.endpoint())
	s := start(t, opts)
	dial(t, s, "/ws", speakJSON).subscribed("a")
	openStream(t, s, "/ws?topic=a").subscribed()
	dial(t, s, "/ws?topic=a")
	subscribers(t, s, "a", 3)
	held.take(dial(t, s, "/hold"))
	before := s.engine.BacklogBytes()
	const size = 100_000
	mustPublish(t, s, "a", strings.Repeat("\x01", size))
	if n := s.engine.BacklogBytes() - before; n < 8*size || n > 9*size {
		t.Errorf("%d bytes, want 6 + 1 + 1 times %d", n, size)
	}
	held.release()
	eventually(t, "all is handed out", func() bool { return s.engine.BacklogBytes() == 0 })
}

// What a client has sent before it went away is handled, although the loop has much to hand out.
func TestHeldBackInputOfAGoneClient(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast()})
	dial(t, s, "/echo")
	conn := theConn(t, s)
	message := text(strings.Repeat("x", 1<<20-100))
	type state struct {
		held     bool
		messages uint64
	}
	seen := make(chan state, 1)
	if err := conn.Do(func() {
		conn.shard().Backlog.Add(2 * reactor.MuchBacklog)
		conn.core().Received(bytes.Clone(message[:200<<10]))
		conn.core().Received(bytes.Clone(message[200<<10:]))
		held := conn.core().Workload().HeldBack
		conn.core().FinishInput(io.EOF)
		conn.shard().Backlog.Add(-2 * reactor.MuchBacklog)
		seen <- state{held, s.Stats().MessagesIn}
	}); err != nil {
		t.Fatal(err)
	}
	if got := <-seen; !got.held || got.messages != 1 {
		t.Errorf("%+v", got)
	}
}

// Messages of all clients go to the broker in one line. Where many publish, each has its share of it, whichever way it
// publishes, and gives it back.
func TestPublishersShareTheLine(t *testing.T) {
	for _, row := range []struct{ clients, each int }{{1, reactor.MaxPublishing}, {8, reactor.MaxPublishingOfAll / 8}, {2 * reactor.MaxPublishingOfAll / 3, 1}} {
		for _, how := range []string{"raw", "JSON"} {
			t.Run(fmt.Sprintf("%d %s", row.clients, how), func(t *testing.T) {
				n := newFakeNet(1)
				s := clustered(t, n, 1, topics(TopicRule{Match: "log", History: 10}), unchanged)[0]
				var clients []*client
				for range row.clients {
					if how == "JSON" {
						clients = append(clients, dial(t, s, "/ws", speakJSON))
					} else {
						clients = append(clients, dial(t, s, "/ws?topic=log"))
					}
				}
				if how == "raw" {
					subscribersOf(t, s, "log", row.clients)
				}
				hold := make(chan struct{})
				fakeOf(s).mail.put(func() { <-hold })
				message := text("1")
				if how == "JSON" {
					message = text(`{"publish":{"topic":"log","data":1}}`)
				}
				for _, c := range clients {
					c.write(message)
				}
				eventually(t, "all publish", func() bool { return int(s.engine.InFlight.Publishers.Load()) == row.clients })
				for _, c := range clients {
					c.write(repeat(message, 3*reactor.MaxPublishing))
				}
				want := uint64(row.clients * row.each)
				eventually(t, "they have their shares", func() bool { return s.Stats().MessagesIn >= want })
				time.Sleep(50 * time.Millisecond)
				if got := s.Stats().MessagesIn; got > want {
					t.Errorf("%d messages are on their way, want %d", got, want)
				}
				clients[0].conn.Close()
				close(hold)
				eventually(t, "all is published", func() bool {
					return s.engine.InFlight.Publishers.Load() == 0 && s.Stats().MessagesIn >= uint64((row.clients-1)*(1+3*reactor.MaxPublishing))
				})
			})
		}
	}
}

// Of a long history no more is copied than was asked for.
func TestHistoryCopiesWhatIsAskedFor(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "log", History: 100_000, MaxBytes: -1}))
	epoch := fill(t, s, "log", 10_000).Epoch
	for limit := range 3 {
		_, list, err := s.hub.Past("log", Start{Since: &Position{Offset: 5, Epoch: epoch}}, limit)
		if err != nil || len(list) != limit || cap(list) > 8 {
			t.Errorf("%d of %d, %v", len(list), cap(list), err)
		}
	}
	for _, known := range []string{epoch, "another"} {
		topic := s.hub.Find("log")
		list, _ := topic.Since(Start{Since: &Position{Epoch: known}}, 0, hub.MaxReplay)
		topic.Mu.Unlock()
		if len(list) != hub.MaxReplay || list[0].Offset != 1 {
			t.Errorf("%d messages from %d on", len(list), list[0].Offset)
		}
	}
}

// Bob's pong waits in his socket while the cluster takes its time with what he has asked for. That is not his fault.
func TestPingTimeoutSparesInputThatWaits(t *testing.T) {
	n := newFakeNet(1)
	opts := topics(TopicRule{Match: "log", History: 10})
	opts.Ping = Ping{Interval: 100 * time.Millisecond, Timeout: 200 * time.Millisecond}
	s := clustered(t, n, 1, opts, unchanged)[0]
	hold := make(chan struct{})
	fakeOf(s).mail.put(func() { <-hold })
	bob := dial(t, s, "/ws", speakJSON)
	bob.write(repeat(text(`{"id":1,"publish":{"topic":"log","data":1}}`), reactor.MaxSlots+10))
	time.Sleep(time.Second)
	if s.Count() != 1 || s.Stats().Cuts[CutPingTimeout] != 0 {
		t.Errorf("%d connections, %+v", s.Count(), s.Stats().Cuts)
	}
	close(hold)
	for range reactor.MaxSlots + 10 {
		if err := hearPublished(bob); err != nil {
			t.Fatal(err)
		}
	}
}

// hearPublished reads a reply to a publish, and answers pings.
func hearPublished(c *client) error {
	for {
		op, payload, err := c.frame()
		switch {
		case err != nil:
			return err
		case op == Text && strings.Contains(string(payload), "published"):
			return nil
		case op == Text:
			return fmt.Errorf("got %s", payload)
		}
		if _, err := c.conn.Write(masked(0x8a, payload)); err != nil {
			return err
		}
	}
}

// Carol comes to a topic with a long history that grows while she is sent it. She gets all of it, once and in order.
func TestLongHistory(t *testing.T) {
	const before, meanwhile = 5*hub.ReplayPiece + 7, 3000
	s := start(t, topics(TopicRule{Match: "log", History: 100_000, MaxBytes: -1}))
	epoch := fill(t, s, "log", before).Epoch
	for _, row := range []struct{ name, path string }{
		{"raw", "/ws?topic=log&since=0&epoch=" + epoch},
		{"JSON", "/ws"},
		{"events", "/ws?topic=log&since=0&epoch=" + epoch},
	} {
		t.Run(row.name, func(t *testing.T) {
			first, _ := s.Topic("log")
			var publishing sync.WaitGroup
			defer publishing.Wait()
			var next func() (string, error)
			switch row.name {
			case "events":
				st := openStream(t, s, row.path)
				st.subscribed()
				next = func() (string, error) { e, err := st.event(); return e.data, err }
			case "JSON":
				c := dial(t, s, row.path, speakJSON)
				if m := c.ask(`{"id":1,"subscribe":{"topic":"log","since":{"offset":0,"epoch":%q}}}`, epoch); m.Subscribed == nil || !*m.Subscribed.Recovered {
					t.Fatal(m.text)
				}
				next = func() (string, error) { m, err := c.trySaid(); return strings.Trim(string(m.Data), `"`), err }
			default:
				c := dial(t, s, row.path)
				next = func() (string, error) { _, payload, err := c.frame(); return string(payload), err }
			}
			publishing.Go(func() {
				for i := range meanwhile {
					mustPublish(t, s, "log", fmt.Sprint(int(first.Offset)+i+1))
				}
			})
			for i := range int(first.Offset) + meanwhile {
				if got, err := next(); err != nil || got != fmt.Sprint(i+1) {
					t.Fatalf("got %.40q, %v; want %d", got, err, i+1)
				}
			}
		})
	}
}

// Dave reads a long history more slowly than the topic forgets. He is told that something is missing, and it is
// counted.
func TestLongHistoryWithAGap(t *testing.T) {
	const kept, size = 3 * hub.ReplayPiece, 1 << 10
	s := start(t, topics(TopicRule{Match: "log", History: kept, MaxBytes: -1}))
	payload := strings.Repeat("x", size)
	publish := func(n int) {
		for range n {
			mustPublish(t, s, "log", payload)
		}
	}
	publish(kept)
	info, _ := s.Topic("log")
	dave := dialFrozen(t, s, "/ws", speakJSON)
	dave.send(fmt.Sprintf(`{"id":1,"subscribe":{"topic":"log","since":{"offset":0,"epoch":%q}}}`, info.Epoch))
	subscribersOf(t, s, "log", 1)
	publish(2 * kept)
	if m := dave.said(); m.Subscribed == nil || !*m.Subscribed.Recovered {
		t.Fatal(m.text)
	}
	last, missing := uint64(0), uint64(0)
	for last < 3*kept {
		m := dave.said()
		if m.Subscribed != nil {
			if *m.Subscribed.Recovered || missing > 0 {
				t.Fatal(m.text)
			}
			m = dave.said()
			missing = m.Offset - last - 1
		} else if m.Offset != last+1 {
			t.Fatalf("%d follows %d without a gap reported", m.Offset, last)
		}
		last = m.Offset
	}
	if n := s.Stats().Drops[DropHistory]; missing == 0 || n != missing {
		t.Errorf("%d are missing, %d were counted", missing, n)
	}
}

func subscribersOf(t *testing.T, s *Server, topic string, n int) {
	t.Helper()
	eventually(t, "they are subscribed", func() bool { i, _ := s.Topic(topic); return i.Subscribers == n })
}

// The connection is served first that has used least of the loop; a new one is never behind one that has used much.
func TestRunQueueOrder(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	sh := &reactor.Shard{Engine: &s.engine, Set: s.engine.Settings()}
	q := &sh.Run
	add := func(name uint64) *reactor.Workload {
		c := (*Conn)(reactor.Assemble(reactor.Parts{Shard: sh, ID: name}))
		w := &reactor.Workload{Conn: c.core(), Index: -1, Suspended: true}
		c.core().Reassemble(reactor.Parts{Extension: &reactor.Extension{Work: w}})
		return w
	}
	heavy, light := add(1), add(2)
	now := time.Second
	sh.Began = now
	heavy.Used.Add(10*time.Millisecond, now)
	light.Used.Add(30*time.Microsecond, now)
	q.Schedule(heavy)
	q.Schedule(light)
	newcomer := add(3)
	q.Schedule(newcomer)
	var order []uint64
	for len(q.Heap) > 0 {
		order = append(order, q.Heap.TakeFirst().Conn.ID())
	}
	if fmt.Sprint(order) != "[3 2 1]" {
		t.Errorf("served in the order %v", order)
	}
	for range 10_000 {
		heavy.Used.Add(time.Second, now)
	}
	if delay := heavy.Used.Delay(now); delay != fair.MaxDelay {
		t.Errorf("it comes after those that come %v later", delay)
	}
}

// On a loop that has more to do than it can, a connection that has used little does not wait for all that came before,
// but those have their turns, too.
func TestRunQueueOfAnOverloadedLoop(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	sh := &reactor.Shard{Engine: &s.engine, Set: s.engine.Settings(), Began: time.Minute}
	q := &sh.Run
	add := func(used time.Duration) *reactor.Workload {
		c := (*Conn)(reactor.Assemble(reactor.Parts{Shard: sh}))
		w := &reactor.Workload{Conn: c.core(), Index: -1, Suspended: true, Used: fair.Usage{Sum: used, At: time.Hour}} // which is not forgotten
		c.core().Reassemble(reactor.Parts{Extension: &reactor.Extension{Work: w}})
		q.Schedule(w)
		return w
	}
	place := func(w *reactor.Workload) (n int) {
		for ; w.Index >= 0; n++ {
			q.Pop()
		}
		return n
	}
	const crowd = 100
	for range crowd {
		add(10 * time.Millisecond)
	}
	var much *reactor.Workload
	served := false
	serveAll := func() {
		for range crowd {
			w := q.Pop()
			served = served || w == much
			sh.Began += 1500 * time.Microsecond // so none has a turn before 150 ms have passed
			q.Schedule(w)
		}
	}
	for range 3 {
		serveAll()
	}
	if n := place(add(time.Millisecond)); n > crowd/3 {
		t.Errorf("one that has used little is served as the %dth of %d", n, crowd)
	}
	for len(q.Heap) < crowd {
		add(10 * time.Millisecond)
	}
	serveAll()
	much, served = add(time.Second), false
	begin := sh.Began
	for range crowd {
		if serveAll(); served {
			break
		}
	}
	if waited := sh.Began - begin; !served || waited < fair.MaxDelay/2 {
		t.Errorf("one that has used much waited for %v, and has had a turn: %t", waited, served)
	}
}

// Of a thousand connections that use a loop together, none uses much of it. One that does what is usual waits for one
// turn of each of them at most, although it uses more, and for less if it uses less; and all of them have their turns.
func TestRunQueueOfACrowd(t *testing.T) {
	for _, test := range []struct{ needs, most time.Duration }{
		{needs: 20 * time.Microsecond, most: 20 * time.Millisecond},
		{needs: 150 * time.Microsecond, most: 30 * time.Millisecond},
	} {
		s, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		sh := &reactor.Shard{Engine: &s.engine, Set: s.engine.Settings()}
		q := &sh.Run
		const crowd, every = 1000, 50 * time.Millisecond
		turns := map[*reactor.Workload]int{}
		add := func() *reactor.Workload {
			c := (*Conn)(reactor.Assemble(reactor.Parts{Shard: sh}))
			w := &reactor.Workload{Conn: c.core(), Index: -1, Suspended: true}
			c.core().Reassemble(reactor.Parts{Extension: &reactor.Extension{Work: w}})
			return w
		}
		sh.Began = time.Second
		good := add()
		for range crowd {
			q.Schedule(add())
		}
		var arrived, longest time.Duration
		due, end := sh.Began+every/10, sh.Began+5*time.Second
		for sh.Began < end {
			if good.Index < 0 && sh.Began >= due {
				arrived, due = sh.Began, sh.Began+every
				q.Schedule(good)
			}
			w := q.Pop()
			turns[w]++
			took := q.Quantum()
			if w == good {
				if took = test.needs; sh.Began > 2*time.Second { // what each connection uses is known
					longest = max(longest, sh.Began-arrived)
				}
			}
			sh.Began += took
			w.Used.AddTurn(took, sh.Began)
			if w != good {
				q.Schedule(w)
			}
		}
		if longest > test.most {
			t.Errorf("%+v: it waits for up to %v", test, longest)
		}
		least, most := 1<<30, 0
		for w, n := range turns {
			if w != good {
				least, most = min(least, n), max(most, n)
			}
		}
		if len(turns) != crowd+1 || least < most/2 {
			t.Errorf("%d had turns, %d to %d", len(turns)-1, least, most)
		}
	}
}

// A client is charged for a large message while it comes, and for its echo.
func TestLargeMessagesAreCharged(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/ws", Mode: ModeEcho}}})
	c := dial(t, s, "/ws")
	conn := theConn(t, s)
	used := func() time.Duration {
		done := make(chan time.Duration, 1)
		conn.shard().PostDo(conn.core(), 0, func() {
			var sum time.Duration
			if w := conn.core().Workload(); w != nil {
				sum = w.Used.Sum
			}
			done <- sum
		})
		return <-done
	}
	const size = 1_000_000
	message := strings.Repeat("x", size)
	frame := text(message)
	c.write([]byte(frame[:size/2]))
	eventually(t, "the part that has come is charged", func() bool { return used() > 0 })
	c.write([]byte(frame[size/2:]))
	c.want(message)
	least := time.Duration(size) * reactor.OutputByte
	eventually(t, "the echo is charged", func() bool { return used() >= least })
	eventually(t, "it is counted once", func() bool { return s.Stats().Deliveries == 1 })
}

// A workload is there while it is needed, and no longer.
func TestWorkloadsAreLetGo(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "log", History: 10}))
	c := dial(t, s, "/ws", speakJSON)
	for range 50 {
		c.ask(`{"id":1,"history":{"topic":"log"}}`)
	}
	c.ask(`{"id":1,"nonsense":{}}`)
	conn := theConn(t, s)
	eventually(t, "it is let go", func() bool {
		gone := make(chan bool, 1)
		conn.shard().PostDo(conn.core(), 0, func() { gone <- conn.core().Extension().Work == nil })
		return <-gone
	})
}

// A turn that has taken long gives way to sockets before the loop does what else it was woken for: here a command that
// was posted during it.
func TestSocketsComeAfterALateTurn(t *testing.T) {
	var order []string // owned by the loop
	s := start(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Message: func(c *Conn, op Opcode, payload []byte) {
			order = append(order, string(payload))
			_ = c.Send(op, nil)
		},
	}}}})
	alice := dial(t, s, "/")
	conn := theConn(t, s)
	for range 20 {
		begun, hold := make(chan struct{}), make(chan struct{})
		onLoop(t, conn, func(*reactor.Shard) { order = nil })
		time.Sleep(10 * time.Millisecond) // so that it is woken
		if err := conn.Do(func() { close(begun); <-hold }); err != nil {
			t.Fatal(err)
		}
		<-begun
		if err := conn.Do(func() { order = append(order, "command") }); err != nil {
			t.Fatal(err)
		}
		alice.write(text("message"))
		time.Sleep(10 * time.Millisecond)
		close(hold)
		alice.want("")
		onLoop(t, conn, func(*reactor.Shard) {
			if want := []string{"message", "command"}; !slices.Equal(order, want) {
				t.Errorf("got %q", order)
			}
		})
	}
}

// onLoop calls f on a connection's loop and waits for it.
func onLoop(t *testing.T, c *Conn, f func(sh *reactor.Shard)) {
	t.Helper()
	done := make(chan struct{})
	if err := c.Do(func() { f(c.shard()); close(done) }); err != nil {
		t.Fatal(err)
	}
	<-done
}

func theConn(t *testing.T, s *Server) (c *Conn) {
	t.Helper()
	eventually(t, "it is there", func() bool {
		for c = range s.Conns() {
			return true
		}
		return false
	})
	return c
}

// A turn in which a client has only plain messages echoed is charged for no more than they take. Over TLS it is charged
// for what it took: records cost time of their own.
func TestOnlyPlainEchoesBoundWhatATurnCosts(t *testing.T) {
	for _, row := range []struct {
		path         string
		tls, bounded bool
	}{
		{path: "/echo", bounded: true},
		{path: "/echo", tls: true},
		{path: "/ws?topic=a"},
	} {
		t.Run(fmt.Sprintf("%s, TLS: %v", row.path, row.tls), func(t *testing.T) {
			if allOverTLS && row.bounded {
				t.Skip("it is about plain connections")
			}
			opts := topics()
			opts.Loops = 1
			opts.Endpoints = append(opts.Endpoints, echoAndBroadcast()...)
			if row.tls {
				opts.TLS.Config = testTLS()
			}
			s := start(t, opts)
			if row.tls {
				dialTLS(t, s, &tls.Config{InsecureSkipVerify: true}, row.path)
			} else {
				dial(t, s, row.path)
			}
			path, _, _ := strings.Cut(row.path, "?")
			conn := onlyConn(t, s, path)
			limit := make(chan [2]time.Duration, 1)
			_ = conn.Do(func() {
				w := conn.core().NeedWorkload()
				w.Served, w.MaxTurn = true, 0
				conn.core().Decode(text("hello"), reactor.MaxDeadline)
				once := w.MaxTurn
				conn.core().Decode(text("hello"), reactor.MaxDeadline)
				w.Served = false
				limit <- [2]time.Duration{once, w.MaxTurn}
			})
			if got := <-limit; (got[0] > 0) != row.bounded || got[1] != 2*got[0] {
				t.Errorf("a turn with one and two messages costs at most %v", got)
			}
		})
	}
}
