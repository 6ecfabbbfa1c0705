package hub

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

	// errTooDeep is an [ErrNotJSON], too: for most readers such a text is not JSON.
	errTooDeep = fmt.Errorf("%w that all clients can read: it has more than %d levels", topic.ErrNotJSON, envelope.MaxLevels)
)

// Hub is the broker of this process: a message enters a topic here, where it gets its offset. It owns
// epochs, offsets and histories.
type Hub struct {
	// Immutable.
	owner    Owner
	engine   *reactor.Engine
	settings func() *Settings // those in force
	seed     maphash.Seed
	epochs   maphash.Seed  // of which clients see what comes out
	Linger   time.Duration // how long a topic is remembered that has neither subscribers nor history

	MaxUnheard int

	Parts [256]hubPart // topics by the hash of their names
	Count atomic.Int64
	Keys  idempotency

	unheard, heard idleTopics // topics that are not in use

	Remote remote // immutable

	Published atomic.Uint64
	Messages  atomic.Int64 // that topics keep
	Bytes     atomic.Int64 // of their payloads

	Mu       sync.RWMutex
	Patterns patternIndex  // guarded by mu
	Version  atomic.Uint64 // of patterns, changed under mu
}

// Settings are what a hub needs of the options in force. Immutable.
type Settings struct {
	Rules        []topic.Rule
	MaxTopics    int   // negative is off
	MaxMessage   int64 // negative is off
	MaxKeyMemory int64 // negative is off
	Endpoints    []EndpointSettings
}

// EndpointSettings are those of connections of one endpoint.
type EndpointSettings struct {
	MaxSubscriptions int // negative is off
	MaxPatterns      int // negative is off
}

// hubPart is a part of the topics. All of it is guarded by mu.
type hubPart struct {
	mu          sync.Mutex
	Topics      shrink.Map[string, *topicState]
	generations [64]uint32 // of epochs, by the hash of the name; see epochOf
}

// Owner is the server as its hub sees it.
type Owner interface {
	NodeInfo() topic.NodeInfo                      // what other servers of the cluster are told of this one
	Answer(subject string, question []byte) []byte // to another server's question; nil if there is no answer
	EndpointSource(path string) *EndpointSource    // nil if there is no such endpoint
	Subject(c *reactor.Conn) string                // the name of the client, or ""
}

// New makes a hub. broker may be nil.
func New(owner Owner, engine *reactor.Engine, settings func() *Settings, broker topic.Broker) *Hub {
	h := &Hub{owner: owner, engine: engine, settings: settings,
		seed: maphash.MakeSeed(), epochs: maphash.MakeSeed(), Linger: linger, MaxUnheard: maxUnheard}
	h.Keys.init(h)
	h.Remote = newRemote(h, broker)
	return h
}

// part returns the part for a name, and the one of its generations that is for the name.
func (h *Hub) part(name string) (p *hubPart, generation *uint32) {
	x := maphash.String(h.seed, name)
	p = &h.Parts[x%uint64(len(h.Parts))]
	return p, &p.generations[x>>32%uint64(len(p.generations))]
}

// Find returns a topic that exists, locked, or nil.
func (h *Hub) Find(name string) *topicState {
	for {
		p, _ := h.part(name)
		p.mu.Lock()
		t := p.Topics.Get(name)
		p.mu.Unlock()
		if t == nil {
			return nil
		}
		t.Mu.Lock()
		if !t.Forgotten {
			return t
		}
		t.Mu.Unlock()
	}
}

// open returns a topic, which is made if need be, locked. Nothing may be locked when it is called.
func (h *Hub) open(name string) (*topicState, error) {
	for {
		if t := h.Find(name); t != nil {
			return t, nil
		}
		h.boundIdle()
		if err := h.make(name); err != nil && !h.makeRoom() {
			return nil, err
		}
	}
}

func (h *Hub) make(name string) error {
	p, generation := h.part(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Topics.Get(name) != nil {
		return nil
	}
	set := h.settings()
	if n := h.Count.Add(1); set.MaxTopics >= 0 && n > int64(set.MaxTopics) {
		h.Count.Add(-1)
		return topic.ErrTooMany
	}
	t := &topicState{hub: h, epoch: h.epochOf(name, *generation), used: h.engine.Uptime()}
	t.Name, t.topic = string([]byte(name)), t // the name may be a part of something large
	t.rule = topic.RuleOf(set.Rules, name)
	h.Remote.Attach(&t.Source)
	p.Topics.Set(t.Name, t)
	return nil
}

// epochOf returns the epoch of a topic that is made. A topic that is forgotten before it had a message gets the same
// epoch again, so that a client which was told position 0 of it can go on from there; any other one gets a new epoch,
// because a generation ends when it is forgotten. Names that share a generation get a new one, too: a client that comes
// back to one of them is told that messages are missing where none are.
func (h *Hub) epochOf(name string, generation uint32) uint64 {
	const bits = 41 // eight characters
	x := maphash.Comparable(h.epochs, struct {
		name       string
		generation uint32
	}{name, generation})
	return 1<<(bits-1) | x>>(64-bits+1)
}

// Publication is a message for a topic, with what the server knows of it.
type Publication struct {
	topic.Publication

	By      *reactor.Conn // the client that publishes, on its loop; nil if it is none
	Address limit.Key     // of an anonymous client
	Valid   bool          // the payload is known to be what Format says
}

// Publish gives the message to this server's subscribers. For other servers' it hands it over, which sent learns
// the end of if it is not nil and there is no error.
func (h *Hub) Publish(p *Publication, sent func(error)) (topic.Receipt, error) {
	if err := h.check(p); err != nil {
		return topic.Receipt{}, err
	}
	if p.Key == "" {
		return h.enter(p, sent)
	}
	return h.publishOnce(p, sent)
}

func (h *Hub) check(p *Publication) error {
	if err := topic.Check(p.Topic); err != nil {
		return err
	}
	limit := h.settings().MaxMessage
	switch {
	case limit >= 0 && int64(len(p.Payload)) > limit:
		return topic.ErrTooLarge
	case limit >= 0 && p.Format != topic.FormatBinary && largestForm(p.Format, p.Payload, 2*limit) > 2*limit:
		return errTooLargeEncoded
	case p.Format != topic.FormatBinary && !p.Valid && !utf8.Valid(p.Payload):
		return topic.ErrNotText
	case p.Format == topic.FormatJSON && !p.Valid && !json.Valid(p.Payload):
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
func (h *Hub) enter(p *Publication, sent func(error)) (topic.Receipt, error) {
	if err := h.Remote.Away(); err != nil {
		return topic.Receipt{}, err
	}
	at := h.engine.Stamp()
	m := (&Message{Format: p.Format}).WithRaw(codec.NewFrame(p.Format.Opcode(), p.Payload))
	t, err := h.open(p.Topic)
	if err != nil {
		return topic.Receipt{}, err
	}
	defer h.unlock(t)
	m.Topic = t
	patterns := h.PatternsOf(t)
	if sh := h.overloaded(t, patterns, m); sh != nil {
		return topic.Receipt{}, sh.Refuse()
	}
	t.used = h.engine.Uptime()
	m.Offset, m.Time, m.born = t.offset+1, h.engine.Wall().UnixMilli(), h.engine.AgeMillis()
	h.Published.Add(1)
	n, size := t.issue(m, at)
	more, moreSize := issueAll(patterns, m, at)
	h.Remote.Relay(&t.Source, m, sent)
	if p.By != nil {
		p.By.ChargeFanout(size + moreSize)
	}
	return topic.Receipt{Offset: t.offset, Epoch: t.ownEpoch(), Subscribers: n + more}, nil
}

// issue makes a message the topic's next one, and says for how many subscribers it is, and how many bytes all forms
// have. The caller holds mu.
func (t *topicState) issue(m *Message, at reactor.Stamp) (subscribers, bytes int) {
	t.offset = m.Offset
	t.keep(m)
	return t.post(reactor.CommandPublish, m, at)
}

// issueAll makes a message the next one of the patterns that match its topic. The caller holds the topic's mu.
func issueAll(patterns []*Source, m *Message, at reactor.Stamp) (subscribers, bytes int) {
	for _, p := range patterns {
		p.Mu.Lock()
		n, size := p.post(reactor.CommandPublish, m, at)
		subscribers, bytes = subscribers+n, bytes+size
		p.Mu.Unlock()
	}
	return subscribers, bytes
}

// overloaded returns a shard that has too much to do for a message, or nil.
func (h *Hub) overloaded(t *topicState, patterns []*Source, m *Message) *reactor.Shard {
	if sh := t.Overloaded(m, 1); sh != nil {
		return sh
	}
	for _, p := range patterns {
		p.Mu.Lock()
		sh := p.Overloaded(m, 1)
		p.Mu.Unlock()
		if sh != nil {
			return sh
		}
	}
	return nil
}

// sweepParts is how many calls of sweep look at all topics.
const sweepParts = 64

// Sweep forgets topics that are not used any more, and history that is too old. Each time it looks at a part of the
// topics for the latter.
func (h *Hub) Sweep(now time.Time, round int) {
	since := now.Sub(h.engine.Begin)
	for i := round % sweepParts; i < len(h.Parts); i += sweepParts {
		for t := range h.Parts[i].All() {
			t.Mu.Lock()
			t.expire(h.engine.AgeMillis())
			t.boundForms(t.history.newest())
			h.Remote.sweepTopic(t, since)
			h.ForgetPatternsOf(t)
			h.unlock(t)
		}
	}
	h.ForgetIdle(since - h.Linger)
	h.Remote.sweep(since)
	h.Keys.expire()
}

// lookSlice is how many entries are looked at while a lock is held.
const lookSlice = 512

// All walks over the topics, with nothing locked while the caller has one. Topics may come and go meanwhile.
func (p *hubPart) All() iter.Seq[*topicState] {
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
		for _, t := range p.Topics.All() {
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
	return p.Topics.Len()
}

// Rule gives each topic the rule that is its own now.
func (h *Hub) Rule() {
	for i := range h.Parts {
		for t := range h.Parts[i].All() {
			t.Mu.Lock()
			t.rule = topic.RuleOf(h.settings().Rules, t.Name)
			t.trim()
			t.expire(h.engine.AgeMillis())
			t.Mu.Unlock()
		}
	}
}

// Info describes the topic at an age of the server. The caller holds mu.
func (t *topicState) Info(now int64) topic.Info {
	t.expire(now)
	i := topic.Info{Topic: t.Name, Position: t.position(), Subscribers: int(t.Subscribers), History: t.history.len(), HistoryBytes: t.history.bytes}
	if i.History > 0 {
		i.Oldest = int64(t.history.all()[0].Offset)
	}
	return i
}

// WaitFor waits until a topic is up to date that the broker keeps; others it does not look at.
func (h *Hub) WaitFor(name string, from topic.Start) error {
	if !h.Remote.Keeps(name) {
		return nil
	}
	if h.engine.OnLoop() {
		return fmt.Errorf("look up a topic: %w", ErrOnLoop)
	}
	done := make(chan error, 1)
	if ready, err := h.Remote.ready(name, from, true, Nothing, func(err error) { done <- err }); ready || err != nil {
		return err
	}
	return <-done
}

// Past is a part of a topic's history, without its messages, and the messages, up to limit.
func (h *Hub) Past(name string, from topic.Start, limit int) (past topic.HistoryPage, list []*Message, err error) {
	if err := topic.Check(name); err != nil {
		return past, nil, err
	}
	t := h.Find(name)
	if t == nil {
		return topic.HistoryPage{Recovered: from.Since == nil}, nil, nil
	}
	defer t.Mu.Unlock()
	past.Position = t.position()
	limit = max(limit, 0)
	list, past.Recovered = t.Since(from, h.engine.AgeMillis(), limit)
	return past, list[:min(len(list), limit)], nil
}

// Names returns the first names of topics that match a pattern and come after a name. It goes through
// all topics, but keeps no more than twice what it returns.
func (h *Hub) Names(pattern, after string, limit int) (list []string, more bool) {
	first := firstOf[string]{most: limit + 1}
	for i := range h.Parts {
		for t := range h.Parts[i].All() {
			if t.Name > after && topic.Matches(pattern, t.Name) {
				first.add(t.Name)
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

// add takes one more value.
func (f *firstOf[T]) add(v T) {
	if f.bound && v >= f.list[f.most-1] {
		return
	}
	if f.list = append(f.list, v); len(f.list) >= 2*f.most {
		f.sorted()
		f.bound = true
	}
}

// sorted returns the first values in their order.
func (f *firstOf[T]) sorted() []T {
	slices.Sort(f.list)
	f.list = f.list[:min(len(f.list), f.most)]
	return f.list
}
