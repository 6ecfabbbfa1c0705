package server

import (
	"slices"
	"sync"
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

// local is a shard's part of a source.
type local struct {
	// Immutable.
	sh  *shard
	src *source

	// Guarded by src.mu; changed by the loop only, so that it reads without the lock. Those of an endpoint are its
	// tables.
	audiences [numFramings]*audience
}

// sourceOf is what a connection is subscribed to.
func sourceOf(s *subscription) *source { return s.audience.feed.(*local).src }

// nameOf is the name of the topic or pattern.
func nameOf(s *subscription) string { return sourceOf(s).name }

// isPattern reports whether it is a pattern.
func isPattern(s *subscription) bool { return sourceOf(s).topic == nil }

// latest reports whether slow subscribers get only the newest message. The caller holds mu.
func (src *source) latest() bool {
	return src.topic != nil && src.topic.rule != nil && src.topic.rule.Latest
}

// overloaded returns a shard with subscribers that has too much to do for another n bytes, or nil. The caller holds mu.
func (src *source) overloaded(n int64) *shard {
	for _, l := range src.locals {
		if !l.sh.hasRoom(n) {
			return l.sh
		}
	}
	return nil
}

// post makes a message the next one of all shards that have subscribers, and returns how many these are. The caller
// holds mu, so that all shards get the same order.
func (src *source) post(kind commandKind, p payload, at stamp) (subscribers int) {
	src.seq++
	raw, latest := p.frame(framingRaw), src.latest()
	for _, l := range src.locals {
		l.sh.backlog.Add(int64(len(raw.Plain())))
		l.sh.fanout.Add(1)
		l.sh.post(command{kind: kind, feed: l, frame: raw, payload: p, seq: src.seq, at: at, latest: latest})
	}
	return int(src.subscribers)
}

// audience returns the part of a shard's audience that has a framing, which is made if need be. The caller
// holds mu.
func (src *source) audience(sh *shard, kind framing) *audience {
	i := slices.IndexFunc(src.locals, func(l *local) bool { return l.sh == sh })
	if i < 0 {
		i = len(src.locals)
		src.locals = append(src.locals, &local{sh: sh, src: src})
	}
	l := src.locals[i]
	if l.audiences[kind] == nil {
		// It begins behind this offset: what is on its way to the shard with one up to it is old.
		l.audiences[kind] = &audience{sh: sh, feed: l, base: src.seq + 1, latest: src.latest()}
	}
	return l.audiences[kind]
}

// remove takes out a shard that has no subscribers any more. The caller holds mu.
func (src *source) remove(l *local) {
	i := slices.Index(src.locals, l)
	src.locals = slices.Delete(src.locals, i, i+1)
}

// publish hands a message to the subscribers of this shard, as [audience.publish] does.
func (l *local) publish(p *command) (bytes int) {
	for kind, a := range l.audiences {
		if a == nil || !a.isTable() && int32(p.seq-a.end()) < 0 { // it was there before the audience
			continue
		}
		if len(a.members) == 0 && len(a.stream) == 0 {
			a.base++ // it has no receivers
			continue
		}
		if p.kind == commandGap && framing(kind) == framingRaw {
			closeForGap(a, p.seq)
		}
		a.latest = p.latest
		bytes += a.publish(p.payload.frame(framing(kind)), p.at)
	}
	return bytes
}

// closeForGap tells members who have no other way to learn it that messages are missing, but not those who have joined
// behind the gap.
func closeForGap(a *audience, seq uint32) {
	var conns []*Conn
	for i := range a.members {
		if int32(a.members[i].seq-seq) <= 0 {
			conns = append(conns, a.members[i].conn)
		}
	}
	for _, c := range conns {
		c.startClose(closeOwn, closeGap, "gap")
	}
}

// members is how many connections are in the audiences. It is for the loop.
func (l *local) members() (n int) {
	for _, a := range l.audiences {
		if a != nil {
			n += len(a.members)
		}
	}
	return n
}

// join notes that an endpoint has one connection more on this shard.
func (l *local) join() {
	src := l.src
	src.mu.Lock()
	defer src.mu.Unlock()
	src.subscribers++
	if l.members() == 1 {
		src.locals = append(src.locals, l)
	}
}

// leave notes that it has one less.
func (l *local) leave() {
	src := l.src
	src.mu.Lock()
	defer src.mu.Unlock()
	src.subscribers--
	if l.members() == 0 {
		src.remove(l)
	}
}

// left notes that one subscriber has gone.
func (l *local) left(a *audience) {
	src := l.src
	src.mu.Lock()
	if i := slices.Index(l.audiences[:], a); i >= 0 && len(a.members) == 0 {
		l.audiences[i] = nil
		if l.audiences == [numFramings]*audience{} {
			src.remove(l)
		}
	}
	src.unsubscribe(hubOf(l.sh))
}
