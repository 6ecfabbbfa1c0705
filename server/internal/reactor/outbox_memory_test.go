package reactor

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"carillon/codec"
	"carillon/internal/testenv"
)

// policyNames are those of the configuration.
var policyNames = [...]string{closeSlow: "close", DropOldest: "drop_oldest", DropNewest: "drop_newest", KeepLatest: "latest"}

// filling is what makes the queue of a client long that does not read: one frame at a time, whose bytes are returned.
type filling struct {
	name string
	send func(c *Conn, i int) int
}

func sendCopy(c *Conn, size int, kind itemKind) int {
	return sendCopyOf(c, codec.OpBinary, size, kind)
}

func sendCopyOf(c *Conn, op codec.Opcode, size int, kind itemKind) int {
	b := c.sh.Control[:0]
	b = codec.AppendFrame(b, op, make([]byte, size))
	c.sh.Control = b
	c.SendBytes(b, kind)
	return len(b)
}

// sendShared sends a frame that no other receiver keeps any more.
func sendShared(c *Conn, size int) int {
	b := codec.NewFrame(codec.OpBinary, make([]byte, size)).Plain()
	c.SendEncoded(b, itemMessage)
	if len(b) <= ItemCost { // copied
		return len(b)
	}
	return ItemCost + len(b)
}

var fillings = []filling{
	{"one-byte echoes", func(c *Conn, _ int) int { return sendCopy(c, 1, itemMessage) }},
	{"100 B echoes", func(c *Conn, _ int) int { return sendCopy(c, 100, itemMessage) }},
	{"2 KB echoes", func(c *Conn, _ int) int { return sendCopy(c, 2050, itemMessage) }},
	{"33 KB echoes", func(c *Conn, _ int) int { return sendCopy(c, 32<<10, itemMessage) }},
	{"one-byte broadcasts", func(c *Conn, _ int) int { return sendShared(c, 1) }},
	{"100 B broadcasts", func(c *Conn, _ int) int { return sendShared(c, 100) }},
	{"replies", func(c *Conn, _ int) int { return sendCopy(c, 40, ItemReply) }},
	{"echoes and replies in turn", func(c *Conn, i int) int {
		return sendCopy(c, 1, []itemKind{itemMessage, ItemReply}[i%2])
	}},
	{"a reply behind each 2 KB of echoes", func(c *Conn, i int) int {
		if i%20 == 0 {
			return sendCopy(c, 2, ItemReply)
		}
		return sendCopy(c, 100, itemMessage)
	}},
	{"echoes and pongs of all sizes in turn", func(c *Conn, i int) int {
		if i%2 == 0 {
			return sendCopy(c, 1, itemMessage)
		}
		sendCopyOf(c, codec.OpPong, i%126, itemMessage)
		return 0
	}},
}

// What waits for clients that do not read takes as much memory as MaxQueue says, under each policy and whatever it
// is: at most a quarter more.
func TestQueueTakesWhatTheLimitSays(t *testing.T) {
	const limit = 256 << 10
	clients := 10
	if testenv.Race {
		clients = 2
	}
	for _, p := range []slowPolicy{closeSlow, DropOldest, DropNewest, KeepLatest} {
		for _, row := range fillings {
			t.Run(fmt.Sprintf("%s/%s", policyNames[p], row.name), func(t *testing.T) {
				sh, ep := &Shard{}, unitEndpoint(SlowConsumer{Policy: p, MaxQueue: limit})
				before := testenv.HeapInUse()
				list := make([]*Conn, clients)
				for i := range list {
					list[i] = queued(sh, ep)
					list[i].fill(row, limit)
				}
				grown, counted := int(testenv.HeapInUse()-before)/clients, int(sh.Stats.QueuedBytes.Load())/clients
				runtime.KeepAlive(list)
				if grown > limit*5/4 {
					t.Errorf("%d bytes of memory for each client, %d are counted, the limit is %d", grown, counted, limit)
				}
				if p != KeepLatest && counted < limit*3/4 {
					t.Errorf("only %d bytes wait for each", counted)
				}
				t.Logf("%.2f of the limit, %.2f counted", float64(grown)/limit, float64(counted)/limit)
			})
		}
	}
}

// fill sends twice what the limit allows, or nearly all of it where more would close the connection.
func (c *Conn) fill(row filling, limit int) {
	closes, largest, most := c.Settings().Slow.Policy == closeSlow, 33<<10, 2*limit
	if c.Settings().Slow.Policy == KeepLatest {
		most = limit / 2 // nothing gets full
	}
	for i, sent := 0, 0; sent < most; i++ {
		if closes && c.out.counted() > limit-largest || c.out.replies > limit-largest {
			return
		}
		sent += row.send(c, i)
	}
}

// A reply that nobody reads keeps no more than a block of the echoes that were dropped around it, and a queue that is
// empty again keeps a few KiB.
func TestQueueGivesMemoryBack(t *testing.T) {
	const clients = 50
	c := func() *Conn {
		return queued(&Shard{}, unitEndpoint(SlowConsumer{Policy: KeepLatest, MaxQueue: 1 << 20}))
	}
	for _, row := range []struct {
		sentence string
		do       func(c *Conn)
	}{
		{"a reply among dropped echoes", func(c *Conn) {
			for i := range 5000 {
				c.fillOne(i == 2500)
			}
		}},
		{"a message that was half written before the others were dropped", func(c *Conn) {
			for range 5000 {
				c.SendEncoded(codec.NewFrame(codec.OpBinary, make([]byte, 100)).Plain(), itemHistory)
			}
			sendCopy(c, 200, itemMessage)
			c.take(5000*102 + 10)
		}},
		{"nothing", func(c *Conn) {
			for range 5000 {
				sendCopy(c, 100, ItemReply)
			}
			c.take(5000 * 102)
		}},
	} {
		before := testenv.HeapInUse()
		list := make([]*Conn, clients)
		for i := range list {
			list[i] = c()
			row.do(list[i])
		}
		if grown := int(testenv.HeapInUse()-before) / clients; grown > 16<<10 {
			t.Errorf("%s: %d bytes are kept", row.sentence, grown)
		}
		runtime.KeepAlive(list)
	}
}

func (c *Conn) fillOne(reply bool) {
	if reply {
		sendCopy(c, 2, ItemReply)
		return
	}
	sendCopy(c, 100, itemMessage)
}

// waitingFrames are queues of n items that no policy drops, with nothing else in between.
func waitingFrames(policy slowPolicy, n int) *Conn {
	c := queued(&Shard{}, unitEndpoint(SlowConsumer{Policy: policy, MaxQueue: 64 << 10}))
	f := codec.NewFrame(codec.OpBinary, make([]byte, 100)).Plain()
	for i := range n {
		c.enqueue(f, 0, itemHistory)
		if i%100 == 0 {
			sendCopy(c, 2, ItemReply)
		}
	}
	return c
}

// forbidden takes away what is kept while something is done that must not look at it: whoever looks finds nothing.
func forbidden(c *Conn, do func()) {
	kept := c.out.kept
	c.out.kept = frameQueue{}
	do()
	kept.len += c.out.kept.len
	c.out.kept = kept
}

// Only the latest ping of a client that does not read is answered, and finding the answer that it replaces looks at
// nothing else that waits.
func TestPongsLookAtNothing(t *testing.T) {
	c := waitingFrames(closeSlow, 1000)
	sendCopyOf(c, codec.OpPong, 3, itemMessage)
	for range 1000 {
		c.enqueue(codec.NewFrame(codec.OpBinary, nil).Plain(), 0, itemHistory)
	}
	items, bytesBefore := c.out.Items(), c.out.Bytes
	pong := codec.AppendFrame(nil, codec.OpPong, []byte("the latest"))
	forbidden(c, func() {
		if n := testing.AllocsPerRun(100, func() { c.SendBytes(pong, itemMessage) }); n > 0 {
			t.Errorf("%v allocations for a pong", n)
		}
		sendCopyOf(c, codec.OpPong, 125, itemMessage)
		c.SendBytes(pong, itemMessage)
	})
	if c.out.Items() != items || c.out.Bytes != bytesBefore {
		t.Errorf("%d items wait, %d bytes; want %d, %d", c.out.Items(), c.out.Bytes, items, bytesBefore)
	}
	checkCounts(t, c)
	pongs := 0
	for it := range c.out.All {
		if it.kind == itemPong {
			if pongs++; !bytes.Equal(it.B, pong) {
				t.Errorf("the pong that waits is %q", it.B)
			}
		}
	}
	if pongs != 1 {
		t.Errorf("%d pongs wait", pongs)
	}
}

// A message that takes the place of others looks at nothing that no policy drops, however much of that waits.
func TestDropsLookAtNothingElse(t *testing.T) {
	for _, p := range []slowPolicy{DropOldest, DropNewest, KeepLatest} {
		c := waitingFrames(p, 10_000)
		forbidden(c, func() {
			for range 3000 {
				sendCopy(c, 100, itemMessage)
				sendShared(c, 30)
			}
		})
		checkCounts(t, c)
		dropped := 0
		for i := range c.sh.Stats.Drops {
			dropped += int(c.sh.Stats.Drops[i].Load())
		}
		if got := dropped + int(c.out.waitingMessages()) - 10_000; got != 6000 || dropped < 5000 {
			t.Errorf("%s: %d of 6000 messages are accounted for, %d dropped", policyNames[p], got, dropped)
		}
	}
}

// The work for a message does not depend on what waits already.
func BenchmarkFullQueue(b *testing.B) {
	pong := codec.AppendFrame(nil, codec.OpPong, []byte("12345678"))
	echo := codec.AppendFrame(nil, codec.OpBinary, make([]byte, 20))
	for _, row := range []struct {
		name   string
		policy slowPolicy
		send   func(c *Conn, i int)
	}{
		{"pings of two sizes", closeSlow, func(c *Conn, i int) { sendCopyOf(c, codec.OpPong, i%2, itemMessage) }},
		{"ping", closeSlow, func(c *Conn, _ int) { c.SendBytes(pong, itemMessage) }},
		{"echo", DropOldest, func(c *Conn, _ int) { c.SendBytes(echo, itemMessage) }},
		{"echo", KeepLatest, func(c *Conn, _ int) { c.SendBytes(echo, itemMessage) }},
	} {
		for _, n := range []int{10, 1000, 100_000} {
			b.Run(fmt.Sprintf("%s/policy=%s/waiting=%d", row.name, policyNames[row.policy], n), func(b *testing.B) {
				c := waitingFrames(row.policy, n)
				for i := 0; b.Loop(); i++ {
					row.send(c, i)
				}
			})
		}
	}
}
