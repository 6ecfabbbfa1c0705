package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/logging"

	"carillon/server/internal/limit"
	"carillon/server/internal/listen"
	"carillon/server/internal/logs"
	"carillon/server/stats"
)

// ErrEngine is returned by Run when the event engine has ended by itself.
var ErrEngine = errors.New("the event engine stopped unexpectedly")

// engine is what the event loops of a server share, and what starts, runs and stops them. A [Server] has one for as
// long as it lives; it runs once, within [Server.Run]. Loops reach it as shard.engine. What they need of the rest of
// the server they reach through owner: see owner.go.
type engine struct {
	// Immutable.
	owner        owner
	log          *slog.Logger
	listeners    []*listener // Options.Listen, then Options.Listeners
	endpoints    []*loopEndpoint
	begin        time.Time        // of the shards' clocks, which no change of the system's time moves
	wall         func() time.Time // for what has a date: tokens, and what messages say of their time
	started      chan struct{}    // closed when the loops are about to accept
	looping      chan struct{}    // closed when all loops listen
	loopsEnded   chan struct{}    // closed when they have ended
	empty        chan struct{}    // has a value when the last socket closed while nobody comes in
	checkOwner   bool             // see goroutine
	addresses    *limit.Addresses
	handshakes   *limit.SharedBucket
	tlsTable     *tlsTable
	events       *logs.Sampler // see logsample.go
	grave        *logs.Sampler
	blockedAfter time.Duration // a loop that is silent for so long is told of

	// Set before started is closed.
	tcp       []*listener // those that the loops listen on
	gnet      gnet.Engine
	watcher   *watcher
	acceptors []*acceptor // of the unix sockets; Run's own

	// Read often and written rarely.
	current  atomic.Pointer[loopSettings]  // in force
	shards   atomic.Pointer[[]*shard]      // of the loops that have had a connection
	schedule atomic.Pointer[drainSchedule] // who is closed when; nil until connections are closed
	draining atomic.Bool                   // nobody new comes in
	stopping atomic.Bool                   // gnet has been told to end

	// Each guards itself.
	fdReserve   fdReserve
	offload     offloadQueue
	tokenChecks offloadQueue // apart, so that costly tokens do not delay requests
	inFlight    inFlight

	unowned      stats.Counters // of what no shard knows of
	sockets      atomic.Int64
	acceptErrors atomic.Uint64 // of the unix sockets
	lastID       atomic.Uint64

	mu       sync.Mutex // guards what follows, and changes of shards
	failure  error      // why the engine cannot go on
	lastWord error      // what gnet complained about last
}

// init prepares the engine of a server that is being made. It has no settings yet.
func (e *engine) init(owner owner, log *slog.Logger) {
	e.owner, e.log = owner, log
	e.begin, e.wall, e.checkOwner = time.Now(), time.Now, checkOwner
	e.started, e.looping, e.loopsEnded = make(chan struct{}), make(chan struct{}), make(chan struct{})
	e.empty = make(chan struct{}, 1)
	e.fdReserve = fdReserve{engine: e, fd: -1}
	e.addresses, e.handshakes = limit.NewAddresses(e.begin), limit.NewSharedBucket(e.begin)
	e.tlsTable = newTLSTable(e)
	e.tokenChecks.parallel = max(1, runtime.GOMAXPROCS(0)-1)
	e.events, e.grave = logs.NewSampler(maxEvents), logs.NewSampler(maxGrave)
	e.blockedAfter = blockedAfter
	e.shards.Store(&[]*shard{})
}

// allShards are those of the loops that have had a connection.
func (e *engine) allShards() []*shard { return *e.shards.Load() }

// conns are the open connections: see [Server.Conns].
func (e *engine) conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for _, sh := range e.allShards() {
			for _, c := range sh.members() {
				if c.state.Load() == stateOpen && !yield(c) {
					return
				}
			}
		}
	}
}

// count is the number of open connections.
func (e *engine) count() int {
	n := int64(0)
	for _, sh := range e.allShards() {
		n += sh.stats.Open.Load()
	}
	return int(n)
}

// handshaking reports whether any connection has not sent all of its request.
func (e *engine) handshaking() bool {
	for _, sh := range e.allShards() {
		if sh.handshaking.count.Load() > 0 {
			return true
		}
	}
	return false
}

// fail ends the server because of an error that it cannot live with.
func (e *engine) fail(err error) {
	e.mu.Lock()
	if e.failure == nil {
		e.failure = err
	}
	e.mu.Unlock()
	e.owner.engineFailed(err)
}

func (e *engine) failed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failure
}

// endError makes the most of what is known about the engine's end.
func (e *engine) endError(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	why := []error{ErrEngine}
	for _, known := range []error{e.failure, err, e.lastWord} {
		if known != nil {
			why = append(why, known)
			break
		}
	}
	return errors.Join(why...)
}

// startWatcher begins to watch full sockets.
func (e *engine) startWatcher() (err error) {
	if e.watcher, err = newWatcher(); err != nil {
		return fmt.Errorf("watch for writable sockets: %w", err)
	}
	return nil
}

// start does what goes on besides the loops, until ctx ends. Then run is called.
func (e *engine) start(ctx context.Context) {
	go e.keepTime(ctx)
	e.beginChecks(ctx)
	e.startAcceptors()
}

// run returns when the loops have ended.
func (e *engine) run() error {
	defer close(e.loopsEnded)
	var addresses []string
	for _, l := range e.tcp {
		addresses = append(addresses, l.engineAddress())
	}
	options := []gnet.Option{
		gnet.WithNumEventLoop(e.settings().loops),
		gnet.WithReusePort(true), // each loop accepts its own connections
		gnet.WithReuseAddr(true),
		gnet.WithLogger(&engineLogger{e}),
	}
	if e.arriving() > 0 { // see meetLoops
		options = append(options, gnet.WithTicker(true), gnet.WithLoadBalancing(gnet.LeastConnections))
	}
	return gnet.Rotate(&gnetHandler{engine: e}, addresses, options...)
}

// stop asks gnet to end. Its own Stop would look only every half second whether it has.
func (e *engine) stop() {
	e.stopping.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = e.gnet.Stop(ctx)
}

// closeShards closes what wakes the loops, which have ended.
func (e *engine) closeShards() {
	for _, sh := range e.allShards() {
		sh.mail.close()
	}
}

// close gives up all but the shards.
func (e *engine) close() {
	e.fdReserve.close()
	e.closeListeners()
	e.watcher.close()
}

// keepTime has every shard look for time-outs.
func (e *engine) keepTime(ctx context.Context) {
	tick := e.settings().tick
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for part := 0; ; part++ {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if is := e.settings().tick; is != tick {
				tick = is
				ticker.Reset(tick)
			}
			e.owner.sweepTopics(now, part)
			e.addresses.Sweep(part)
			for _, sh := range e.allShards() {
				sh.postTick()
			}
		}
	}
}

// beginChecks begins to look after descriptors and blocked loops, until ctx ends.
func (e *engine) beginChecks(ctx context.Context) {
	e.fdReserve.look()
	go every(ctx, descriptorsEvery, func() { e.fdReserve.look() })
	go e.watchLoops(ctx)
}

// every calls a function again and again, for the first time after one period, until ctx ends.
func every(ctx context.Context, period time.Duration, do func()) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}

// gnetHandler are gnet's callbacks.
type gnetHandler struct {
	gnet.BuiltinEventEngine
	engine *engine
}

func (e *gnetHandler) OnBoot(engine gnet.Engine) gnet.Action {
	e.engine.gnet = engine
	for _, l := range e.engine.tcp {
		if e.engine.settings().takeover {
			listen.ClearSteering(l.tcpAddr())
		}
		l.release() // the first loop listens, which holds the port for the others
	}
	err := e.engine.publishSockets()
	if err == nil {
		err = e.engine.owner.booted()
	}
	if err != nil {
		e.engine.fail(err)
	}
	close(e.engine.started)
	return gnet.None
}

func (e *gnetHandler) OnOpen(gc gnet.Conn) ([]byte, gnet.Action) {
	switch enrolled := gc.Context().(type) {
	case *waker:
		return nil, gnet.None
	case enrollee:
		return nil, enrolled.opened(gc)
	}
	isAccepted := gc.Context() == nil
	if isAccepted && !e.engine.fdReserve.admits() {
		e.engine.refuseUnknown(gc.Fd(), stats.RefuseDescriptors, rejectDescriptors)
		return nil, gnet.Close
	}
	sh, err := e.engine.shardOf(gc.EventLoop())
	switch {
	case isExhausted(err) && isAccepted:
		e.engine.refuseUnknown(gc.Fd(), stats.RefuseDescriptors, rejectDescriptors)
		return nil, gnet.Close
	case err != nil:
		e.engine.fail(err)
		return nil, gnet.Close
	}
	if gc.Context() == (greeting{}) {
		return nil, gnet.None
	}
	l := sh.listenerOf(gc)
	if l.hidden || !sh.accept(gc, l, e.engine.sockets.Add(1)) {
		return nil, gnet.Close
	}
	return nil, gnet.None
}

// OnTick is called when all loops listen, and then hardly ever: see keepTime.
func (e *gnetHandler) OnTick() (time.Duration, gnet.Action) {
	select {
	case <-e.engine.looping:
	default:
		close(e.engine.looping)
	}
	return 24 * time.Hour, gnet.None
}

func (e *gnetHandler) OnTraffic(gc gnet.Conn) gnet.Action {
	b, _ := gc.Next(-1)
	switch to := gc.Context().(type) {
	case *Conn:
		to.sh.beginTurn()
		to.received(b)
		to.sh.endSocketTurn()
	case *waker:
		to.sh.wokenTurn()
	}
	return gnet.None
}

func (e *gnetHandler) OnClose(gc gnet.Conn, err error) gnet.Action {
	switch closed := gc.Context().(type) {
	case *Conn:
		sh := closed.sh
		begin := sh.engine.uptime()
		if !closed.outlive(err) {
			closed.isDetached(err)
		}
		if sh.lost == nil { // else it is a part of a turn, which counts it
			sh.addToRound(sh.engine.uptime() - begin)
		}
	case *waker:
		closed.sh.endHalfClosed()
	}
	return gnet.None
}

// engineLogger hears what gnet has to say. Errors are kept, because gnet.Run returns nil for most of
// its ends.
type engineLogger struct{ engine *engine }

var _ logging.Logger = (*engineLogger)(nil)

func (l *engineLogger) Debugf(string, ...any)             {}
func (l *engineLogger) Infof(string, ...any)              {}
func (l *engineLogger) Warnf(format string, args ...any)  { l.hear(format, args) }
func (l *engineLogger) Errorf(format string, args ...any) { l.hear(format, args) }
func (l *engineLogger) Fatalf(format string, args ...any) { l.hear(format, args) }

func (l *engineLogger) hear(format string, args []any) {
	word := fmt.Errorf(format, args...)
	if err, ok := acceptError(format, args); ok {
		defer l.engine.acceptFailed(fmt.Errorf("accept: %w", err)) // on the loop, before it goes on
	}
	if l.engine.logsEvents() {
		l.engine.logEvent("engine", "message", logs.Shorten(word.Error()))
	}
	l.engine.mu.Lock()
	defer l.engine.mu.Unlock()
	l.engine.lastWord = word
}

// acceptError is what accept(2) has failed with, if gnet says so.
func acceptError(format string, args []any) (err error, ok bool) {
	if strings.HasPrefix(format, "Accept()") && len(args) == 1 {
		err, ok = args[0].(error)
	}
	return err, ok
}
