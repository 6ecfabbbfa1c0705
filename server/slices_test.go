package server

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
)

// unitShard is a shard without a loop.
func unitShard(t *testing.T) *reactor.Shard {
	t.Helper()
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &reactor.Shard{Engine: &s.engine, Set: s.engine.Settings(), Clock: 1}
}

// stalledConns are n connections of a shard for each of which so many frames of 64 KiB wait, and whose sockets take
// everything.
func stalledConns(t *testing.T, sh *reactor.Shard, n, frames int) (list []*Conn) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	frame := codec.NewFrame(Binary, make([]byte, 64<<10)).Plain()
	for range n {
		c := queued(sh, unitEndpoint(SlowConsumer{MaxQueue: -1}))
		c.core().Reassemble(reactor.Parts{FD: int32(null.Fd())})
		c.core().Outbox().Slot = len(sh.Stalled)
		sh.Stalled = append(sh.Stalled, c.core())
		for range frames {
			c.core().Enqueue(frame, 0, reactor.ItemMessage)
		}
		list = append(list, c)
	}
	return list
}

// itemsOf is how many items wait for each connection.
func itemsOf(list []*Conn) (items []int) {
	for _, c := range list {
		items = append(items, c.core().Outbox().Items())
	}
	return items
}

// Sockets that take bytes again are served in turn, by reactor.MaxFlush each, and the loop looks at others after a
// slice.
func TestWritableSocketsHaveTurns(t *testing.T) {
	const frames = 20_000
	sh := unitShard(t)
	list := stalledConns(t, sh, 4, frames)
	for _, c := range list {
		sh.Writable.Push(c.core())
	}
	for end := time.Now().Add(patience); slices.Max(itemsOf(list)) == frames; {
		if time.Now().After(end) {
			t.Fatalf("of %d frames each wait %v", frames, itemsOf(list))
		}
		sh.FlushWritable()
	}
	items, turn := itemsOf(list), reactor.MaxFlush/(64<<10)+1
	if least, most := slices.Min(items), slices.Max(items); most-least > turn {
		t.Errorf("of %d frames each wait %v: not in turn", frames, items)
	} else if least < frames/2 {
		t.Errorf("of %d frames each wait only %v after a slice", frames, items)
	}
	if sh.Writable.Len() != len(list) || !sh.Busy() {
		t.Errorf("%d sockets wait for another turn", sh.Writable.Len())
	}
}

// Very many connections whose write time-out has run are seen to in slices, and each of them once.
func TestWriteTimeoutsAreCutIntoSlices(t *testing.T) {
	const conns, frames = 5000, 10
	sh := unitShard(t)
	list := stalledConns(t, sh, conns, frames)
	sh.Clock += uint32(sh.Engine.Settings().WriteTimeout.Milliseconds())
	sh.Sweep = reactor.Sweep{Running: true, Stalled: len(sh.Stalled)}
	turns := 0
	for sh.Sweep.Stalled > 0 {
		before := sh.Sweep.Stalled
		sh.SweepOn()
		seen := before - sh.Sweep.Stalled
		if seen < 1 || seen > reactor.SweepSends {
			t.Fatalf("turn %d has seen %d connections of %d", turns, seen, conns)
		}
		turns++
	}
	for i, items := range itemsOf(list) {
		if want := frames - reactor.MaxFlush/(64<<10); items != want && items != want-1 {
			t.Fatalf("connection %d has %d frames that wait, of %d", i, items, frames)
		}
	}
	if turns < conns/reactor.SweepSends || sh.Writable.Len() != conns {
		t.Errorf("%d turns, %d connections go on", turns, sh.Writable.Len())
	}
}

// How many messages are lost with a queue is known without a look at it.
func TestWaitingMessagesLooksAtNothing(t *testing.T) {
	c := waitingFrames(PolicyClose, 1000)
	for range 300 {
		sendShared(c, 100)
	}
	before, messages := c.core().Outbox().WaitingMessages(), c.core().Outbox().Messages
	forbidden(c, func() {
		c.core().Outbox().Messages = reactor.FrameQueue{}
		if got := c.core().Outbox().WaitingMessages(); got != before || got != 1300 {
			t.Errorf("%d messages wait, %d if it may not look", before, got)
		}
		c.core().Outbox().Messages = messages
	})
}

// A slice looks at the clock after one member that got many messages or bytes, and a pass has a bounded number of them.
func TestSlicesCountMessages(t *testing.T) {
	long := reactor.Slice{Start: time.Now().Add(-time.Hour), Time: reactor.SliceTime}
	for range reactor.SliceWork - 1 {
		if long.Serve(1, 100); long.Over() {
			t.Fatal("it looks at the clock after each member that got one message")
		}
	}
	long = reactor.Slice{Start: time.Now().Add(-time.Hour), Time: reactor.SliceTime}
	if long.Serve(reactor.SliceWork*reactor.SliceWork, 100); !long.Over() {
		t.Error("it does not look at the clock after a member that got many messages")
	}
	long = reactor.Slice{Start: time.Now().Add(-time.Hour), Time: reactor.SliceTime}
	if long.Serve(1, reactor.SliceWork*reactor.SliceBytes); !long.Over() {
		t.Error("it does not look at the clock after a member that got many bytes")
	}

	a := &reactor.Audience{Shard: unitShard(t)}
	f := codec.NewFrame(Binary, []byte("x"))
	for range 2*reactor.MaxPass + 1 {
		a.Stream = append(a.Stream, f)
	}
	if a.Begin(); a.Pass.Target != reactor.MaxPass {
		t.Errorf("a pass has %d messages", a.Pass.Target)
	}
	a.Stream = slices.Repeat([]*codec.Frame{codec.NewFrame(Binary, make([]byte, reactor.MaxBatch/4))}, 10)
	if a.Begin(); a.Pass.Target != 3 {
		t.Errorf("a pass has %d messages of %d bytes", a.Pass.Target, reactor.MaxBatch/4)
	}
}

// A connection that has used little of its loop does not wait for a place of decompression that others hold who have
// used much, and only the one of them that has used most leaves its place.
func TestInflatingYieldsToThoseWithoutDebt(t *testing.T) {
	sh := unitShard(t)
	sh.Began = time.Minute
	bomb := deflated(t, strings.Repeat("x", 500_000))
	begin := func(used time.Duration) *Conn {
		in := &reactor.Inbound{}
		in.Decoder = codec.Decoder{MaxMessage: 1 << 20, Inflater: sh.Inflate(), Budget: 5000}
		c := (*Conn)(reactor.Assemble(reactor.Parts{Shard: sh, Inbound: in}))
		c.core().Reassemble(reactor.Parts{Extension: &reactor.Extension{Work: &reactor.Workload{Conn: c.core(), Index: -1, Used: reactor.Usage{Sum: used, At: sh.Began}, Suspended: true}}})
		if _, _, ok, err := in.Decoder.Next(masked(0xc1, bomb)); ok || err != nil || !in.Decoder.Suspended() {
			t.Fatal(ok, err)
		}
		c.core().AwaitInflater(&in.Decoder)
		return c
	}
	var holders []*Conn
	for i := range reactor.MaxInflating {
		used := 50 * time.Millisecond
		if i == 3 {
			used = 80 * time.Millisecond
		}
		holders = append(holders, begin(used))
	}
	holding := func() (list []int) {
		for i, c := range holders {
			if c.core().Inbound().Decoder.InProgress() {
				list = append(list, i)
			}
		}
		return list
	}
	all := []int{0, 1, 2, 3, 4, 5, 6, 7}
	if got := holding(); !slices.Equal(got, all) {
		t.Fatalf("%v hold places", got)
	}
	begin(40 * time.Millisecond)
	begin(80 * time.Millisecond)
	if got := holding(); !slices.Equal(got, all) {
		t.Errorf("%v hold places after others came that have used as much", got)
	}

	light := begin(0)
	if got := holding(); !slices.Equal(got, []int{0, 1, 2, 4, 5, 6, 7}) {
		t.Errorf("%v hold places after one came that has used nothing", got)
	}
	sh.AdmitInflating()
	if w := light.core().Workload(); w.Index < 0 || w.Inflates {
		t.Error("the one that has used nothing is not let in first")
	}
	light.core().Inbound().Decoder.Budget = 5000
	if _, _, ok, err := light.core().Inbound().Decoder.Next(nil); ok || err != nil || !light.core().Inbound().Decoder.InProgress() {
		t.Error("it has no place", ok, err)
	}
	if !slices.Contains(sh.Run.Inflating.Waiting, holders[3].core().Workload()) {
		t.Error("the one that has left its place is forgotten")
	}
}

// A connection that is given all that waits for it has so much of it compressed at once, and the rest goes out as it
// is.
func TestCatchingUpCompressesSoMuch(t *testing.T) {
	text := []byte(strings.Repeat("compresses well ", reactor.CatchUpBytes/64))
	d := codec.NewDeflater(1, 1)
	plain := func(list []*codec.Frame) (n int) {
		for _, f := range list {
			if got := f.DeflatedWithin(d, 9); &got[0] == &f.Plain()[0] {
				n++
			}
		}
		return n
	}
	frames := func(n int, payload []byte) (list []*codec.Frame) {
		for range n {
			list = append(list, codec.NewFrame(Text, payload))
		}
		return list
	}
	c := queued(unitShard(t), unitEndpoint(SlowConsumer{}))
	c.core().Negotiated(reactor.FramingRaw, 9, 0)
	quarters := frames(6, text)
	c.core().BoundCompression(quarters[:3])
	c.core().BoundCompression(quarters[3:]) // of another topic
	if n := plain(quarters); n != 2 {
		t.Errorf("%d of six quarters are plain", n)
	}
	c.shard().CaughtUp = 0
	large := frames(2, []byte(strings.Repeat(string(text), 8)))
	c.core().BoundCompression(large)
	if n := plain(large); n != 1 {
		t.Errorf("%d of two large messages are plain", n)
	}
	compressed := frames(8, text)
	plain(compressed)
	c.core().BoundCompression(compressed)
	if n := plain(compressed); n != 0 {
		t.Errorf("%d messages are plain that had been compressed", n)
	}
	c.core().Negotiated(reactor.FramingRaw, 0, 0)
	c.core().BoundCompression(compressed)
}

// Messages that wait for a connection, more than are compressed at once, come whole and before what is sent to it
// alone.
func TestCatchingUpSendsAll(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Compression = Compression{Enabled: true}
	s := start(t, opts)
	c := dial(t, s, "/ws?topic=a", "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9")
	subscribers(t, s, "a", 1)
	var conn *Conn
	for conn = range s.Conns() {
	}
	const messages = 6
	text := strings.Repeat("compresses well ", reactor.CatchUpBytes/64)
	blocked, goOn := make(chan struct{}), make(chan struct{})
	_ = conn.Do(func() { close(blocked); <-goOn })
	<-blocked
	for i := range messages {
		mustPublish(t, s, "a", fmt.Sprint(i, text))
	}
	if err := conn.Send(Text, []byte("that is all")); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	for i := range messages {
		header, payload := c.rawFrame()
		got := string(payload)
		if header[0] == 0xc1 {
			got = inflated(t, payload)
		}
		if got != fmt.Sprint(i, text) {
			t.Fatalf("message %d: %x %.80q", i, header, got)
		}
	}
	c.wantFrame(0x81, "that is all")
}

// A history goes out in pieces of so many messages and bytes.
func TestPiecesOfHistory(t *testing.T) {
	list := func(n, size int) (list []*hub.Message) {
		for range n {
			list = append(list, &hub.Message{Raw: codec.NewFrame(Text, make([]byte, size))})
		}
		return list
	}
	for _, test := range []struct{ n, size, want int }{
		{0, 0, 0}, {1, 10, 1}, {hub.ReplayPiece, 10, hub.ReplayPiece}, {hub.ReplayPiece + 1, 10, hub.ReplayPiece}, {1, 2 * hub.ReplayBytes, 1}, {2, 2 * hub.ReplayBytes, 1}, {8, hub.ReplayBytes / 4, 4},
	} {
		if got := hub.PieceOf(list(test.n, test.size)); got != test.want {
			t.Errorf("the first piece of %d messages of %d bytes has %d", test.n, test.size, got)
		}
	}
}
