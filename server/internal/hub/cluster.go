package hub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"carillon/codec"
	"carillon/server/internal/logs"
	"carillon/server/topic"
)

// ErrOnLoop is returned by what would have to wait for the cluster and was called on an event loop.
var ErrOnLoop = errors.New("called on an event loop, which must not wait for the cluster")

// Follower is the remote of a server with a [topic.Broker].
type Follower struct {
	// Immutable.
	hub    *Hub
	broker topic.Broker
	paced  chan struct{} // as many as loads of a resync may be under way

	stats    clusterStats
	Presence presenceQueries
	unloads  *logs.Sampler          // of lines about loads that failed
	id       atomic.Pointer[string] // of this server, once the broker has told it

	orders sync.Mutex // guards what follows
	list   []func()
	busy   bool // a goroutine works on the list

	Mu        sync.Mutex
	Resyncing bool // guarded by mu
}

// clusterStats are counted since the server was made.
type clusterStats struct {
	PersistentIn, TransientIn, BroadcastsIn    atomic.Uint64
	PersistentOut, TransientOut, BroadcastsOut atomic.Uint64
	Failures                                   atomic.Uint64 // of what went out
	SequenceGaps                               atomic.Uint64 // messages, or places, that did not come as they should
	Lost                                       atomic.Uint64 // messages that did not come at all
	Gaps                                       atomic.Uint64 // of persistent topics that could not be filled
	Loads, LoadFailures                        atomic.Uint64
	Resyncs                                    atomic.Uint64 // that were asked for
	Queries, Partial                           atomic.Uint64
}

// MaxPaced is how many topics a resync looks at at once.
const MaxPaced = 32

func newFollower(h *Hub, b topic.Broker) *Follower {
	h.engine.LastID.Store((1 + rand.Uint64N(1<<20-1)) << 32) // else ids would be those of other servers, too
	return &Follower{hub: h, broker: b, paced: make(chan struct{}, MaxPaced), unloads: logs.NewSampler(1)}
}

// order has the broker told something, behind what was ordered before. It may be called with anything locked;
// no lock is held while it is done.
func (f *Follower) order(do func()) {
	f.orders.Lock()
	defer f.orders.Unlock()
	f.list = append(f.list, do)
	if !f.busy {
		f.busy = true
		go f.work()
	}
}

func (f *Follower) work() {
	for {
		f.orders.Lock()
		list := f.list
		f.list = nil
		f.busy = len(list) > 0
		f.orders.Unlock()
		if len(list) == 0 {
			return
		}
		for _, do := range list {
			do()
		}
	}
}

func (f *Follower) Counts() *clusterStats { return &f.stats }

// Away says why the broker cannot be reached, or nil.
func (f *Follower) Away() error { return unreachable(f.broker.Err()) }

func (f *Follower) IsUp() bool     { return f.Away() == nil }
func (f *Follower) Unready() error { return unreachable(f.broker.Ready()) }

// awayFor says why the broker cannot take, or give, messages of a persistent topic, or nil.
func (f *Follower) awayFor(rule int) error { return unreachable(f.broker.PersistentErr(rule)) }

func unreachable(err error) error {
	if err != nil && !errors.Is(err, topic.ErrNoCluster) {
		return fmt.Errorf("%w: %v", topic.ErrNoCluster, err)
	}
	return err
}

// Uncertain is what a publisher is told when the broker did not say what became of a message.
func Uncertain(err error) error {
	if errors.Is(err, topic.ErrUncertain) {
		return err
	}
	return fmt.Errorf("%w: %v", topic.ErrUncertain, err)
}

// unavailable is what a client is told when something could not be had from the broker.
func unavailable(err error) error {
	if err == nil || errors.Is(err, topic.ErrNoCluster) || errors.Is(err, topic.ErrOverloaded) {
		return err
	}
	return fmt.Errorf("%w: %v", topic.ErrNoCluster, err)
}

// backoff is how long to wait after a number of failures.
func backoff(tries int) time.Duration {
	longest := min(50*time.Millisecond<<min(tries, 7), 5*time.Second)
	return longest/2 + rand.N(longest/2)
}

func (f *Follower) Join(ctx context.Context) error {
	if err := f.broker.Start(ctx, node{f}); err != nil {
		return fmt.Errorf("join the cluster: %w", err)
	}
	return nil
}

// leaveTime is how long a server may take to leave its cluster.
const leaveTime = 5 * time.Second

func (f *Follower) Leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	f.broker.Stop(ctx)
}

// node is what the broker sees of the server.
type node struct{ f *Follower }

func (n node) Transient(from string, incarnation, seq uint64, p topic.Publication, at time.Time) {
	n.f.receiveTransient(from, incarnation, seq, &p, at)
}

func (n node) Broadcast(from, path string, op codec.Opcode, payload []byte, seq uint64) {
	n.f.broadcast(from, path, op, payload, seq)
}

func (n node) Persistent(m topic.Message, epoch string, prev uint64) {
	n.f.receivePersistent(m, epoch, prev)
}
func (n node) Resync(why string) { n.f.resync(why) }
func (n node) Answer(subject string, question []byte) []byte {
	return n.f.answer(subject, question)
}
func (n node) Info() topic.NodeInfo { return n.f.info() }
func (n node) Rules() []topic.Rule  { return slices.Clone(n.f.hub.settings().Rules) }
func (n node) MaxMessage() int64    { return n.f.hub.settings().MaxMessage }
