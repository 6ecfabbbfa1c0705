package hub

import (
	"slices"
	"sync"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// Source is what connections receive messages from: a topic or a pattern that they are subscribed to, or their
// endpoint. What is published to a topic goes through the patterns that match it too.
type Source struct {
	Name  string
	topic *topicState // that this is a part of; nil for a pattern and an endpoint

	Mu sync.Mutex

	// Guarded by mu.
	Seq         uint32   // of the last message: counts them for the audiences, and means nothing to clients
	Subscribers int32    // connections of an endpoint are subscribers of its source
	Locals      []*Local // one for each shard with subscribers
	Link        *link    // to the cluster
}

// Holder is what a shard's OwnerData has to be.
type Holder interface{ Hub() *Hub }

// Of is the hub whose messages a loop hands out.
func Of(sh *reactor.Shard) *Hub { return sh.OwnerData.(Holder).Hub() }

// Local is a shard's part of a source.
type Local struct {
	// Immutable.
	Shard  *reactor.Shard
	Source *Source

	// Guarded by src.mu; changed by the loop only, so that it reads without the lock. Those of an endpoint are its
	// tables.
	Audiences [reactor.NumFramings]*reactor.Audience
}

// sourceOf is what a connection is subscribed to.
func sourceOf(s *reactor.Subscription) *Source { return s.Audience.Feed.(*Local).Source }

// NameOf is the name of the topic or pattern.
func NameOf(s *reactor.Subscription) string { return sourceOf(s).Name }

// IsPattern reports whether it is a pattern.
func IsPattern(s *reactor.Subscription) bool { return sourceOf(s).topic == nil }

// latest reports whether slow subscribers get only the newest message. The caller holds mu.
func (src *Source) latest() bool {
	return src.topic != nil && src.topic.rule != nil && src.topic.rule.Latest
}

// Payload is a message that knows about how many bytes each of its forms has, before it is encoded.
type Payload interface {
	reactor.Payload
	Size(reactor.Framing) int
}

// cost is how many bytes a message counts for in the shard's backlog: those of all forms in which it goes out. The
// caller holds the mu of the source.
func (l *Local) cost(p Payload) (n int) {
	for kind, a := range l.Audiences {
		if a != nil {
			n += p.Size(reactor.Framing(kind))
		}
	}
	return n
}

// Overloaded returns a shard with subscribers that has too much to do for another message, so many times, or nil. The
// caller holds mu.
func (src *Source) Overloaded(p Payload, times int) *reactor.Shard {
	for _, l := range src.Locals {
		if !l.Shard.HasRoom(int64(times * l.cost(p))) {
			return l.Shard
		}
	}
	return nil
}

// post makes a message the next one of all shards that have subscribers, and returns how many these are, and how many
// bytes all forms have for all shards. The caller holds mu, so that all shards get the same order.
func (src *Source) post(kind reactor.CommandKind, p Payload, at reactor.Stamp) (subscribers, bytes int) {
	src.Seq++
	raw, latest := p.Frame(reactor.FramingRaw), src.latest()
	for _, l := range src.Locals {
		cost := l.cost(p)
		bytes += cost
		l.Shard.Backlog.Add(int64(cost))
		l.Shard.Fanout.Add(1)
		l.Shard.Post(reactor.Command{Kind: kind, Feed: l, Frame: raw, Payload: p, Cost: cost, Seq: src.Seq, At: at, Latest: latest})
	}
	return int(src.Subscribers), bytes
}

// audience returns the part of a shard's audience that has a framing, which is made if need be. The caller
// holds mu.
func (src *Source) audience(sh *reactor.Shard, kind reactor.Framing) *reactor.Audience {
	i := slices.IndexFunc(src.Locals, func(l *Local) bool { return l.Shard == sh })
	if i < 0 {
		i = len(src.Locals)
		src.Locals = append(src.Locals, &Local{Shard: sh, Source: src})
	}
	l := src.Locals[i]
	if l.Audiences[kind] == nil {
		// It begins behind this offset: what is on its way to the shard with one up to it is old.
		l.Audiences[kind] = &reactor.Audience{Shard: sh, Feed: l, Base: src.Seq + 1, Latest: src.latest()}
	}
	return l.Audiences[kind]
}

// remove takes out a shard that has no subscribers any more. The caller holds mu.
func (src *Source) remove(l *Local) {
	i := slices.Index(src.Locals, l)
	src.Locals = slices.Delete(src.Locals, i, i+1)
}

// Publish hands a message to the subscribers of this shard, as [reactor.Audience.Publish] does.
func (l *Local) Publish(p *reactor.Command) (bytes int) {
	for kind, a := range l.Audiences {
		if a == nil || !a.IsTable() && int32(p.Seq-a.End()) < 0 { // it was there before the audience
			continue
		}
		if len(a.Members) == 0 && len(a.Stream) == 0 {
			a.Base++ // it has no receivers
			continue
		}
		if p.Kind == reactor.CommandGap && reactor.Framing(kind) == reactor.FramingRaw {
			closeForGap(a, p.Seq)
		}
		a.Latest = p.Latest
		bytes += a.Publish(p.Payload.Frame(reactor.Framing(kind)), p.At)
	}
	return bytes
}

// CloseGap tells a client that messages are missing when it cannot be told in another way.
const CloseGap codec.CloseCode = 4010

// closeForGap tells members that cannot be told in another way that messages are missing, but not those that have
// joined behind the gap.
func closeForGap(a *reactor.Audience, seq uint32) {
	var conns []*reactor.Conn
	for i := range a.Members {
		if int32(a.Members[i].Seq-seq) <= 0 {
			conns = append(conns, a.Members[i].Conn)
		}
	}
	for _, c := range conns {
		c.StartClose(reactor.CloseOwn, CloseGap, "gap")
	}
}

// members is how many connections are in the audiences. It is for the loop.
func (l *Local) members() (n int) {
	for _, a := range l.Audiences {
		if a != nil {
			n += len(a.Members)
		}
	}
	return n
}

// Join notes that an endpoint has one connection more on this shard.
func (l *Local) Join() {
	src := l.Source
	src.Mu.Lock()
	defer src.Mu.Unlock()
	src.Subscribers++
	if l.members() == 1 {
		src.Locals = append(src.Locals, l)
	}
}

// Leave notes that it has one less.
func (l *Local) Leave() {
	src := l.Source
	src.Mu.Lock()
	defer src.Mu.Unlock()
	src.Subscribers--
	if l.members() == 0 {
		src.remove(l)
	}
}

// Left notes that one subscriber has gone.
func (l *Local) Left(a *reactor.Audience) {
	src := l.Source
	src.Mu.Lock()
	if i := slices.Index(l.Audiences[:], a); i >= 0 && len(a.Members) == 0 {
		l.Audiences[i] = nil
		if l.Audiences == [reactor.NumFramings]*reactor.Audience{} {
			src.remove(l)
		}
	}
	src.unsubscribe(Of(l.Shard))
}
