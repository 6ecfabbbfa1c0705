package hub

import (
	"math"
	"sync"
	"time"

	"carillon/internal/shrink"
)

// A topic without subscribers and history is idle. It lingers for a while, so that its offsets go on when a client
// comes back with a position in it, or goes at once if it never had a message: then there is nothing to go on from, and
// [Hub.epochOf] gives it the same epoch again. A client could make any number of idle topics, so they give way:
//
//   - to a new topic when Limits.MaxTopics is reached, the oldest first;
//   - to each other as long as no subscriber can have a position in them: of these there are maxUnheard at most.

// linger is how long an idle topic is remembered.
const linger = time.Minute

// maxUnheard is how many idle topics there may be that no subscriber has heard of.
const maxUnheard = 1 << 16

// idleTopics are topics in the order in which they were used last, about.
type idleTopics struct {
	mu    sync.Mutex
	queue shrink.Queue[idleTopic]
}

type idleTopic struct {
	topic *topicState
	used  time.Duration // when it entered the queue
}

func (q *idleTopics) push(t *topicState, used time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue.Push(idleTopic{t, used})
}

// pop takes out the first topic if there are more than most, or if it was used before a time.
func (q *idleTopics) pop(most int, before time.Duration) (first idleTopic, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if first, ok = q.queue.Front(); !ok || q.queue.Len() <= most && first.used >= before {
		return first, false
	}
	return q.queue.Pop(), true
}

// unlock unlocks a topic that may not be in use any more. If so it lists it as idle, or forgets it.
func (h *Hub) unlock(t *topicState) {
	if t.idle || t.Forgotten || h.inUse(t) {
		t.Mu.Unlock()
		return
	}
	if !h.Remote.knows(t) {
		t.Forgotten = true
		t.Mu.Unlock()
		h.remove(t)
		return
	}
	t.heard = t.heard || len(t.Patterns) > 0
	t.idle = true
	used := t.lastUse()
	queue := &h.unheard
	if t.heard {
		queue = &h.heard
	}
	queue.push(t, used)
	t.Mu.Unlock()
}

// inUse reports whether a topic must not be forgotten. What a server has of a persistent topic is a copy. The caller
// holds mu.
func (h *Hub) inUse(t *topicState) bool {
	return t.Subscribers > 0 || t.Link.replica == nil && t.history.len() > 0 || h.Remote.uses(t)
}

// lastUse is when the topic last had a message or a subscriber, or was asked for. The caller holds mu.
func (t *topicState) lastUse() time.Duration {
	return max(t.used, t.Link.wanted)
}

// remove takes a topic out that is forgotten. Nothing is locked.
func (h *Hub) remove(t *topicState) {
	p, generation := h.part(t.Name)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Topics.Delete(t.Name)
	if h.Remote.knows(t) {
		*generation++
	}
	h.Count.Add(-1)
}

// revisit looks again at a topic that was taken out of a list, and reports whether it is forgotten now. If not it is
// either in use or in a list again. One that was used meanwhile stays unless it has to go.
func (h *Hub) revisit(from *idleTopics, one idleTopic, hasToGo bool) (forgotten bool) {
	t := one.topic
	t.Mu.Lock()
	t.idle = false
	if t.Forgotten || h.inUse(t) {
		t.Mu.Unlock()
		return false
	}
	used := t.lastUse()
	switch {
	case from == &h.unheard && t.heard:
		t.idle = true
		h.heard.push(t, used)
	case used > one.used && !hasToGo:
		t.idle = true
		from.push(t, used)
	default:
		h.Remote.unfollow(&t.Source)
		t.Forgotten = t.history.len() == 0
	}
	forgotten = t.Forgotten
	t.Mu.Unlock()
	if forgotten {
		h.remove(t)
	}
	return forgotten
}

// ForgetIdle forgets the topics that have not been used since a time.
func (h *Hub) ForgetIdle(since time.Duration) {
	for _, list := range []*idleTopics{&h.unheard, &h.heard} {
		for one, ok := list.pop(math.MaxInt, since); ok; one, ok = list.pop(math.MaxInt, since) {
			h.revisit(list, one, false)
		}
	}
}

// boundIdle forgets topics that are too many for those that no subscriber has heard of. It looks at a few, for each
// topic that is made.
func (h *Hub) boundIdle() {
	for range 4 {
		one, ok := h.unheard.pop(h.MaxUnheard, math.MinInt64)
		if !ok {
			return
		}
		h.revisit(&h.unheard, one, false)
	}
}

// makeRoom forgets an idle topic, and reports whether there was one.
func (h *Hub) makeRoom() bool {
	for _, list := range []*idleTopics{&h.unheard, &h.heard} {
		for one, ok := list.pop(0, 0); ok; one, ok = list.pop(0, 0) {
			if h.revisit(list, one, true) {
				return true
			}
		}
	}
	return false
}
