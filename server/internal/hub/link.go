package hub

import (
	"fmt"
	"slices"
	"time"

	"carillon/server/topic"
)

// link ties a source to the cluster. Guarded by the source's mu. That of a server without one is [untied].
type link struct {
	State   linkState
	follows uint64        // how often it was followed, so that late answers are known
	tries   int           // that failed, since the last that did not
	wanted  time.Duration // when it was last asked for, or the last subscriber went, after the server was made
	waiters []*waiter

	// Of transient topics and endpoints.
	sent    uint64 // messages that went out
	senders map[string]*sender

	coveringPattern *Source  // the pattern by which messages of the topic come: as long as it is followed, none is missed
	replica         *replica // nil for transient topics and patterns
}

type linkState uint8

const (
	LinkNone   linkState = iota // not followed
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
func (l *link) serves() bool { return l.State != LinkNone && (l.replica == nil || l.replica.loaded) }

func (f *Follower) Attach(src *Source) {
	src.Link = &link{wanted: f.hub.engine.Uptime()}
	if src.topic != nil && src.topic.isPersistent() {
		src.Link.replica = &replica{}
	}
}

// isPersistent reports whether the broker keeps a topic that has a rule, if there is a broker.
func (t *topicState) isPersistent() bool { return t.rule.HasHistory() }

// ruleOf is the number of the rule by which a topic is kept.
func (f *Follower) ruleOf(t *topicState) int { return topic.RuleIndex(f.hub.settings().Rules, t.Name) }

func (f *Follower) left(src *Source) { src.Link.wanted = f.hub.engine.Uptime() }

// uses reports whether anything waits for the topic, or patterns may lack messages of it.
func (f *Follower) uses(t *topicState) bool { return len(t.Link.waiters) > 0 || f.mayOwe(t) }

// knows is always true: a client may have its position from another server, or from before messages were missed here.
func (f *Follower) knows(*topicState) bool { return true }

// MaxIdlePatterns is how many patterns there may be for one that has lost its last subscriber to linger.
const MaxIdlePatterns = 4096

// lingers reports whether a pattern without subscribers lingers, since it may be wanted again soon: sweep forgets it.
// One client could have any number of them linger, so they do only while there are few.
func (f *Follower) lingers(p *Source) bool {
	return len(p.Link.waiters) > 0 || f.hub.Patterns.Names.Len() <= MaxIdlePatterns
}

// waitTime is how long a request waits for the cluster before it fails.
const waitTime = 10 * time.Second

// await has the source followed, and calls done when that is so: not with anything locked, or when it returns
// true, which means that there is nothing to wait for. The caller holds mu.
func (f *Follower) await(src *Source, done func(error)) (ready bool) {
	src.Link.wanted = f.hub.engine.Uptime()
	if src.Link.State == linkJoined {
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
func (f *Follower) enlist(src *Source, w *waiter, limit time.Duration) {
	src.Link.waiters = append(src.Link.waiters, w)
	w.late = time.AfterFunc(limit, func() {
		src.Mu.Lock()
		i := slices.Index(src.Link.waiters, w)
		if i >= 0 {
			src.Link.waiters = slices.Delete(src.Link.waiters, i, i+1)
		}
		src.Mu.Unlock()
		switch {
		case i < 0:
		case src.Link.replica != nil:
			w.done(fmt.Errorf("%w: no response in time", topic.ErrNoCluster))
		default:
			w.done(nil)
		}
	})
}

// release ends the wait of those whom a load up to this number is enough for. The caller holds mu.
func (f *Follower) release(src *Source, load uint64, err error) {
	src.Link.waiters = slices.DeleteFunc(src.Link.waiters, func(w *waiter) bool {
		if w.load > load {
			return false
		}
		w.late.Stop()
		f.order(func() { w.done(err) }) // in its order, and with nothing locked
		return true
	})
	if len(src.Link.waiters) == 0 {
		src.Link.waiters = nil
	}
}

// follow has the messages of a source come. The caller holds mu.
func (f *Follower) follow(src *Source) {
	l := src.Link
	if l.State == linkJoined || l.State == linkAsked {
		return
	}
	l.State = linkAsked
	l.follows++
	number := l.follows
	clear(l.senders) // what was missed meanwhile is no hole
	f.order(func() {
		f.broker.Follow(src.Name, func(err error) { f.followed(src, number, err) })
	})
}

func (f *Follower) followed(src *Source, number uint64, err error) {
	src.Mu.Lock()
	defer src.Mu.Unlock()
	l := src.Link
	if l.follows != number || l.State != linkAsked {
		return
	}
	if err != nil {
		f.unfollowed(src, err)
		return
	}
	l.State, l.tries = linkJoined, 0
	if l.replica != nil {
		f.load(src.topic)
		return
	}
	f.release(src, 0, nil)
}

// unfollowed tries again later, as long as it is wanted. The caller holds mu.
func (f *Follower) unfollowed(src *Source, err error) {
	l := src.Link
	l.State = linkFailed
	l.tries++
	if l.replica != nil {
		f.release(src, ^uint64(0), unavailable(err))
	} else {
		f.release(src, 0, nil)
	}
	number := l.follows
	time.AfterFunc(backoff(l.tries), func() {
		src.Mu.Lock()
		defer src.Mu.Unlock()
		if l.follows == number && l.State == linkFailed {
			f.follow(src)
		}
	})
}

// unfollow ends that the messages of a source come. The caller holds mu.
func (f *Follower) unfollow(src *Source) {
	l := src.Link
	if l.State == LinkNone {
		return
	}
	l.State = LinkNone
	l.follows++
	f.order(func() { f.broker.Unfollow(src.Name) })
	if l.replica != nil {
		f.unload(src.topic)
	}
}

func (f *Follower) sweepTopic(t *topicState, now time.Duration) {
	if t.Subscribers == 0 && len(t.Link.waiters) == 0 && now-t.Link.wanted > f.hub.Linger {
		f.unfollow(&t.Source)
	}
	if f.mayOwe(t) {
		t.used = now
	}
}

// sweep forgets patterns that have not been wanted for long.
func (f *Follower) sweep(now time.Duration) {
	h := f.hub
	h.Mu.Lock()
	defer h.Mu.Unlock()
	looked := 0
	for _, p := range h.Patterns.Names.All() {
		p.Mu.Lock()
		if p.Subscribers == 0 && len(p.Link.waiters) == 0 && now-p.Link.wanted > h.Linger && h.Patterns.Names.Get(p.Name) == p {
			h.removePattern(p)
		}
		p.Mu.Unlock()
		if looked++; looked%lookSlice == 0 {
			h.Mu.Unlock()
			h.Mu.Lock()
		}
	}
}

// isCovered reports whether messages of a topic come by a pattern without interruption since it was said last. The
// caller holds the topic's mu.
func (l *link) isCovered(patterns []*Source) bool {
	if l.coveringPattern != nil && slices.Contains(patterns, l.coveringPattern) {
		return true
	}
	l.coveringPattern = nil
	return false
}

// ready leaves names that are wrong to its callers. A topic that the broker does not keep is always ready for readers.
func (f *Follower) ready(name string, from topic.Start, reads bool, wait func(), done func(error)) (ready bool, err error) {
	pattern, err := topic.Parse(name)
	if err != nil || reads && !f.Keeps(name) {
		return true, nil
	}
	var src *Source
	if pattern {
		src = f.hub.OpenPattern(name)
	} else {
		t, err := f.hub.open(name)
		if err != nil {
			return false, err
		}
		src = &t.Source
	}
	defer src.Mu.Unlock() // before which done is not called
	if src.Link.replica != nil {
		ready, err = f.awaitReplica(src.topic, from, reads, done)
	} else {
		ready = f.await(src, done)
	}
	if !ready && err == nil {
		wait()
	}
	return ready, err
}
