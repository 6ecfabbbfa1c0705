package server

import (
	"fmt"
	"slices"
	"time"

	"carillon/server/topic"
)

// link ties a source to the cluster. Guarded by the source's mu. That of a server without one is [untied].
type link struct {
	state   linkState
	follows uint64        // how often it was followed, so that late answers are known
	tries   int           // that failed, since the last that did not
	wanted  time.Duration // when it was last asked for, or the last subscriber went, after the server was made
	waiters []*waiter

	// Of transient topics and endpoints.
	sent    uint64 // messages that went out
	senders map[string]*sender

	coveringPattern *source  // the pattern by which messages of the topic come: as long as it is followed, none is missed
	replica         *replica // nil for transient topics and patterns
}

type linkState uint8

const (
	linkNone   linkState = iota // not followed
	linkAsked                   // it has been asked for
	linkFailed                  // that failed, and is tried again later
	linkJoined                  // messages come
)

// waiter waits until a topic or a pattern can be subscribed to.
type waiter struct {
	load uint64 // it has to be this one, or a later one, for a persistent topic
	done func(error)
	late *time.Timer
}

// sender is another server, as the messages of one topic or endpoint show it.
type sender struct {
	incarnation uint64
	seq         uint64
}

// serves reports whether a source can be subscribed to.
func (l *link) serves() bool { return l.state != linkNone && (l.replica == nil || l.replica.loaded) }

func (f *follower) attach(src *source) {
	src.link = &link{wanted: f.hub.engine.Uptime()}
	if src.topic != nil && src.topic.isPersistent() {
		src.link.replica = &replica{}
	}
}

// isPersistent reports whether the broker keeps a topic that has a rule, if there is a broker.
func (t *topicState) isPersistent() bool { return t.rule.HasHistory() }

// ruleOf is the number of the rule by which a topic is kept.
func (f *follower) ruleOf(t *topicState) int { return topic.RuleIndex(f.hub.settings().rules, t.name) }

func (f *follower) left(src *source) { src.link.wanted = f.hub.engine.Uptime() }

// uses reports whether anything waits for the topic, or patterns may lack messages of it.
func (f *follower) uses(t *topicState) bool { return len(t.link.waiters) > 0 || f.mayOwe(t) }

// knows is always true: a client may have its position from another server, or from before messages were missed here.
func (f *follower) knows(*topicState) bool { return true }

// maxIdlePatterns is how many patterns there may be for one that has lost its last subscriber to linger.
const maxIdlePatterns = 4096

// lingers reports whether a pattern without subscribers lingers, since it may be wanted again soon: sweep forgets it.
// One client could have any number of them linger, so they do only while there are few.
func (f *follower) lingers(p *source) bool {
	return len(p.link.waiters) > 0 || f.hub.patterns.names.Len() <= maxIdlePatterns
}

// waitTime is how long a request waits for the cluster before it fails.
const waitTime = 10 * time.Second

// await has the source followed, and calls done when that is so: not with anything locked, or when it returns
// true, which means that there is nothing to wait for. The caller holds mu.
func (f *follower) await(src *source, done func(error)) (ready bool) {
	src.link.wanted = f.hub.engine.Uptime()
	if src.link.state == linkJoined {
		return true
	}
	f.follow(src)
	if f.broker.Err() != nil {
		return true // at most once: it is joined when that is possible again
	}
	f.enlist(src, &waiter{done: done}, waitTime)
	return false
}

// enlist adds a waiter, which waits for the given time at most. The caller holds mu.
func (f *follower) enlist(src *source, w *waiter, limit time.Duration) {
	src.link.waiters = append(src.link.waiters, w)
	w.late = time.AfterFunc(limit, func() {
		src.mu.Lock()
		i := slices.Index(src.link.waiters, w)
		if i >= 0 {
			src.link.waiters = slices.Delete(src.link.waiters, i, i+1)
		}
		src.mu.Unlock()
		switch {
		case i < 0:
		case src.link.replica != nil:
			w.done(fmt.Errorf("%w: no response in time", topic.ErrNoCluster))
		default:
			w.done(nil)
		}
	})
}

// release ends the wait of those whom a load up to this number is enough for. The caller holds mu.
func (f *follower) release(src *source, load uint64, err error) {
	src.link.waiters = slices.DeleteFunc(src.link.waiters, func(w *waiter) bool {
		if w.load > load {
			return false
		}
		w.late.Stop()
		f.order(func() { w.done(err) }) // in its order, and with nothing locked
		return true
	})
	if len(src.link.waiters) == 0 {
		src.link.waiters = nil
	}
}

// follow has the messages of a source come. The caller holds mu.
func (f *follower) follow(src *source) {
	l := src.link
	if l.state == linkJoined || l.state == linkAsked {
		return
	}
	l.state = linkAsked
	l.follows++
	number := l.follows
	clear(l.senders) // what was missed meanwhile is no hole
	f.order(func() {
		f.broker.Follow(src.name, func(err error) { f.followed(src, number, err) })
	})
}

func (f *follower) followed(src *source, number uint64, err error) {
	src.mu.Lock()
	defer src.mu.Unlock()
	l := src.link
	if l.follows != number || l.state != linkAsked {
		return
	}
	if err != nil {
		f.unfollowed(src, err)
		return
	}
	l.state, l.tries = linkJoined, 0
	if l.replica != nil {
		f.load(src.topic)
		return
	}
	f.release(src, 0, nil)
}

// unfollowed tries again later, as long as it is wanted. The caller holds mu.
func (f *follower) unfollowed(src *source, err error) {
	l := src.link
	l.state = linkFailed
	l.tries++
	if l.replica != nil {
		f.release(src, ^uint64(0), unavailable(err))
	} else {
		f.release(src, 0, nil)
	}
	number := l.follows
	time.AfterFunc(backoff(l.tries), func() {
		src.mu.Lock()
		defer src.mu.Unlock()
		if l.follows == number && l.state == linkFailed {
			f.follow(src)
		}
	})
}

// unfollow ends that the messages of a source come. The caller holds mu.
func (f *follower) unfollow(src *source) {
	l := src.link
	if l.state == linkNone {
		return
	}
	l.state = linkNone
	l.follows++
	f.order(func() { f.broker.Unfollow(src.name) })
	if l.replica != nil {
		f.unload(src.topic)
	}
}

func (f *follower) sweepTopic(t *topicState, now time.Duration) {
	if t.subscribers == 0 && len(t.link.waiters) == 0 && now-t.link.wanted > f.hub.linger {
		f.unfollow(&t.source)
	}
	if f.mayOwe(t) {
		t.used = now
	}
}

// sweep forgets patterns that have not been wanted for long.
func (f *follower) sweep(now time.Duration) {
	h := f.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	looked := 0
	for _, p := range h.patterns.names.All() {
		p.mu.Lock()
		if p.subscribers == 0 && len(p.link.waiters) == 0 && now-p.link.wanted > h.linger && h.patterns.names.Get(p.name) == p {
			h.removePattern(p)
		}
		p.mu.Unlock()
		if looked++; looked%lookSlice == 0 {
			h.mu.Unlock()
			h.mu.Lock()
		}
	}
}

// isCovered reports whether messages of a topic come by a pattern without interruption since it was said last. The
// caller holds the topic's mu.
func (l *link) isCovered(patterns []*source) bool {
	if l.coveringPattern != nil && slices.Contains(patterns, l.coveringPattern) {
		return true
	}
	l.coveringPattern = nil
	return false
}

// ready leaves names that are wrong to its callers. A topic that the broker does not keep is always ready for readers.
func (f *follower) ready(name string, from topic.Start, reads bool, wait func(), done func(error)) (ready bool, err error) {
	pattern, err := topic.Parse(name)
	if err != nil || reads && !f.keeps(name) {
		return true, nil
	}
	var src *source
	if pattern {
		src = f.hub.openPattern(name)
	} else {
		t, err := f.hub.open(name)
		if err != nil {
			return false, err
		}
		src = &t.source
	}
	defer src.mu.Unlock() // before which done is not called
	if src.link.replica != nil {
		ready, err = f.awaitReplica(src.topic, from, reads, done)
	} else {
		ready = f.await(src, done)
	}
	if !ready && err == nil {
		wait()
	}
	return ready, err
}
