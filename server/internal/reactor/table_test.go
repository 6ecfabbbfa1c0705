package reactor

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"carillon/codec"
	"carillon/server/internal/outbox"
	"carillon/server/stats"
)

// queued makes a connection that was stalled already, so that all it is sent waits in its outbox.
func queued(sh *Shard, ep *LoopEndpoint) *Conn {
	c := Assemble(Parts{Shard: sh, Endpoint: ep, FD: -1, Outbox: &outbox.Outbox{}})
	c.State().Store(StateOpen)
	return c
}

func unitEndpoint(slow SlowConsumer) *LoopEndpoint {
	e := &Engine{}
	e.Current.Store(&LoopSettings{Endpoints: []LoopEndpointSettings{{Slow: slow}}})
	return &LoopEndpoint{Engine: e}
}

// groupModel is a table with members that come and go, and what each must have.
type groupModel struct {
	t       *testing.T
	r       *rand.Rand
	g       *Table
	members map[*Conn]uint32 // the first message that concerns it
	next    uint32
}

func (m *groupModel) join() {
	c := queued(m.g.Shard, m.g.Endpoint)
	m.g.Add(c, Times{})
	m.members[c] = m.next
}

func (m *groupModel) leave() {
	if len(m.g.Members) > 0 {
		m.check(m.g.Members[m.r.IntN(len(m.g.Members))].Conn, false)
	}
}

// check looks at what a member has, which must be without a gap, and removes it unless it stays.
func (m *groupModel) check(c *Conn, stays bool) {
	m.t.Helper()
	want := m.members[c]
	for it := range c.out.All {
		if got := binary.BigEndian.Uint32(it.B[2:]); got != want {
			m.t.Fatalf("got message %d, want %d", got, want)
		}
		want++
	}
	if seq := m.g.Members[c.Slot()].Seq; m.g.Members[c.Slot()].Conn != c || want != seq-m.g.Base+m.next-uint32(len(m.g.Stream)) {
		m.t.Fatalf("it has messages up to %d, but the group thinks up to %d of %d", want, seq-m.g.Base, m.next)
	}
	if stays {
		if want != m.next {
			m.t.Fatalf("it has messages up to %d of %d", want, m.next)
		}
		return
	}
	delete(m.members, c)
	m.g.Remove(c)
}

// walk goes on for some steps, and stops anywhere.
func (m *groupModel) walk() {
	for range m.r.IntN(100) {
		switch g := m.g; {
		case len(g.Stream) == 0:
			return
		case g.Pass == nil:
			g.Begin()
		case g.Pass.Cursor < len(g.Members):
			g.Serve(g.Pass.Cursor)
		default:
			g.Finish()
		}
	}
}

// Members join and leave between the slices of a walk, and single ones catch up: nobody who stays
// misses a message or gets one twice.
func TestGroupWalk(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		sh := &Shard{Engine: &Engine{}, Set: &LoopSettings{}, Histograms: stats.Histograms{Flushed: make([]stats.Histogram, 2)}}
		g := NewTable(sh, unitEndpoint(SlowConsumer{Limit: outbox.Limit{Bytes: -1}}))
		g.Base = 1<<32 - 20 // it wraps
		m := &groupModel{t: t, r: r, g: g, members: map[*Conn]uint32{}}
		for range 400 {
			switch r.IntN(6) {
			case 0, 1:
				payload := binary.BigEndian.AppendUint32(nil, m.next)
				g.Publish(codec.NewFrame(codec.OpBinary, append(payload, make([]byte, outbox.ItemCost)...)), 0) // smaller ones share memory
				m.next++
			case 2, 3:
				m.walk()
			case 4:
				for range r.IntN(10) {
					m.leave()
				}
				for range r.IntN(12) {
					m.join()
				}
			case 5:
				if len(g.Members) > 0 {
					c := (*Conn)(g.Members[r.IntN(len(g.Members))].Conn)
					g.catchUp(c.Slot())
					m.check(c, true)
				}
			}
		}
		for len(g.Stream) > 0 {
			g.walk(&slice{time: sliceTime})
		}
		if len(g.Stream) > 0 || int(g.count.Load()) != len(m.members) || len(g.Members) != len(m.members) {
			t.Fatalf("%d messages are left; %d members, want %d", len(g.Stream), len(g.Members), len(m.members))
		}
		for c := range m.members {
			m.check(c, true)
		}
	}
}

// The memory of a crowd that has left is given back.
func TestGroupShrinks(t *testing.T) {
	g := NewTable(&Shard{Engine: &Engine{}, Set: &LoopSettings{}}, unitEndpoint(SlowConsumer{}))
	for range 50_000 {
		g.Add(queued(g.Shard, g.Endpoint), Times{})
	}
	for len(g.Members) > 10 {
		g.Remove(g.Members[0].Conn)
	}
	if n := cap(g.Members); n > 4096 || cap(g.Times) > 4096 {
		t.Errorf("10 members have room for %d", n)
	}
}

// tableFeed gives all members of a table what is published.
type tableFeed struct{ *Table }

func (f tableFeed) Publish(p *Command) (bytes int) { return f.Audience.Publish(p.Frame, p.At) }
func (tableFeed) Join()                            {}
func (tableFeed) Leave()                           {}
func (tableFeed) Left(*Audience)                   {}

// Messages leave the mailbox for the streams. Whoever looks at the backlog meanwhile finds each of them once: it
// only grows here, by one message at a time.
func TestBacklogKeepsWhatIsHandedOver(t *testing.T) {
	sh := &Shard{Engine: &Engine{}, Set: &LoopSettings{}, Histograms: stats.Histograms{Flushed: make([]stats.Histogram, 2)}}
	ep := unitEndpoint(SlowConsumer{Limit: outbox.Limit{Bytes: -1}})
	g := NewTable(sh, ep)
	g.Feed = tableFeed{g}
	g.Add(queued(sh, ep), Times{})
	f := codec.NewFrame(codec.OpBinary, make([]byte, 100))
	size := int64(len(f.Plain()))
	cost := size + streamCost
	var posted atomic.Int64
	looked := make(chan bool)
	go func() {
		defer close(looked)
		for last := int64(0); posted.Load() < 20_000*cost; {
			before := posted.Load()
			n := sh.Backlog.Load()
			if n < last || n < before || n > posted.Load()+cost {
				t.Errorf("%d bytes in the backlog after %d, of %d that were posted", n, last, before)
				return
			}
			last = n
		}
	}()
	for range 20_000 {
		sh.Backlog.Add(size)
		sh.execute(&Command{Kind: CommandPublish, Feed: g.Feed, Frame: f, Cost: int(size)}, nil)
		posted.Add(cost)
	}
	<-looked
}
