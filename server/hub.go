package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"carillon/codec"
)

var (
	// ErrTooManyTopics is returned when Limits.MaxTopics topics exist and another one is asked for.
	ErrTooManyTopics = errors.New("server has as many topics as it may have: limits.max_topics is reached")

	// ErrTooLarge is returned for a message that is larger than Limits.MaxMessage, or than the broker takes for a kept topic.
	ErrTooLarge = errors.New("message is larger than limits.max_message")

	// ErrNotJSON is returned for a message of [FormatJSON] that is not JSON.
	ErrNotJSON = errors.New("message is not JSON")

	// ErrNotText is returned for a message of [FormatText] or [FormatJSON] that is not UTF-8.
	ErrNotText = errors.New("message is not UTF-8")

	// ErrKey is returned for an idempotency key that is too long.
	ErrKey = fmt.Errorf("idempotency key is longer than %d bytes", maxKey)
)

// hub is the broker of this process: a message enters a topic here, where it gets its offset. It owns
// epochs, offsets and histories.
type hub struct {
	// Immutable.
	srv    *Server
	seed   maphash.Seed
	linger time.Duration // how long a topic is remembered that has neither subscribers nor history

	parts [64]hubPart // topics by the hash of their names
	count atomic.Int64
	keys  keys

	cluster *cluster // nil without Options.Broker; immutable

	published atomic.Uint64
	messages  atomic.Int64 // that topics keep
	bytes     atomic.Int64 // of their payloads

	mu       sync.RWMutex
	patterns map[string]*source // guarded by mu
	version  atomic.Uint64      // of patterns, changed under mu
}

type hubPart struct {
	mu     sync.Mutex
	topics map[string]*topic
}

func newHub(s *Server) *hub {
	h := &hub{srv: s, seed: maphash.MakeSeed(), linger: linger, patterns: map[string]*source{}}
	for i := range h.parts {
		h.parts[i].topics = map[string]*topic{}
	}
	if s.opts().Broker != nil {
		h.cluster = newCluster(h, s.opts().Broker)
	}
	return h
}

func (h *hub) part(name string) *hubPart {
	return &h.parts[maphash.String(h.seed, name)%uint64(len(h.parts))]
}

// find returns a topic that exists, locked, or nil.
func (h *hub) find(name string) *topic {
	for {
		p := h.part(name)
		p.mu.Lock()
		t := p.topics[name]
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

// open returns a topic, which is made if need be, locked.
func (h *hub) open(name string) (*topic, error) {
	for {
		if t := h.find(name); t != nil {
			return t, nil
		}
		if err := h.make(name); err != nil {
			return nil, err
		}
	}
}

func (h *hub) make(name string) error {
	p := h.part(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.topics[name] != nil {
		return nil
	}
	o := h.srv.opts()
	if n := h.count.Add(1); o.Limits.MaxTopics >= 0 && n > int64(o.Limits.MaxTopics) {
		h.count.Add(-1)
		return ErrTooManyTopics
	}
	const bits = 41 // eight characters
	t := &topic{hub: h, epoch: 1<<(bits-1) | rand.Uint64N(1<<(bits-1)), used: h.srv.elapsed()}
	t.name, t.topic = string([]byte(name)), t // the name may be a part of something large
	t.rule = ruleOf(o.Topics, name)
	h.cluster.tie(&t.source)
	p.topics[t.name] = t
	return nil
}

// openPattern returns a pattern, which is made if need be, locked.
func (h *hub) openPattern(name string) *source {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.patterns[name]
	if p == nil {
		p = &source{name: string([]byte(name))}
		h.cluster.tie(p)
		h.patterns[p.name] = p
		h.version.Add(1)
	}
	p.mu.Lock() // under h.mu, so that it is not forgotten meanwhile
	return p
}

// findPattern returns a pattern that has subscribers, locked, or nil.
func (h *hub) findPattern(name string) *source {
	h.mu.RLock()
	defer h.mu.RUnlock()
	p := h.patterns[name]
	if p != nil {
		p.mu.Lock()
	}
	return p
}

// forgetPattern forgets a pattern that has no subscribers.
func (h *hub) forgetPattern(p *source) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.subscribers == 0 && h.patterns[p.name] == p && !h.cluster.holds() {
		delete(h.patterns, p.name)
		h.version.Add(1)
	}
}

// patternsOf returns the patterns that match a topic. The caller holds the topic's mu.
func (h *hub) patternsOf(t *topic) []*source {
	if v := h.version.Load(); v != t.version {
		h.mu.RLock()
		t.version = h.version.Load()
		t.patterns = nil
		for _, p := range h.patterns {
			if matches(p.name, t.name) {
				t.patterns = append(t.patterns, p)
			}
		}
		h.mu.RUnlock()
	}
	return t.patterns
}

// Publication is a message for a topic.
type Publication struct {
	Topic   string // of a topic, not a pattern: see [CheckTopic]
	Format  Format
	Payload []byte // copied; for FormatText and FormatJSON it must be UTF-8

	// Key, at most 128 bytes, makes a publication safe to repeat: within five minutes one to the same
	// topic with the same key is not delivered again, and gets the same receipt. Empty is none. With
	// [Options.Broker] this holds at all servers for topics with history, and otherwise at each by itself.
	Key string
}

// Receipt says what became of a publication.
type Receipt struct {
	Offset      uint64 `json:"offset"`
	Epoch       string `json:"epoch"`
	Subscribers int    `json:"subscribers"` // connections of this server that it was for
}

// Publish sends a message to the subscribers of a topic, on whatever endpoints they are. All of them get
// the topic's messages in one order, that of their offsets.
//
// What one goroutine publishes to a topic and sends to a connection arrives there in that order, unless the
// connection is too slow for a topic with [TopicRule.Latest]. Different topics do not wait for each other.
//
// Publish does not wait for delivery. It fails with a *[TopicError], [ErrTooLarge], [ErrNotText], [ErrNotJSON],
// [ErrKey], [ErrTooManyTopics] or [ErrOverloaded]; then nobody gets the message.
//
// With [Options.Broker] it also fails with [ErrNoCluster]. A message for a topic that a [TopicRule] with history
// matches then gets its place from the broker, and Publish waits for that, at most 15 seconds. So it must not be
// called on an event loop, as handlers are, and returns [ErrOnLoop] there: see [Server.PublishFunc]. If it returns
// [ErrUncertain], the message may have been published or not. Subscribers of this server, too, get it when it comes
// back from the broker. To any other topic it does not wait, nor say whether other servers get the message.
func (s *Server) Publish(p Publication) (Receipt, error) {
	if s.hub.cluster != nil {
		return s.hub.cluster.publish(p)
	}
	return s.hub.publish(&p, nil)
}

// publish gives the message to this server's subscribers. For other servers' it hands it over, which sent learns
// the end of if it is not nil and there is no error.
func (h *hub) publish(p *Publication, sent func(error)) (Receipt, error) {
	if err := h.check(p); err != nil {
		return Receipt{}, err
	}
	if p.Key == "" {
		return h.enter(p, sent)
	}
	one := h.keys.of(p.Topic, p.Key)
	if h.cluster == nil {
		return one.once(func() (Receipt, error) { return h.enter(p, nil) })
	}
	return one.onceRelayed(sent, func(ended func(error)) (Receipt, error) { return h.enter(p, ended) })
}

func (h *hub) check(p *Publication) error {
	if err := CheckTopic(p.Topic); err != nil {
		return err
	}
	limit := int64(h.srv.opts().Limits.MaxMessage)
	switch {
	case limit >= 0 && int64(len(p.Payload)) > limit:
		return ErrTooLarge
	case p.Format != FormatBinary && !utf8.Valid(p.Payload):
		return ErrNotText
	case p.Format == FormatJSON && !json.Valid(p.Payload):
		return ErrNotJSON
	case len(p.Key) > maxKey:
		return ErrKey
	}
	return nil
}

// enter gives a message its offset and hands it to the shards that have subscribers, all under the
// topic's lock, so that every shard sees the same order.
func (h *hub) enter(p *Publication, sent func(error)) (Receipt, error) {
	if h.cluster != nil {
		if err := h.cluster.away(); err != nil {
			return Receipt{}, err
		}
	}
	at := h.srv.stamp()
	m := &message{format: p.Format, raw: codec.NewFrame(p.Format.opcode(), p.Payload)}
	t, err := h.open(p.Topic)
	if err != nil {
		return Receipt{}, err
	}
	defer t.mu.Unlock()
	patterns := h.patternsOf(t)
	if sh := h.overloaded(t, patterns, int64(len(m.raw.Plain()))); sh != nil {
		sh.stats.drop(DropOverloaded, 1)
		return Receipt{}, ErrOverloaded
	}
	t.used = h.srv.elapsed()
	m.topic, m.offset, m.time, m.born = t, t.offset+1, h.srv.wall().UnixMilli(), h.srv.age()
	h.published.Add(1)
	n := t.issue(m, at) + issueAll(patterns, m, at)
	if h.cluster != nil {
		h.cluster.relay(t, p, m, sent)
	}
	return Receipt{Offset: t.offset, Epoch: t.ownEpoch(), Subscribers: n}, nil
}

// issue makes a message the topic's next one, and says for how many subscribers it is. The caller holds mu.
func (t *topic) issue(m *message, at stamp) int {
	t.offset, m.latest = m.offset, t.latest()
	t.keep(m)
	t.seq++
	return t.post(m, at)
}

// issueAll makes a message the next one of the patterns that match its topic. The caller holds the topic's mu.
func issueAll(patterns []*source, m *message, at stamp) (n int) {
	for _, p := range patterns {
		p.mu.Lock()
		p.seq++
		n += p.post(m, at)
		p.mu.Unlock()
	}
	return n
}

// overloaded returns a shard that has too much to do for another n bytes, or nil.
func (h *hub) overloaded(t *topic, patterns []*source, n int64) *shard {
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

func (src *source) overloaded(n int64) *shard {
	for _, l := range src.locals {
		if l.sh.backlog.Load()+n > l.sh.srv.settings().maxBacklog {
			return l.sh
		}
	}
	return nil
}

// post hands a message to all shards that have subscribers, and says how many these are. The caller holds
// mu.
func (src *source) post(m *message, at stamp) int {
	for _, l := range src.locals {
		l.sh.backlog.Add(int64(len(m.raw.Plain())))
		l.sh.post(letter{kind: letterTopic, local: l, message: m, seq: src.seq, at: at})
	}
	return int(src.subscribers)
}

// linger lets a topic's offsets go on when somebody comes back soon.
const linger = time.Minute

// sweep forgets topics that are not used any more, and history that is too old. It looks at one part of
// the topics each time, so that nobody waits for long.
func (h *hub) sweep(now time.Time, part int) {
	p := &h.parts[part%len(h.parts)]
	for _, t := range p.all() {
		t.mu.Lock()
		t.expire(h.srv.age())
		h.cluster.loosen(t, now.Sub(h.srv.begin))
		if h.cluster.mayOwe(t) {
			t.used = now.Sub(h.srv.begin)
		}
		t.forgotten = t.subscribers == 0 && t.history.len() == 0 && now.Sub(h.srv.begin)-t.used > h.linger && !t.link.busy()
		forgotten := t.forgotten
		t.mu.Unlock()
		if forgotten {
			p.mu.Lock()
			delete(p.topics, t.name)
			p.mu.Unlock()
			h.count.Add(-1)
		}
	}
	h.cluster.sweep(now.Sub(h.srv.begin))
	h.keys.expire(now)
}

func (p *hubPart) all() []*topic {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.topics))
}

// rule gives each topic the rule that is its own now.
func (h *hub) rule() {
	for i := range h.parts {
		for _, t := range h.parts[i].all() {
			t.mu.Lock()
			t.rule = ruleOf(h.srv.opts().Topics, t.name)
			t.trim()
			t.expire(h.srv.age())
			t.mu.Unlock()
		}
	}
}

// TopicInfo is what a topic is at one moment.
type TopicInfo struct {
	Topic string `json:"topic"`
	Position
	Subscribers  int   `json:"subscribers"`  // of this topic itself, those of patterns not included
	History      int   `json:"history"`      // messages that are kept
	HistoryBytes int   `json:"historyBytes"` // of their payloads
	Oldest       int64 `json:"oldest"`       // the offset of the oldest message that is kept, 0 if there is none
}

// Topics lists the topics whose names match a pattern, by name. They are as many as Limits.MaxTopics
// allows, so this may take long.
func (s *Server) Topics(pattern string) ([]TopicInfo, error) {
	if err := CheckPattern(pattern); err != nil {
		return nil, err
	}
	var list []TopicInfo
	for i := range s.hub.parts {
		p := &s.hub.parts[i]
		p.mu.Lock()
		var found []*topic
		for name, t := range p.topics {
			if matches(pattern, name) {
				found = append(found, t)
			}
		}
		p.mu.Unlock()
		for _, t := range found {
			t.mu.Lock()
			list = append(list, t.info(s.age()))
			t.mu.Unlock()
		}
	}
	slices.SortFunc(list, func(a, b TopicInfo) int { return cmp.Compare(a.Topic, b.Topic) })
	return list, nil
}

// Topic describes one topic, and says whether it exists.
func (s *Server) Topic(name string) (TopicInfo, bool) {
	t := s.hub.find(name)
	if t == nil {
		return TopicInfo{}, false
	}
	defer t.mu.Unlock()
	return t.info(s.age()), true
}

// info describes the topic at an age of the server. The caller holds mu.
func (t *topic) info(now int64) TopicInfo {
	t.expire(now)
	i := TopicInfo{Topic: t.name, Position: t.position(), Subscribers: int(t.subscribers), History: t.history.len(), HistoryBytes: t.history.bytes}
	if i.History > 0 {
		i.Oldest = int64(t.history.all()[0].offset)
	}
	return i
}

// Message is one that a topic keeps.
type Message struct {
	Topic   string
	Offset  uint64
	Time    time.Time // when it was published
	Format  Format
	Payload []byte // shared: it must not be changed
}

// Past is a part of a topic's history.
type Past struct {
	Position            // of the topic now
	Recovered bool      // nothing is missing between where it was to start and the first message
	Messages  []Message // the oldest first
}

// History returns messages that a topic keeps, at most limit of them: the first ones after from.Since, or
// the newest from.Last ones. A topic that does not exist has none. It fails with a *[TopicError].
//
// With [Options.Broker] it waits for the messages of a topic that the broker keeps, at most 10 seconds. Then it also
// fails with [ErrNoCluster], and with [ErrOnLoop] where nobody may wait.
func (s *Server) History(topic string, from Start, limit int) (Past, error) {
	if err := s.hub.cluster.waitFor(topic, from); err != nil {
		return Past{}, err
	}
	past, list, err := s.hub.past(topic, from, limit)
	for _, m := range list {
		past.Messages = append(past.Messages, Message{Topic: m.topic.name, Offset: m.offset, Time: time.UnixMilli(m.time), Format: m.format, Payload: m.raw.Payload()})
	}
	return past, err
}

func (h *hub) past(topic string, from Start, limit int) (past Past, list []*message, err error) {
	if err := CheckTopic(topic); err != nil {
		return past, nil, err
	}
	t := h.find(topic)
	if t == nil {
		return Past{Recovered: from.Since == nil}, nil, nil
	}
	defer t.mu.Unlock()
	past.Position = t.position()
	list, past.Recovered = t.since(from, h.srv.age())
	return past, list[:min(len(list), max(limit, 0))], nil
}
