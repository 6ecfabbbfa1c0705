package outbox

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"carillon/codec"
	"carillon/internal/testenv"
)

// policyNames are those of the configuration.
var policyNames = [...]string{Close: "close", DropOldest: "drop_oldest", DropNewest: "drop_newest", KeepLatest: "latest"}

// filling is what makes the queue of a client long that does not read: one frame at a time, whose bytes are returned.
type filling struct {
	name string
	send func(c *client, i int) int
}

// scratch is memory that is used again.
var scratch []byte

func sendCopy(c *client, size int, kind Kind) int {
	return sendCopyOf(c, codec.OpBinary, size, kind)
}

func sendCopyOf(c *client, op codec.Opcode, size int, kind Kind) int {
	scratch = codec.AppendFrame(scratch[:0], op, make([]byte, size))
	c.send(scratch, kind)
	return len(scratch)
}

// sendShared sends a frame that no other receiver keeps any more.
func sendShared(c *client, size int) int {
	b := codec.NewFrame(codec.OpBinary, make([]byte, size)).Plain()
	c.enqueue(b, Message)
	if len(b) <= ItemCost { // copied
		return len(b)
	}
	return ItemCost + len(b)
}

var fillings = []filling{
	{"one-byte echoes", func(c *client, _ int) int { return sendCopy(c, 1, Message) }},
	{"100 B echoes", func(c *client, _ int) int { return sendCopy(c, 100, Message) }},
	{"2 KB echoes", func(c *client, _ int) int { return sendCopy(c, 2050, Message) }},
	{"33 KB echoes", func(c *client, _ int) int { return sendCopy(c, 32<<10, Message) }},
	{"one-byte broadcasts", func(c *client, _ int) int { return sendShared(c, 1) }},
	{"100 B broadcasts", func(c *client, _ int) int { return sendShared(c, 100) }},
	{"replies", func(c *client, _ int) int { return sendCopy(c, 40, Reply) }},
	{"echoes and replies in turn", func(c *client, i int) int {
		return sendCopy(c, 1, []Kind{Message, Reply}[i%2])
	}},
	{"a reply behind each 2 KB of echoes", func(c *client, i int) int {
		if i%20 == 0 {
			return sendCopy(c, 2, Reply)
		}
		return sendCopy(c, 100, Message)
	}},
	{"echoes and pongs of all sizes in turn", func(c *client, i int) int {
		if i%2 == 0 {
			return sendCopy(c, 1, Message)
		}
		sendCopyOf(c, codec.OpPong, i%126, Message)
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
	for _, p := range []Policy{Close, DropOldest, DropNewest, KeepLatest} {
		for _, row := range fillings {
			t.Run(fmt.Sprintf("%s/%s", policyNames[p], row.name), func(t *testing.T) {
				before := testenv.HeapInUse()
				list := make([]*client, clients)
				for i := range list {
					list[i] = newClient(p, limit)
					list[i].fill(row, limit)
				}
				grown, counted := int(testenv.HeapInUse()-before)/clients, list[0].Bytes
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
func (c *client) fill(row filling, limit int) {
	closes, largest, most := c.limit.Policy == Close, 33<<10, 2*limit
	if c.limit.Policy == KeepLatest {
		most = limit / 2 // nothing gets full
	}
	for i, sent := 0, 0; sent < most; i++ {
		if closes && c.counted() > limit-largest || c.replies > limit-largest {
			return
		}
		sent += row.send(c, i)
	}
}

// A reply that nobody reads keeps no more than a block of the echoes that were dropped around it, and a queue that is
// empty again keeps a few KiB.
func TestQueueGivesMemoryBack(t *testing.T) {
	const clients = 50
	c := func() *client {
		return newClient(KeepLatest, 1<<20)
	}
	for _, row := range []struct {
		sentence string
		do       func(c *client)
	}{
		{"a reply among dropped echoes", func(c *client) {
			for i := range 5000 {
				c.fillOne(i == 2500)
			}
		}},
		{"a message that was half written before the others were dropped", func(c *client) {
			for range 5000 {
				c.enqueue(codec.NewFrame(codec.OpBinary, make([]byte, 100)).Plain(), History)
			}
			sendCopy(c, 200, Message)
			c.Wrote(5000*102 + 10)
		}},
		{"nothing", func(c *client) {
			for range 5000 {
				sendCopy(c, 100, Reply)
			}
			c.Wrote(5000 * 102)
		}},
	} {
		before := testenv.HeapInUse()
		list := make([]*client, clients)
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

func (c *client) fillOne(reply bool) {
	if reply {
		sendCopy(c, 2, Reply)
		return
	}
	sendCopy(c, 100, Message)
}

// waitingFrames are queues of n items that no policy drops, with nothing else in between.
func waitingFrames(policy Policy, n int) *client {
	c := newClient(policy, 64<<10)
	f := codec.NewFrame(codec.OpBinary, make([]byte, 100)).Plain()
	for i := range n {
		c.enqueue(f, History)
		if i%100 == 0 {
			sendCopy(c, 2, Reply)
		}
	}
	return c
}

// forbidden takes away what is kept while something is done that must not look at it: whoever looks finds nothing.
func forbidden(c *client, do func()) {
	kept := c.kept
	c.kept = frameQueue{}
	do()
	kept.len += c.kept.len
	c.kept = kept
}

// Only the latest ping of a client that does not read is answered, and finding the answer that it replaces looks at
// nothing else that waits.
func TestPongsLookAtNothing(t *testing.T) {
	c := waitingFrames(Close, 1000)
	sendCopyOf(c, codec.OpPong, 3, Message)
	for range 1000 {
		c.enqueue(codec.NewFrame(codec.OpBinary, nil).Plain(), History)
	}
	items, bytesBefore := c.Items(), c.Bytes
	pong := codec.AppendFrame(nil, codec.OpPong, []byte("the latest"))
	forbidden(c, func() {
		if n := testing.AllocsPerRun(100, func() { c.send(pong, Message) }); n > 0 {
			t.Errorf("%v allocations for a pong", n)
		}
		sendCopyOf(c, codec.OpPong, 125, Message)
		c.send(pong, Message)
	})
	if c.Items() != items || c.Bytes != bytesBefore {
		t.Errorf("%d items wait, %d bytes; want %d, %d", c.Items(), c.Bytes, items, bytesBefore)
	}
	checkCounts(t, c)
	pongs := 0
	for it := range c.All {
		if it.Kind == Pong {
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
	for _, p := range []Policy{DropOldest, DropNewest, KeepLatest} {
		c := waitingFrames(p, 10_000)
		forbidden(c, func() {
			for range 3000 {
				sendCopy(c, 100, Message)
				sendShared(c, 30)
			}
		})
		checkCounts(t, c)
		dropped := c.dropped
		if got := dropped + int(c.Messages()) - 10_000; got != 6000 || dropped < 5000 {
			t.Errorf("%s: %d of 6000 messages are accounted for, %d dropped", policyNames[p], got, dropped)
		}
	}
}

// How many messages are lost with a queue is known without a look at it.
func TestWaitingMessagesLooksAtNothing(t *testing.T) {
	c := waitingFrames(Close, 1000)
	for range 300 {
		sendShared(c, 100)
	}
	before, messages := c.Messages(), c.messages
	forbidden(c, func() {
		c.messages = frameQueue{}
		if got := c.Messages(); got != before || got != 1300 {
			t.Errorf("%d messages wait, %d if it may not look", before, got)
		}
		c.messages = messages
	})
}

// The work for a message does not depend on what waits already.
func BenchmarkFullQueue(b *testing.B) {
	pong := codec.AppendFrame(nil, codec.OpPong, []byte("12345678"))
	echo := codec.AppendFrame(nil, codec.OpBinary, make([]byte, 20))
	for _, row := range []struct {
		name   string
		policy Policy
		send   func(c *client, i int)
	}{
		{"pings of two sizes", Close, func(c *client, i int) { sendCopyOf(c, codec.OpPong, i%2, Message) }},
		{"ping", Close, func(c *client, _ int) { c.send(pong, Message) }},
		{"echo", DropOldest, func(c *client, _ int) { c.send(echo, Message) }},
		{"echo", KeepLatest, func(c *client, _ int) { c.send(echo, Message) }},
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
