package reactor

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/fair"
	"carillon/server/internal/outbox"
	"carillon/server/internal/sys"
)

// unitShard is a shard without a loop.
func unitShard(t *testing.T) *Shard {
	t.Helper()
	e := &Engine{watcher: &sys.Watcher[*Conn]{}}
	e.Current.Store(&LoopSettings{IdleTimeout: -1, WriteTimeout: 10 * time.Second, CloseTimeout: 10 * time.Second, MaxBacklog: 64 << 20, MaxMessage: 1 << 20})
	return &Shard{Engine: e, Set: e.Settings(), Clock: 1}
}

// stalledConns are n connections of a shard for each of which so many frames of 64 KiB wait, and whose sockets take
// everything.
func stalledConns(t *testing.T, sh *Shard, n, frames int) (list []*Conn) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	frame := codec.NewFrame(codec.OpBinary, make([]byte, 64<<10)).Plain()
	for range n {
		c := queued(sh, unitEndpoint(SlowConsumer{Limit: outbox.Limit{Bytes: -1}}))
		c.Reassemble(Parts{FD: int32(null.Fd())})
		c.out.Slot = len(sh.Stalled)
		sh.Stalled = append(sh.Stalled, c)
		for range frames {
			c.enqueue(frame, 0, outbox.Message)
		}
		list = append(list, c)
	}
	return list
}

// itemsOf is how many items wait for each connection.
func itemsOf(list []*Conn) (items []int) {
	for _, c := range list {
		items = append(items, c.out.Items())
	}
	return items
}

// Sockets that take bytes again are served in turn, by maxFlush each, and the loop looks at others after a
// slice.
func TestWritableSocketsHaveTurns(t *testing.T) {
	const frames = 20_000
	sh := unitShard(t)
	list := stalledConns(t, sh, 4, frames)
	for _, c := range list {
		sh.writable.push(c)
	}
	for end := time.Now().Add(time.Minute); slices.Max(itemsOf(list)) == frames; {
		if time.Now().After(end) {
			t.Fatalf("of %d frames each wait %v", frames, itemsOf(list))
		}
		sh.flushWritable()
	}
	items, turn := itemsOf(list), maxFlush/(64<<10)+1
	if least, most := slices.Min(items), slices.Max(items); most-least > turn {
		t.Errorf("of %d frames each wait %v: not in turn", frames, items)
	} else if least < frames/2 {
		t.Errorf("of %d frames each wait only %v after a slice", frames, items)
	}
	if sh.writable.Len() != len(list) || !sh.busy() {
		t.Errorf("%d sockets wait for another turn", sh.writable.Len())
	}
}

// Very many connections whose write time-out has run are seen to in slices, and each of them once.
func TestWriteTimeoutsAreCutIntoSlices(t *testing.T) {
	const conns, frames = 5000, 10
	sh := unitShard(t)
	list := stalledConns(t, sh, conns, frames)
	sh.Clock += uint32(sh.Engine.Settings().WriteTimeout.Milliseconds())
	sh.sweep = sweep{running: true, stalled: len(sh.Stalled)}
	turns := 0
	for sh.sweep.stalled > 0 {
		before := sh.sweep.stalled
		sh.sweepOn()
		seen := before - sh.sweep.stalled
		if seen < 1 || seen > sweepSends {
			t.Fatalf("turn %d has seen %d connections of %d", turns, seen, conns)
		}
		turns++
	}
	for i, items := range itemsOf(list) {
		if want := frames - maxFlush/(64<<10); items != want && items != want-1 {
			t.Fatalf("connection %d has %d frames that wait, of %d", i, items, frames)
		}
	}
	if turns < conns/sweepSends || sh.writable.Len() != conns {
		t.Errorf("%d turns, %d connections go on", turns, sh.writable.Len())
	}
}

// A slice looks at the clock after one member that got many messages or bytes, and a pass has a bounded number of them.
func TestSlicesCountMessages(t *testing.T) {
	long := slice{start: time.Now().Add(-time.Hour), time: sliceTime}
	for range sliceWork - 1 {
		if long.serve(1, 100); long.over() {
			t.Fatal("it looks at the clock after each member that got one message")
		}
	}
	long = slice{start: time.Now().Add(-time.Hour), time: sliceTime}
	if long.serve(sliceWork*sliceWork, 100); !long.over() {
		t.Error("it does not look at the clock after a member that got many messages")
	}
	long = slice{start: time.Now().Add(-time.Hour), time: sliceTime}
	if long.serve(1, sliceWork*sliceBytes); !long.over() {
		t.Error("it does not look at the clock after a member that got many bytes")
	}

	a := &Audience{Shard: unitShard(t)}
	f := codec.NewFrame(codec.OpBinary, []byte("x"))
	for range 2*maxPass + 1 {
		a.Stream = append(a.Stream, f)
	}
	if a.Begin(); a.Pass.target != maxPass {
		t.Errorf("a pass has %d messages", a.Pass.target)
	}
	a.Stream = slices.Repeat([]*codec.Frame{codec.NewFrame(codec.OpBinary, make([]byte, maxBatch/4))}, 10)
	if a.Begin(); a.Pass.target != 3 {
		t.Errorf("a pass has %d messages of %d bytes", a.Pass.target, maxBatch/4)
	}
}

// A connection that has used little of its loop does not wait for a place of decompression that others hold who have
// used much, and only the one of them that has used most leaves its place.
func TestInflatingYieldsToThoseWithoutDebt(t *testing.T) {
	sh := unitShard(t)
	sh.Began = time.Minute
	bomb := codec.NewDeflater(6, 1).AppendFrame(nil, codec.OpText, []byte(strings.Repeat("x", 500_000)))
	bomb = slices.Concat(bomb[:1], []byte{bomb[1] | 0x80}, bomb[2:4], make([]byte, 4), bomb[4:]) // masked with zeros
	begin := func(used time.Duration) *Conn {
		in := &inbound{}
		in.decoder = codec.Decoder{MaxMessage: 1 << 20, Inflater: sh.inflate(), Budget: 5000}
		c := Assemble(Parts{Shard: sh, inbound: in})
		c.Reassemble(Parts{Extension: &Extension{Work: &Workload{Conn: c, Index: -1, Used: fair.Usage{Sum: used, At: sh.Began}, Suspended: true}}})
		if _, _, ok, err := in.decoder.Next(bomb); ok || err != nil || !in.decoder.Suspended() {
			t.Fatal(ok, err)
		}
		c.awaitInflater(&in.decoder)
		return c
	}
	var holders []*Conn
	for i := range maxInflating {
		used := 50 * time.Millisecond
		if i == 3 {
			used = 80 * time.Millisecond
		}
		holders = append(holders, begin(used))
	}
	holding := func() (list []int) {
		for i, c := range holders {
			if c.Inbound().decoder.InProgress() {
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
	sh.admitInflating()
	if w := light.Workload(); w.Index < 0 || w.inflates {
		t.Error("the one that has used nothing is not let in first")
	}
	light.Inbound().decoder.Budget = 5000
	if _, _, ok, err := light.Inbound().decoder.Next(nil); ok || err != nil || !light.Inbound().decoder.InProgress() {
		t.Error("it has no place", ok, err)
	}
	if !slices.Contains(sh.Run.inflating.waiting, holders[3].Workload()) {
		t.Error("the one that has left its place is forgotten")
	}
}

// A connection that is given all that waits for it has so much of it compressed at once, and the rest goes out as it
// is.
func TestCatchingUpCompressesSoMuch(t *testing.T) {
	text := []byte(strings.Repeat("compresses well ", CatchUpBytes/64))
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
			list = append(list, codec.NewFrame(codec.OpText, payload))
		}
		return list
	}
	c := queued(unitShard(t), unitEndpoint(SlowConsumer{}))
	c.Negotiated(FramingRaw, 9, 0)
	quarters := frames(6, text)
	c.boundCompression(quarters[:3])
	c.boundCompression(quarters[3:]) // of another topic
	if n := plain(quarters); n != 2 {
		t.Errorf("%d of six quarters are plain", n)
	}
	c.sh.caughtUp = 0
	large := frames(2, []byte(strings.Repeat(string(text), 8)))
	c.boundCompression(large)
	if n := plain(large); n != 1 {
		t.Errorf("%d of two large messages are plain", n)
	}
	compressed := frames(8, text)
	plain(compressed)
	c.boundCompression(compressed)
	if n := plain(compressed); n != 0 {
		t.Errorf("%d messages are plain that had been compressed", n)
	}
	c.Negotiated(FramingRaw, 0, 0)
	c.boundCompression(compressed)
}
