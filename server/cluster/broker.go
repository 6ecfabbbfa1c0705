package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"carillon/internal/redact"
	"carillon/server/internal/option"
	"carillon/server/topic"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Broker is a [topic.Broker] on NATS. It is for one server, and for one run of it.
type Broker struct {
	// Immutable.
	o       Options
	log     *slog.Logger
	number  uint64 // of this node, random
	id      string // the same in hexadecimal
	names   names
	started time.Time

	// Immutable after Start.
	node     topic.Node
	embedded *natsserver.Server // nil when NATS is elsewhere
	login    nats.Option        // to the embedded server
	nc       *nats.Conn
	serverID atomic.Pointer[string] // of the NATS server that nc is connected to
	streams  []*stream              // by topic rule; nil for one that keeps nothing
	byRule   map[string]*stream     // by the name of the rule in subjects

	out     outbox
	commits commits
	in      inbox
	calls   calls
	follows follows
	peers   peers
	loads   workers
	looks   workers       // at streams
	leader  chan struct{} // one for each load from a stream's leader
	answers workers
	stats   stats

	positions *positions
	jetStream *natsserver.Options // of the embedded server

	tune func(*natsserver.Options) // set by tests before Start
	boot string                    // this start of the machine; set to others by tests

	ready atomic.Bool // Start has returned without an error

	noSpace   atomic.Bool // the embedded server's disk was full
	returning atomic.Bool // the connection was lost, and the others have not said how far they have seen the streams
	away      atomic.Pointer[outage]
	ahead     atomic.Int64   // JetStream's clock of this node's, in nanoseconds
	work      sync.WaitGroup // goroutines of this broker
	quit      chan struct{}
	resyncs   chan string
	stop      sync.Once
}

// outage is a time without a connection.
type outage struct {
	since time.Time
	err   error
}

var (
	errNotStarted = fmt.Errorf("%w: not joined yet", topic.ErrNoCluster)
	errUnknown    = topic.ErrUncertain
)

// New makes a broker. The error joins one [option.Error] for each problem of the options.
func New(o Options) (*Broker, error) {
	o, err := o.Resolve()
	if err != nil {
		return nil, err
	}
	if !o.Enabled() {
		return nil, &option.Error{Key: "cluster.nats.url", Problem: "is missing: expected it, or nats.embedded: true"}
	}
	if err := o.complete(); err != nil {
		return nil, err
	}
	b := &Broker{o: o, log: o.Logger.With("cluster", o.Name), number: rand.Uint64(), names: names{o.Name}, started: time.Now(),
		byRule: map[string]*stream{}, leader: make(chan struct{}, leaderLoads), quit: make(chan struct{}), resyncs: make(chan string, 64), positions: &positions{}, boot: bootID()}
	b.id = fmt.Sprintf("%016x", b.number)
	b.out.wake, b.commits.wake, b.follows.wake = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	b.in.init()
	b.calls.init()
	b.follows.init()
	b.peers.init()
	b.loads.most, b.looks.most, b.answers.most = 64, 4, 16
	return b, nil
}

// ID is the name by which the cluster knows this node: random, and another one after each start.
func (b *Broker) ID() string { return b.id }

// Start implements [topic.Broker].
func (b *Broker) Start(ctx context.Context, node topic.Node) error {
	b.node = node
	if b.o.StartTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, b.o.StartTimeout, fmt.Errorf("cluster.start_timeout, %v, has passed", b.o.StartTimeout))
		defer cancel()
	}
	err := b.start(ctx)
	if err != nil {
		b.Stop(context.Background())
		return fmt.Errorf("%s: %w", b.o.Name, err)
	}
	b.ready.Store(true)
	b.log.Info("joined the cluster", "node", b.o.Node, "id", b.id, "nats", redact.URL(b.nc.ConnectedUrl()), "nats_version", b.nc.ConnectedServerVersion())
	return nil
}

func (b *Broker) start(ctx context.Context) error {
	b.prepareStreams(b.node.Rules())
	if err := b.openPositions(); err != nil {
		return err
	}
	if b.o.NATS.Embedded {
		if err := b.startEmbedded(ctx); err != nil {
			return err
		}
	}
	if err := b.connect(ctx); err != nil {
		return err
	}
	if err := b.checkVersion(); err != nil {
		return err
	}
	if most, limit := b.nc.MaxPayload(), b.node.MaxMessage(); limit > most {
		b.log.Warn("max_payload of NATS is below limits.max_message; larger messages will be refused", "max_payload", most, "max_message", limit)
	}
	if err := b.listen(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	for _, work := range []func(){b.writer, b.committer, b.pump, b.receiver, b.follower, b.resyncer} {
		b.work.Go(work)
	}
	if err := b.awaitStreams(ctx); err != nil {
		return err
	}
	b.greet()
	if err := b.verify(ctx); err != nil {
		return err
	}
	b.work.Go(b.heartbeats)
	b.work.Go(b.probe)
	return nil
}

// listen subscribes to what every node gets.
func (b *Broker) listen() error {
	if err := b.calls.listen(b.nc); err != nil {
		return err
	}
	for subject, handle := range map[string]nats.MsgHandler{
		b.names.heartbeats(): b.heard, b.names.sync(): b.synced,
		b.names.questions(): b.asked, b.names.questionsTo(b.id): b.asked,
	} {
		if _, err := b.nc.Subscribe(subject, handle); err != nil {
			return err
		}
	}
	if _, err := b.nc.ChanSubscribe(b.names.broadcasts(), b.in.arrived); err != nil {
		return err
	}
	for _, st := range b.streams {
		if st == nil {
			continue
		}
		for _, event := range []string{"LEADER_ELECTED", "CREATED", "DELETED", "RESTORE_COMPLETE"} {
			if _, err := b.nc.Subscribe("$JS.EVENT.ADVISORY.STREAM."+event+"."+st.name, func(*nats.Msg) { b.suspect(st, event) }); err != nil {
				return err
			}
		}
	}
	return b.nc.FlushTimeout(b.o.Timeout)
}

// Stop implements [topic.Broker].
func (b *Broker) Stop(ctx context.Context) {
	b.stop.Do(func() {
		joined := b.ready.Swap(false)
		if joined {
			b.out.drained(ctx)
			within(ctx, b.farewell)
		}
		b.out.close() // first, so that what is put into it is there when the writer looks for the last time
		close(b.quit)
		within(ctx, b.end)
		if b.embedded != nil {
			b.stopEmbedded(ctx)
		}
		b.positions.close(joined)
	})
}

// end closes the connection, and tells all who wait what has become of it. What was sent may be there.
func (b *Broker) end() {
	if b.nc != nil {
		b.nc.Close()
	}
	b.calls.failAll(fmt.Errorf("%w: the server is ending", errUnknown))
	b.work.Wait()
	b.commit(errUnknown) // what the writer wrote when the committer had ended
}

// within does something, and waits for it as long as ctx allows: the NATS client's lock is held for seconds while it
// writes to, or dials, a server that does not answer. It reports whether that was enough.
func within(ctx context.Context, do func()) bool {
	done := make(chan struct{})
	go func() {
		do()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// Err implements [topic.Broker].
func (b *Broker) Err() error {
	if !b.ready.Load() {
		return errNotStarted
	}
	// The NATS client is not asked: its lock is held for seconds while it writes to, or dials, a server that does not
	// answer.
	if away := b.away.Load(); away != nil {
		return fmt.Errorf("not connected to NATS: %w", away.err)
	}
	return nil
}

// PersistentErr implements [topic.Broker].
func (b *Broker) PersistentErr(rule int) error {
	if err := b.Err(); err != nil {
		return err
	}
	st := b.streamOf(rule)
	if st == nil {
		return errNotStarted
	}
	if err := st.err(); err != nil {
		return fmt.Errorf("topics %s: %w", st.match, err)
	}
	return nil
}

// electionTime is how long JetStream may do without a leader until a node that is not alone counts as not ready. It
// takes 4 to 9 s to elect one.
const electionTime = 15 * time.Second

// Ready implements [topic.Broker].
func (b *Broker) Ready() error {
	if err := b.Err(); err != nil {
		return err
	}
	for rule, st := range b.streams {
		if st != nil && (st.ailing(time.Since(b.started)) > electionTime || b.isAlone()) {
			if err := b.PersistentErr(rule); err != nil {
				return err
			}
		}
		if st == nil {
			continue
		}
		if full := st.full.Load(); full != nil && time.Since(full.since) > fullPatience {
			return fmt.Errorf("topics %s: %w", st.match, full.err)
		}
	}
	return nil
}

// streamOf is what keeps the topics of a rule, or nil.
func (b *Broker) streamOf(rule int) *stream {
	if rule < 0 || rule >= len(b.streams) {
		return nil
	}
	return b.streams[rule]
}

// resync tells the server to look again, once for what happens at the same time.
func (b *Broker) resync(why string) {
	select {
	case b.resyncs <- why:
	default: // enough are waiting
	}
}

// resyncPause collects reasons.
const resyncPause = 50 * time.Millisecond

func (b *Broker) resyncer() {
	for {
		select {
		case <-b.quit:
			return
		case why := <-b.resyncs:
			b.sleep(resyncPause)
			for more := len(b.resyncs); more > 0; more-- {
				<-b.resyncs
			}
			b.stats.resyncs.Add(1)
			b.log.Warn("messages may have been missed; reloading persistent topics", "why", why)
			b.node.Resync(why)
		}
	}
}

// sleep waits, and reports whether the broker goes on.
func (b *Broker) sleep(d time.Duration) bool {
	select {
	case <-b.quit:
		return false
	case <-time.After(d):
		return true
	}
}

// jitter is between half of d and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

func parseID(id string) (uint64, error) { return strconv.ParseUint(id, 16, 64) }

// workers run jobs, a limited number at once; the others wait in order.
type workers struct {
	most int

	mu   sync.Mutex
	busy int      // guarded by mu
	jobs []func() // guarded by mu
}

func (w *workers) do(job func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs = append(w.jobs, job)
	if w.busy < w.most {
		w.busy++
		go w.run()
	}
}

func (w *workers) run() {
	for {
		w.mu.Lock()
		if len(w.jobs) == 0 {
			w.busy--
			w.mu.Unlock()
			return
		}
		job := w.jobs[0]
		w.jobs[0] = nil
		w.jobs = w.jobs[1:]
		w.mu.Unlock()
		job()
	}
}
