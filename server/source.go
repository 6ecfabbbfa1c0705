package server

import (
	"slices"
	"sync"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// source is what connections receive messages from: a topic or a pattern that they are subscribed to, or their
// endpoint. What is published to a topic goes through the patterns that match it too.
type source struct {
	name  string
	topic *topicState // that this is a part of; nil for a pattern and an endpoint

	mu sync.Mutex

	// Guarded by mu.
	seq         uint32   // of the last message: counts them for the audiences, and means nothing to clients
	subscribers int32    // connections of an endpoint are subscribers of its source
	locals      []*local // one for each shard with subscribers
	link        *link    // to the cluster
}

// hubHolder is what a shard's OwnerData has to be.
type hubHolder interface{ theHub() *hub }

// hubOf is the hub whose messages a loop hands out.
func hubOf(sh *reactor.Shard) *hub { return sh.OwnerData.(hubHolder).theHub() }

// local is a shard's part of a source.
type local struct {
	// Immutable.
	sh  *reactor.Shard
	src *source

	// Guarded by src.mu; changed by the loop only, so that it reads without the lock. Those of an endpoint are its
	// tables.
	audiences [reactor.NumFramings]*reactor.Audience
}

// sourceOf is what a connection is subscribed to.
func sourceOf(s *reactor.Subscription) *source { return s.Audience.Feed.(*local).src }

// nameOf is the name of the topic or pattern.
func nameOf(s *reactor.Subscription) string { return sourceOf(s).name }

// isPattern reports whether it is a pattern.
func isPattern(s *reactor.Subscription) bool { return sourceOf(s).topic == nil }

// latest reports whether slow subscribers get only the newest message. The caller holds mu.
func (src *source) latest() bool {
	return src.topic != nil && src.topic.rule != nil && src.topic.rule.Latest
}

// overloaded returns a shard with subscribers that has too much to do for another n bytes, or nil. The caller holds mu.
func (src *source) overloaded(n int64) *reactor.Shard {
	for _, l := range src.locals {
		if !l.sh.HasRoom(n) {
			return l.sh
		}
	}
	return nil
}

// post makes a message the next one of all shards that have subscribers, and returns how many these are. The caller
// holds mu, so that all shards get the same order.
func (src *source) post(kind reactor.CommandKind, p reactor.Payload, at reactor.Stamp) (subscribers int) {
	src.seq++
	raw, latest := p.Frame(reactor.FramingRaw), src.latest()
	for _, l := range src.locals {
		l.sh.Backlog.Add(int64(len(raw.Plain())))
		l.sh.Fanout.Add(1)
		l.sh.Post(reactor.Command{Kind: kind, Feed: l, Frame: raw, Payload: p, Seq: src.seq, At: at, Latest: latest})
	}
	return int(src.subscribers)
}

// audience returns the part of a shard's audience that has a framing, which is made if need be. The caller
// holds mu.
func (src *source) audience(sh *reactor.Shard, kind reactor.Framing) *reactor.Audience {
	i := slices.IndexFunc(src.locals, func(l *local) bool { return l.sh == sh })
	if i < 0 {
		i = len(src.locals)
		src.locals = append(src.locals, &local{sh: sh, src: src})
	}
	l := src.locals[i]
	if l.audiences[kind] == nil {
		// It begins behind this offset: what is on its way to the shard with one up to it is old.
		l.audiences[kind] = &reactor.Audience{Shard: sh, Feed: l, Base: src.seq + 1, Latest: src.latest()}
	}
	return l.audiences[kind]
}

// remove takes out a shard that has no subscribers any more. The caller holds mu.
func (src *source) remove(l *local) {
	i := slices.Index(src.locals, l)
	src.locals = slices.Delete(src.locals, i, i+1)
}

// Publish hands a message to the subscribers of this shard, as [reactor.Audience.Publish] does.
func (l *local) Publish(p *reactor.Command) (bytes int) {
	for kind, a := range l.audiences {
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

// closeGap tells a client without any other way to learn it that messages are missing.
const closeGap codec.CloseCode = 4010

// closeForGap tells members who have no other way to learn it that messages are missing, but not those who have joined
// behind the gap.
func closeForGap(a *reactor.Audience, seq uint32) {
	var conns []*reactor.Conn
	for i := range a.Members {
		if int32(a.Members[i].Seq-seq) <= 0 {
			conns = append(conns, a.Members[i].Conn)
		}
	}
	for _, c := range conns {
		c.StartClose(reactor.CloseOwn, closeGap, "gap")
	}
}

// members is how many connections are in the audiences. It is for the loop.
func (l *local) members() (n int) {
	for _, a := range l.audiences {
		if a != nil {
			n += len(a.Members)
		}
	}
	return n
}

// Join notes that an endpoint has one connection more on this shard.
func (l *local) Join() {
	src := l.src
	src.mu.Lock()
	defer src.mu.Unlock()
	src.subscribers++
	if l.members() == 1 {
		src.locals = append(src.locals, l)
	}
}

// Leave notes that it has one less.
func (l *local) Leave() {
	src := l.src
	src.mu.Lock()
	defer src.mu.Unlock()
	src.subscribers--
	if l.members() == 0 {
		src.remove(l)
	}
}

// Left notes that one subscriber has gone.
func (l *local) Left(a *reactor.Audience) {
	src := l.src
	src.mu.Lock()
	if i := slices.Index(l.audiences[:], a); i >= 0 && len(a.Members) == 0 {
		l.audiences[i] = nil
		if l.audiences == [reactor.NumFramings]*reactor.Audience{} {
			src.remove(l)
		}
	}
	src.unsubscribe(hubOf(l.sh))
}
