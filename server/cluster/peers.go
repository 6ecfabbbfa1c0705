package cluster

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

// A node is gone when it has not been heard of for silence. The times are those at which heartbeats arrive, by
// this node's clock.
const (
	heartbeatInterval = time.Second
	silence           = 5 * time.Second
)

// heartbeat is what nodes tell each other.
type heartbeat struct {
	Wire    int            `json:"wire"`
	Info    topic.NodeInfo `json:"info"`
	Count   uint64         `json:"count"`   // of this node's heartbeats
	Server  string         `json:"server"`  // the id of its NATS server
	Rules   string         `json:"rules"`   // what its topics keep
	Leaving bool           `json:"leaving"` // this is its last one

	Streams map[string]claim `json:"streams,omitempty"` // how far it has seen them, by the rule's id

	// For so many seconds more the keys of all publishers share one namespace, because a node of an older version is,
	// or was, in the cluster. Such a node does not say so.
	SharedKeys *int `json:"sharedKeys"`
}

// peers are the other nodes.
type peers struct {
	mu     sync.Mutex
	nodes  map[string]*peer    // guarded by mu
	warned map[string]struct{} // guarded by mu: nodes with other rules
	shared time.Time           // guarded by mu: how long keys share a namespace; zero if no older node was heard of

	telling sync.Mutex // held until a heartbeat is sent, so that they go out in their order
	count   uint64     // guarded by telling: heartbeats
	left    bool       // guarded by telling: there was the last one
}

type peer struct {
	info   topic.NodeInfo
	count  uint64
	server string

	streams map[string]claim
}

func (p *peers) init() { p.nodes, p.warned = map[string]*peer{}, map[string]struct{}{} }

func idOf(number uint64) string { return fmt.Sprintf("%016x", number) }

func (b *Broker) self() topic.NodeInfo {
	info := b.node.Info()
	info.ID, info.Heard, info.Lag = b.id, time.Now(), b.in.lag().Seconds()
	if info.Name == "" {
		info.Name = b.o.Node
	}
	if info.Started.IsZero() {
		info.Started = b.started
	}
	return info
}

func (b *Broker) heartbeats() {
	for {
		b.beat(false)
		b.silent(time.Now())
		if !b.sleep(heartbeatInterval) {
			return
		}
	}
}

func (b *Broker) beat(leaving bool) {
	p := &b.peers
	p.telling.Lock()
	defer p.telling.Unlock()
	if p.left {
		return
	}
	p.left = leaving
	p.count++
	shared := p.sharedSeconds(time.Now())
	text, err := json.Marshal(heartbeat{Wire: wireVersion, Info: b.self(), Count: p.count, Server: *b.serverID.Load(), Rules: b.rules(), Leaving: leaving, SharedKeys: &shared,
		Streams: b.claims()})
	if err == nil {
		_ = b.nc.Publish(b.names.heartbeats(), text) // without a connection it cannot be heard
	}
}

// sharesKeys reports whether the keys of all publishers share one namespace.
func (p *peers) sharesKeys(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Before(p.shared)
}

// sharedSeconds is for how long that goes on. It is a second less, so that nodes that tell each other do not prolong
// it.
func (p *peers) sharedSeconds(now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, int(p.shared.Sub(now)/time.Second)-1)
}

// share notes what a heartbeat says of that. The caller holds mu.
func (p *peers) share(h *heartbeat) {
	left := dedupWindow
	if h.SharedKeys != nil {
		left = min(max(0, time.Duration(min(*h.SharedKeys, 3600))*time.Second), dedupWindow)
	}
	if until := h.Info.Heard.Add(left); left > 0 && until.After(p.shared) {
		p.shared = until
	}
}

// greeting is how long a node waits at its start for what others say of themselves.
const greeting = 200 * time.Millisecond

// greet makes this node and the others known to each other. A subscription is certain to have arrived only at nodes
// that are known.
func (b *Broker) greet() {
	if b.embedded != nil && len(b.o.NATS.others()) > 0 {
		for end := time.Now().Add(10 * greeting); b.embedded.NumRoutes() == 0 && time.Now().Before(end); {
			b.sleep(greeting / 10)
		}
	}
	b.beat(false)
	b.sleep(greeting)
}

// farewell tells the others that this node leaves.
func (b *Broker) farewell() {
	b.beat(true)
	_ = b.nc.FlushTimeout(time.Second)
}

// rules says what this node's topics keep, for comparison.
func (b *Broker) rules() string {
	var list []string
	for _, st := range b.streams {
		if st != nil {
			list = append(list, fmt.Sprintf("%s %d %v", st.match, st.history, st.config.MaxAge))
		}
	}
	return ruleID(strings.Join(list, "\n"))
}

// heard takes a heartbeat.
func (b *Broker) heard(m *nats.Msg) {
	var h heartbeat
	if err := json.Unmarshal(m.Data, &h); err != nil || h.Info.ID == "" || h.Info.ID == b.id {
		b.foreign("a heartbeat")
		return
	}
	h.Info.Heard = time.Now()
	b.learn(h.Streams)
	p := &b.peers
	p.mu.Lock()
	p.share(&h)
	before := p.nodes[h.Info.ID]
	differs := false
	if h.Leaving {
		delete(p.nodes, h.Info.ID)
	} else {
		p.nodes[h.Info.ID] = &peer{h.Info, h.Count, h.Server, h.Streams}
		if _, warned := p.warned[h.Info.ID]; h.Rules != b.rules() && !warned {
			p.warned[h.Info.ID], differs = struct{}{}, true
		}
	}
	p.mu.Unlock()
	switch {
	case h.Leaving && before != nil:
		b.log.Info("a node left the cluster", "node", h.Info.Name, "id", h.Info.ID)
	case h.Leaving:
	case before == nil:
		b.beat(false) // so that it knows this one at once
		b.log.Info("discovered a node of the cluster", "node", h.Info.Name, "id", h.Info.ID, "version", h.Info.Version)
		if h.Count > 1 && time.Since(b.started) > silence {
			b.resync("node " + h.Info.Name + " was silent for a while")
		}
	case h.Count > before.count+1:
		b.resync(fmt.Sprintf("%d heartbeats of node %s are missing", h.Count-before.count-1, h.Info.Name))
	}
	if differs {
		b.log.Warn("another node of the cluster has different topic rules; the rules of the node started last apply",
			"node", h.Info.Name, "id", h.Info.ID)
	}
}

// silent forgets nodes that have not been heard of.
func (b *Broker) silent(now time.Time) {
	b.peers.mu.Lock()
	defer b.peers.mu.Unlock()
	for id, p := range b.peers.nodes {
		if now.Sub(p.info.Heard) > silence {
			delete(b.peers.nodes, id)
			b.stats.lostNodes.Add(1)
			b.log.Warn("a node went silent", "node", p.info.Name, "id", id)
		}
	}
}

// isAlone reports whether this node has lost all others.
func (b *Broker) isAlone() bool {
	b.peers.mu.Lock()
	defer b.peers.mu.Unlock()
	return len(b.peers.nodes) == 0 && b.stats.lostNodes.Load() > 0
}

// Nodes implements [topic.Broker].
func (b *Broker) Nodes() []topic.NodeInfo {
	if b.node == nil {
		return nil
	}
	self := b.self()
	b.peers.mu.Lock()
	defer b.peers.mu.Unlock()
	var list []topic.NodeInfo
	for _, p := range b.peers.nodes {
		list = append(list, p.info)
	}
	slices.SortFunc(list, func(a, b topic.NodeInfo) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return append([]topic.NodeInfo{self}, list...)
}

// others returns the ids of the other nodes, or of those only that are connected to other NATS servers.
func (b *Broker) others(elsewhere bool) map[string]bool {
	b.peers.mu.Lock()
	defer b.peers.mu.Unlock()
	ids := map[string]bool{}
	for id, p := range b.peers.nodes {
		if !elsewhere || p.server != *b.serverID.Load() {
			ids[id] = true
		}
	}
	return ids
}
