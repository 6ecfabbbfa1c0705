package tlstable

import (
	"slices"
	"sync"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/limit"
)

// party is a table with handshakes whose clients say nothing until they are told to.
type party struct {
	*Table
	t *testing.T

	mu      sync.Mutex
	evicted []*guest
	order   []limit.Key // in which they have begun
}

// guest is a handshake of one of them.
type guest struct {
	Entry
	party *party
	gone  chan struct{}
	says  chan error // the client goes on, and how the handshake ends then
}

func newParty(t *testing.T, most int) *party {
	began := time.Now()
	p := &party{t: t, Table: New(func() time.Duration { return time.Since(began) }, func() int { return most })}
	p.SetGrace(time.Hour)
	return p
}

// enter begins a handshake that waits for its client.
func (p *party) enter(from limit.Key) *guest {
	g := &guest{party: p, gone: make(chan struct{}), says: make(chan error, 1)}
	g.Entry = Entry{Gone: g.gone, Begin: func() {
		p.mu.Lock()
		p.order = append(p.order, from)
		p.mu.Unlock()
		go g.run()
	}, Evict: func() {
		p.mu.Lock()
		p.evicted = append(p.evicted, g)
		p.mu.Unlock()
		close(g.gone)
	}}
	p.Enter(&g.Entry, from)
	return g
}

func (g *guest) run() {
	g.party.Pause(&g.Entry)
	select {
	case err := <-g.says:
		g.party.Resume(&g.Entry)
		g.party.Finish(&g.Entry, err)
	case <-g.gone:
		g.party.Finish(&g.Entry, errGone)
	}
}

type gone struct{}

func (gone) Error() string { return "client has gone" }

var errGone = gone{}

// has waits until so many handshakes are open, all of which wait for their clients, others wait to begin, and these
// have been evicted.
func (p *party) has(what string, open, waiting int, evicted ...*guest) {
	p.t.Helper()
	testenv.Eventually(p.t, what, func() bool {
		o, w := p.Counts()
		p.Table.mu.Lock()
		silent := p.silent.Len()
		p.Table.mu.Unlock()
		p.mu.Lock()
		defer p.mu.Unlock()
		return o == open && w == waiting && silent == open && slices.Equal(p.evicted, evicted)
	})
}

// isEmpty checks that nothing is kept.
func (p *party) isEmpty() {
	p.t.Helper()
	p.has("nothing is under way", 0, 0, p.evicted...)
	p.Table.mu.Lock()
	defer p.Table.mu.Unlock()
	for _, turns := range &p.turns {
		if turns.Len() > 0 {
			p.t.Error("a place in a queue is left")
		}
	}
	if n, crowded := p.peers.Len(), len(p.crowded); n+crowded > 0 {
		p.t.Errorf("%d addresses are left, %d of them in the heap", n, crowded)
	}
}

// An address that has more than its share of the table loses its oldest at once, and only to others.
func TestEvictionOfTheCrowd(t *testing.T) {
	p := newParty(t, 4)
	var crowd []*guest
	for i := range 4 {
		crowd = append(crowd, p.enter(2))
		p.has("it is under way", i+1, 0)
	}
	own := p.enter(2)
	p.has("its own address makes no room", 4, 1)
	other := p.enter(3)
	p.has("another does not wait", 4, 1, crowd[0])
	for _, g := range append(crowd[1:], own, other) {
		g.says <- nil
	}
	p.isEmpty()
}

// Among equals it is the one that has been silent for longest, after the grace.
func TestEvictionAfterTheGrace(t *testing.T) {
	p := newParty(t, 4)
	var all []*guest
	for i := range 4 {
		all = append(all, p.enter(limit.Key(2+i)))
		p.has("it is under way", i+1, 0)
	}
	all = append(all, p.enter(9))
	p.has("it waits", 4, 1)
	p.SetGrace(0)
	all = append(all, p.enter(10))
	p.has("both have come in", 4, 0, all[0], all[1])
	for _, g := range all[2:] {
		close(g.gone)
	}
	p.isEmpty()
}

// A newcomer that waits for the grace of another comes in when that is over, without any further event.
func TestTheGraceEndsByItself(t *testing.T) {
	p := newParty(t, 1)
	p.SetGrace(50 * time.Millisecond)
	first := p.enter(2)
	p.has("it is under way", 1, 0)
	second := p.enter(3)
	p.has("it has come in", 1, 0, first)
	second.says <- nil
	p.isEmpty()
}

// An address whose handshake came to nothing is evicted in favour of others, and waits behind them, until one of its
// handshakes succeeds.
func TestEvictionOfSuspects(t *testing.T) {
	p := newParty(t, 2)
	left := p.enter(2)
	p.has("it is under way", 1, 0)
	close(left.gone)
	p.has("it is gone", 0, 0)
	suspect, three := p.enter(2), p.enter(3)
	p.has("there is room for two", 2, 0)
	four := p.enter(4)
	p.has("another takes the place of the suspect", 2, 0, suspect)
	again := p.enter(2)
	p.has("which waits now", 2, 1, suspect)
	three.says <- nil
	p.has("and comes in when there is room", 2, 0, suspect)
	again.says <- nil
	p.has("it has succeeded", 1, 0, suspect)
	p.enter(2)
	p.has("there is room for it", 2, 0, suspect)
	five := p.enter(5)
	p.has("it is no suspect any more", 2, 1, suspect)
	five.says <- nil
	four.says <- nil
}

// A handshake that has not begun leaves without a trace.
func TestLeaving(t *testing.T) {
	p := newParty(t, 1)
	first := p.enter(2)
	p.has("it is under way", 1, 0)
	second := p.enter(3)
	p.has("it waits", 1, 1)
	p.Leave(&first.Entry) // has begun
	p.Leave(&second.Entry)
	p.has("one has left", 1, 0)
	first.says <- nil
	p.isEmpty()
}

// Eight handshakes of one address and one of another wait for the only processor: that one is next.
func TestProcessorsGoRoundTheAddresses(t *testing.T) {
	p := newParty(t, -1)
	p.idle = 0
	var all []*guest
	for range 8 {
		all = append(all, p.enter(2))
	}
	all = append(all, p.enter(3))
	p.Table.mu.Lock()
	p.idle = 1
	p.dispatch()
	p.Table.mu.Unlock()
	p.has("all have begun", 9, 0)
	if p.order[0] != 3 {
		t.Errorf("they began in the order %v", p.order)
	}
	for _, g := range all {
		g.says <- nil
	}
	p.isEmpty()
}
