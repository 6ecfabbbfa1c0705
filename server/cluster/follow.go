package cluster

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"carillon/internal/patterns"
	"carillon/internal/shrink"
	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

// follows are the names that the server follows. NATS sends a message once for each subscription of a node that
// it matches; so a name that a pattern covers has none of its own as long as the pattern is followed.
type follows struct {
	wake chan struct{} // immutable

	mu      sync.Mutex
	wanted  map[string]bool // guarded by mu: names that are followed, or not any more, and not yet looked at
	joining []joining       // guarded by mu

	// Guarded by busy, which is held while NATS is told.
	busy     sync.Mutex
	names    shrink.Map[string, subscriptions] // by name: empty for one that is covered
	patterns patterns.Index[struct{}]          // of those names

	count atomic.Int64 // of names
}

type joining struct {
	name   string
	joined func(error)
}

// subscriptions are those to the passing and to the stored messages of a name.
type subscriptions [2]*nats.Subscription

func (f *follows) init() {
	f.wanted = map[string]bool{}
}

// Follow implements [topic.Broker].
func (b *Broker) Follow(name string, joined func(error)) {
	b.follows.mu.Lock()
	b.follows.wanted[name] = true
	b.follows.joining = append(b.follows.joining, joining{name, joined})
	b.follows.mu.Unlock()
	wake(b.follows.wake)
}

// Unfollow implements [topic.Broker].
func (b *Broker) Unfollow(name string) {
	b.follows.mu.Lock()
	b.follows.wanted[name] = false
	b.follows.mu.Unlock()
	wake(b.follows.wake)
}

// barrierPause bounds how often all nodes are asked whether a subscription has arrived.
const barrierPause = 5 * time.Millisecond

func (b *Broker) follower() {
	f := &b.follows
	for {
		select {
		case <-b.quit:
			f.mu.Lock()
			list := f.joining
			f.joining = nil
			f.mu.Unlock()
			for _, j := range list {
				j.joined(errNotStarted)
			}
			return
		case <-f.wake:
		}
		f.mu.Lock()
		wanted, list := f.wanted, f.joining
		f.wanted, f.joining = map[string]bool{}, nil
		f.mu.Unlock()

		f.busy.Lock()
		leaving, replaced, err := b.subscribe(wanted)
		f.busy.Unlock()
		if err == nil && (len(list) > 0 || replaced && len(leaving) > 0) {
			err = b.arrive()
		}
		if replaced {
			time.AfterFunc(overlap, func() { leave(leaving) })
		} else {
			leave(leaving)
		}
		for _, j := range list {
			j.joined(err)
		}
		if len(list) > 0 {
			b.sleep(barrierPause)
		}
	}
}

// present is the value of each pattern in an index that is a set.
var present struct{}

// subscribe tells NATS what is wanted, and returns the subscriptions that are not needed any more, and
// whether others may have taken their place. The caller holds busy.
func (b *Broker) subscribe(wanted map[string]bool) (leaving []*nats.Subscription, replaced bool, err error) {
	f := &b.follows
	var changed patterns.Index[struct{}] // patterns that have come or gone
	for name, want := range wanted {
		subs, have := f.names.Lookup(name)
		if want == have {
			continue
		}
		if want {
			f.names.Set(name, subscriptions{})
		} else {
			f.names.Delete(name)
			leaving = append(leaving, subs[:]...)
		}
		if topic.IsPattern(name) {
			replaced = true
			changed.Add(name, &present)
			if want {
				f.patterns.Add(name, &present)
			} else {
				f.patterns.Remove(name)
			}
		}
	}
	f.count.Store(int64(f.names.Len()))
	look := wanted
	if replaced {
		look = maps.Clone(wanted)
		for name := range f.names.All() {
			if changed.Covers(name) {
				look[name] = true
			}
		}
	}
	for name := range look {
		subs, have := f.names.Lookup(name)
		if !have {
			continue
		}
		switch covered := f.patterns.Covers(name); {
		case covered && subs[0] != nil:
			leaving = append(leaving, subs[:]...)
			f.names.Set(name, subscriptions{})
		case !covered && subs[0] == nil:
			if subs, err = b.subscribeTo(name); err != nil {
				return leaving, replaced, err
			}
			f.names.Set(name, subs)
		}
	}
	return leaving, replaced, nil
}

// leave ends subscriptions.
func leave(list []*nats.Subscription) {
	for _, sub := range list {
		if sub != nil {
			_ = sub.Unsubscribe() // it fails when the connection is closed
		}
	}
}

// overlap is how long an old subscription lives on alongside one that takes its place. A message that NATS matched
// before it knew the new one comes by the old one.
const overlap = 100 * time.Millisecond

func (b *Broker) subscribeTo(name string) (subs subscriptions, err error) {
	if subs[0], err = b.nc.ChanSubscribe(b.names.passing(name), b.in.arrived); err != nil {
		return subscriptions{}, err
	}
	if len(b.byRule) > 0 {
		if subs[1], err = b.nc.ChanSubscribe(b.names.stored("*", "*", name), b.in.arrived); err != nil {
			_ = subs[0].Unsubscribe()
			return subscriptions{}, err
		}
	}
	return subs, nil
}

// arrive waits until no later message can be missed: until this node's NATS server has the subscriptions, and
// those of the other nodes do, too.
func (b *Broker) arrive() error {
	if err := b.nc.FlushTimeout(b.o.Timeout); err != nil {
		return b.publishError(err)
	}
	if !b.nc.IsConnected() {
		return errNotStarted
	}
	b.barrier()
	return nil
}

// cutRule splits what is behind the kind in the subject of a stored message.
func cutRule(rest string) (rule, epoch, topic string) {
	rule, rest, _ = strings.Cut(rest, ".")
	epoch, topic, _ = strings.Cut(rest, ".")
	return rule, epoch, topic
}
