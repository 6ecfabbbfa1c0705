package server

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"carillon/codec"
	"carillon/internal/shrink"
	"carillon/server/internal/envelope"
	"carillon/server/internal/limit"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

var (
	errTooLargeEncoded = fmt.Errorf("%w: encoded as JSON or as an event it would more than double in size", topic.ErrTooLarge)

	// errTooDeep is an [ErrNotJSON], too: for most who would read it, it is none.
	errTooDeep = fmt.Errorf("%w that all clients can read: it has more than %d levels", topic.ErrNotJSON, envelope.MaxLevels)
)

// hub is the broker of this process: a message enters a topic here, where it gets its offset. It owns
// epochs, offsets and histories.
type hub struct {
	// Immutable.
	owner    hubOwner
	engine   *reactor.Engine
	settings func() *hubSettings // those in force
	seed     maphash.Seed
	epochs   maphash.Seed  // of which clients see what comes out
	linger   time.Duration // how long a topic is remembered that has neither subscribers nor history

	maxUnheard int

	parts [256]hubPart // topics by the hash of their names
	count atomic.Int64
	keys  idempotency

	unheard, heard idleTopics // topics that are not in use

	remote remote // immutable

	published atomic.Uint64
	messages  atomic.Int64 // that topics keep
	bytes     atomic.Int64 // of their payloads

	mu       sync.RWMutex
	patterns patternIndex  // guarded by mu
	version  atomic.Uint64 // of patterns, changed under mu
}

// hubSettings are what a hub needs of the options in force. Immutable.
type hubSettings struct {
	rules        []topic.Rule
	maxTopics    int   // negative is off
	maxMessage   int64 // negative is off
	maxKeyMemory int64 // negative is off
	endpoints    []hubEndpointSettings
}

// hubEndpointSettings are those of connections of one endpoint.
type hubEndpointSettings struct {
	maxSubscriptions int // negative is off
	maxPatterns      int // negative is off
}

// hubPart is a part of the topics. All of it is guarded by mu.
type hubPart struct {
	mu          sync.Mutex
	topics      shrink.Map[string, *topicState]
	generations [64]uint32 // of epochs, by the hash of the name; see epochOf
}

// hubOwner is the server as its hub sees it.
type hubOwner interface {
	nodeInfo() topic.NodeInfo                      // what other servers of the cluster are told of this one
	answer(subject string, question []byte) []byte // to another server's question; nil if there is no answer
	endpointSource(path string) *endpointSource    // nil if there is no such endpoint
	subject(c *reactor.Conn) string                // the name of the client, or ""
}

// newHub makes a hub. broker may be nil.
func newHub(owner hubOwner, engine *reactor.Engine, settings func() *hubSettings, broker topic.Broker) *hub {
	h := &hub{owner: owner, engine: engine, settings: settings,
		seed: maphash.MakeSeed(), epochs: maphash.MakeSeed(), linger: linger, maxUnheard: maxUnheard}
	h.keys.init(h)
	h.remote = newRemote(h, broker)
	return h
}

// part returns the part for a name, and the one of its generations that is for the name.
func (h *hub) part(name string) (p *hubPart, generation *uint32) {
	x := maphash.String(h.seed, name)
	p = &h.parts[x%uint64(len(h.parts))]
	return p, &p.generations[x>>32%uint64(len(p.generations))]
}

// find returns a topic that exists, locked, or nil.
func (h *hub) find(name string) *topicState {
	for {
		p, _ := h.part(name)
		p.mu.Lock()
		t := p.topics.Get(name)
		p.mu.Unlock()
		if t == nil {
			return nil
		}
		t.mu.Lock()
		if !t.forgotten {
			return t
		}
		t.mu.Unlock()
	}
}

// open returns a topic, which is made if need be, locked. Nothing may be locked when it is called.
func (h *hub) open(name string) (*topicState, error) {
	for {
		if t := h.find(name); t != nil {
			return t, nil
		}
		h.boundIdle()
		if err := h.make(name); err != nil && !h.makeRoom() {
			return nil, err
		}
	}
}

func (h *hub) make(name string) error {
	p, generation := h.part(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.topics.Get(name) != nil {
		return nil
	}
	set := h.settings()
	if n := h.count.Add(1); set.maxTopics >= 0 && n > int64(set.maxTopics) {
		h.count.Add(-1)
		return topic.ErrTooMany
	}
	t := &topicState{hub: h, epoch: h.epochOf(name, *generation), used: h.engine.Uptime()}
	t.name, t.topic = string([]byte(name)), t // the name may be a part of something large
	t.rule = topic.RuleOf(set.rules, name)
	h.remote.attach(&t.source)
	p.topics.Set(t.name, t)
	return nil
}

// epochOf returns the epoch of a topic that is made. A topic that is forgotten before it had a message gets the same
// epoch again, so that a client which was told position 0 of it can go on from there; any other one gets a new epoch,
// because a generation ends when it is forgotten. Names that share a generation get a new one, too: a client that comes
// back to one of them is told of a gap where there is none.
func (h *hub) epochOf(name string, generation uint32) uint64 {
	const bits = 41 // eight characters
	x := maphash.Comparable(h.epochs, struct {
		name       string
		generation uint32
	}{name, generation})
	return 1<<(bits-1) | x>>(64-bits+1)
}

// publication is a message for a topic, with what the server knows of it.
type publication struct {
	topic.Publication

	address limit.Key // of an anonymous client
	valid   bool      // the payload is known to be what Format says
}

// publish gives the message to this server's subscribers. For other servers' it hands it over, which sent learns
// the end of if it is not nil and there is no error.
func (h *hub) publish(p *publication, sent func(error)) (topic.Receipt, error) {
	if err := h.check(p); err != nil {
		return topic.Receipt{}, err
	}
	if p.Key == "" {
		return h.enter(p, sent)
	}
	return h.publishOnce(p, sent)
}

func (h *hub) check(p *publication) error {
	if err := topic.Check(p.Topic); err != nil {
		return err
	}
	limit := h.settings().maxMessage
	switch {
	case limit >= 0 && int64(len(p.Payload)) > limit:
		return topic.ErrTooLarge
	case limit >= 0 && p.Format != topic.FormatBinary && largestForm(p.Format, p.Payload, 2*limit) > 2*limit:
		return errTooLargeEncoded
	case p.Format != topic.FormatBinary && !p.valid && !utf8.Valid(p.Payload):
		return topic.ErrNotText
	case p.Format == topic.FormatJSON && !p.valid && !json.Valid(p.Payload):
		return topic.ErrNotJSON
	case p.Format == topic.FormatJSON && envelope.IsTooDeep(p.Payload):
		return errTooDeep
	case len(p.Key) > topic.MaxKey:
		return topic.ErrKey
	}
	return nil
}

// enter gives a message its offset and hands it to the shards that have subscribers, all under the
// topic's lock, so that every shard sees the same order.
func (h *hub) enter(p *publication, sent func(error)) (topic.Receipt, error) {
	if err := h.remote.away(); err != nil {
		return topic.Receipt{}, err
	}
	at := h.engine.Stamp()
	m := &message{format: p.Format, raw: codec.NewFrame(p.Format.Opcode(), p.Payload)}
	t, err := h.open(p.Topic)
	if err != nil {
		return topic.Receipt{}, err
	}
	defer h.unlock(t)
	patterns := h.patternsOf(t)
	if sh := h.overloaded(t, patterns, int64(len(m.raw.Plain()))); sh != nil {
		return topic.Receipt{}, sh.Refuse()
	}
	t.used = h.engine.Uptime()
	m.topic, m.offset, m.time, m.born = t, t.offset+1, h.engine.Wall().UnixMilli(), h.engine.AgeMillis()
	h.published.Add(1)
	n := t.issue(m, at) + issueAll(patterns, m, at)
	h.remote.relay(&t.source, m, sent)
	return topic.Receipt{Offset: t.offset, Epoch: t.ownEpoch(), Subscribers: n}, nil
}

// issue makes a message the topic's next one, and says for how many subscribers it is. The caller holds mu.
func (t *topicState) issue(m *message, at reactor.Stamp) int {
	t.offset = m.offset
	t.keep(m)
	return t.post(reactor.CommandPublish, m, at)
}

// issueAll makes a message the next one of the patterns that match its topic. The caller holds the topic's mu.
func issueAll(patterns []*source, m *message, at reactor.Stamp) (n int) {
	for _, p := range patterns {
		p.mu.Lock()
		n += p.post(reactor.CommandPublish, m, at)
		p.mu.Unlock()
	}
	return n
}

// overloaded returns a shard that has too much to do for another n bytes, or nil.
func (h *hub) overloaded(t *topicState, patterns []*source, n int64) *reactor.Shard {
	if sh := t.overloaded(n); sh != nil {
		return sh
	}
	for _, p := range patterns {
		p.mu.Lock()
		sh := p.overloaded(n)
		p.mu.Unlock()
		if sh != nil {
			return sh
		}
	}
	return nil
}

// sweepParts is how many calls of sweep look at all topics.
const sweepParts = 64

// sweep forgets topics that are not used any more, and history that is too old. Each time it looks at a part of the
// topics for the latter.
func (h *hub) sweep(now time.Time, round int) {
	since := now.Sub(h.engine.Begin)
	for i := round % sweepParts; i < len(h.parts); i += sweepParts {
		for t := range h.parts[i].all() {
			t.mu.Lock()
			t.expire(h.engine.AgeMillis())
			h.remote.sweepTopic(t, since)
			h.forgetPatternsOf(t)
			h.unlock(t)
		}
	}
	h.forgetIdle(since - h.linger)
	h.remote.sweep(since)
	h.keys.expire()
}

// lookSlice is how many entries are looked at while a lock is held.
const lookSlice = 512

// all walks over the topics, with nothing locked while the caller has one. Topics may come and go meanwhile.
func (p *hubPart) all() iter.Seq[*topicState] {
	return func(yield func(*topicState) bool) {
		slice := make([]*topicState, 0, min(lookSlice, p.len()))
		hand := func() bool {
			p.mu.Unlock()
			defer p.mu.Lock()
			for _, t := range slice {
				if !yield(t) {
					return false
				}
			}
			slice = slice[:0]
			return true
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, t := range p.topics.All() {
			if slice = append(slice, t); len(slice) == lookSlice && !hand() {
				return
			}
		}
		hand()
	}
}

func (p *hubPart) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.topics.Len()
}

// rule gives each topic the rule that is its own now.
func (h *hub) rule() {
	for i := range h.parts {
		for t := range h.parts[i].all() {
			t.mu.Lock()
			t.rule = topic.RuleOf(h.settings().rules, t.name)
			t.trim()
			t.expire(h.engine.AgeMillis())
			t.mu.Unlock()
		}
	}
}

// info describes the topic at an age of the server. The caller holds mu.
func (t *topicState) info(now int64) topic.Info {
	t.expire(now)
	i := topic.Info{Topic: t.name, Position: t.position(), Subscribers: int(t.subscribers), History: t.history.len(), HistoryBytes: t.history.bytes}
	if i.History > 0 {
		i.Oldest = int64(t.history.all()[0].offset)
	}
	return i
}

// waitFor waits until a topic is up to date that the broker keeps; others it does not look at.
func (h *hub) waitFor(name string, from topic.Start) error {
	if !h.remote.keeps(name) {
		return nil
	}
	if h.engine.OnLoop() {
		return fmt.Errorf("look up a topic: %w", ErrOnLoop)
	}
	done := make(chan error, 1)
	if ready, err := h.remote.ready(name, from, true, nothing, func(err error) { done <- err }); ready || err != nil {
		return err
	}
	return <-done
}

func (h *hub) past(name string, from topic.Start, limit int) (past topic.HistoryPage, list []*message, err error) {
	if err := topic.Check(name); err != nil {
		return past, nil, err
	}
	t := h.find(name)
	if t == nil {
		return topic.HistoryPage{Recovered: from.Since == nil}, nil, nil
	}
	defer t.mu.Unlock()
	past.Position = t.position()
	limit = max(limit, 0)
	list, past.Recovered = t.since(from, h.engine.AgeMillis(), limit)
	return past, list[:min(len(list), limit)], nil
}

// names returns the first names of topics that match a pattern and come after a name. It goes through
// all topics, but keeps no more than twice what it returns.
func (h *hub) names(pattern, after string, limit int) (list []string, more bool) {
	first := firstOf[string]{most: limit + 1}
	for i := range h.parts {
		for t := range h.parts[i].all() {
			if t.name > after && topic.Matches(pattern, t.name) {
				first.add(t.name)
			}
		}
	}
	list = first.sorted()
	if len(list) > limit {
		return list[:limit], true
	}
	return list, false
}

// firstOf keeps the first values, in their order, of all that it is given.
type firstOf[T cmp.Ordered] struct {
	most  int
	list  []T
	bound bool // list[most-1] is the last of the most that were first so far
}

func (f *firstOf[T]) add(v T) {
	if f.bound && v >= f.list[f.most-1] {
		return
	}
	if f.list = append(f.list, v); len(f.list) >= 2*f.most {
		f.sorted()
		f.bound = true
	}
}

func (f *firstOf[T]) sorted() []T {
	slices.Sort(f.list)
	f.list = f.list[:min(len(f.list), f.most)]
	return f.list
}
