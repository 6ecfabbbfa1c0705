package reactor

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

	"carillon/server/internal/drain"
	"carillon/server/internal/fair"
	"carillon/server/internal/limit"
	"carillon/server/internal/listen"
	"carillon/server/internal/logs"
	"carillon/server/internal/sys"
	"carillon/server/internal/tlstable"
	"carillon/server/stats"
)

// ErrEngine is returned by Run when the event engine has ended by itself.
var ErrEngine = errors.New("the event engine stopped unexpectedly")

// Engine is what the event loops of a server share, and what starts, runs and stops them. A [Server] has one for as
// long as it lives; it runs once, within [Server.Run]. Loops reach it as shard.engine. What they need of the rest of
// the server they reach through owner: see owner.go.
type Engine struct {
	// Immutable.
	owner        Owner
	Log          *slog.Logger
	Listeners    []*Listener // Options.Listen, then Options.Listeners
	Endpoints    []*LoopEndpoint
	Begin        time.Time        // of the shards' clocks, which no change of the system's time moves
	Wall         func() time.Time // for what has a date: tokens, and what messages say of their time
	Started      chan struct{}    // closed when the loops are about to accept
	looping      chan struct{}    // closed when all loops listen
	LoopsEnded   chan struct{}    // closed when they have ended
	Empty        chan struct{}    // has a value when the last socket closed in a drain
	checkOwner   bool             // see goroutine
	Addresses    *limit.Addresses
	handshakes   *limit.SharedBucket
	TLSTable     *tlstable.Table
	Events       *logs.Sampler // see logsample.go
	Grave        *logs.Sampler
	BlockedAfter time.Duration // a loop that is silent for so long is told of

	// Set before started is closed.
	TCP       []*Listener // those that the loops listen on
	gnet      gnet.Engine
	watcher   *sys.Watcher[*Conn]
	Acceptors []*Acceptor // of the unix sockets; Run's own

	// Read often and written rarely.
	Current  atomic.Pointer[LoopSettings]   // in force
	shards   atomic.Pointer[[]*Shard]       // of the loops that have had a connection
	Schedule atomic.Pointer[drain.Schedule] // when each connection is closed; nil until connections are closed
	Draining atomic.Bool                    // new connections are refused
	stopping atomic.Bool                    // gnet has been told to end

	// Each guards itself.
	FDReserve   fdReserve
	Offload     fair.Queue
	TokenChecks fair.Queue // apart, so that costly tokens do not delay requests
	InFlight    inFlight

	Unowned      stats.Counters // of what no shard knows of
	Sockets      atomic.Int64
	TLSUnread    atomic.Int64  // bytes that came for all TLS handshakes and were not read
	AcceptErrors atomic.Uint64 // of the unix sockets
	LastID       atomic.Uint64

	mu       sync.Mutex // guards what follows, and changes of shards
	failure  error      // why the engine cannot go on
	lastWord error      // what gnet complained about last
}

// Init prepares the engine of a server that is being made. It has no settings yet.
func (e *Engine) Init(owner Owner, log *slog.Logger) {
	e.owner, e.Log = owner, log
	e.Begin, e.Wall, e.checkOwner = time.Now(), time.Now, CheckOwner
	e.Started, e.looping, e.LoopsEnded = make(chan struct{}), make(chan struct{}), make(chan struct{})
	e.Empty = make(chan struct{}, 1)
	e.FDReserve = fdReserve{engine: e, FD: -1}
	e.Addresses, e.handshakes = limit.NewAddresses(e.Begin), limit.NewSharedBucket(e.Begin)
	e.TLSTable = tlstable.New(e.Uptime, func() int { return e.Settings().MaxTLSHandshakes })
	e.TokenChecks.Parallel = max(1, runtime.GOMAXPROCS(0)-1)
	e.Events, e.Grave = logs.NewSampler(MaxEvents), logs.NewSampler(MaxGrave)
	e.BlockedAfter = blockedAfter
	e.shards.Store(&[]*Shard{})
}

// AllShards are those of the loops that have had a connection.
func (e *Engine) AllShards() []*Shard { return *e.shards.Load() }

// IDs are those of the open connections.
func (e *Engine) IDs(yield func(uint64) bool) {
	for c := range e.Conns() {
		if !yield(c.id) {
			return
		}
	}
}

// Conns are the open connections: see [Server.Conns].
func (e *Engine) Conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for _, sh := range e.AllShards() {
			for _, c := range sh.members() {
				if c.state.Load() == StateOpen && !yield(c) {
					return
				}
			}
		}
	}
}

// Count is the number of open connections.
func (e *Engine) Count() int {
	n := int64(0)
	for _, sh := range e.AllShards() {
		n += sh.Stats.Open.Load()
	}
	return int(n)
}

// Handshaking reports whether any connection has not sent all of its request.
func (e *Engine) Handshaking() bool {
	for _, sh := range e.AllShards() {
		if sh.Handshaking.count.Load() > 0 {
			return true
		}
	}
	return false
}

// Fail ends the server because of an error that it cannot live with.
func (e *Engine) Fail(err error) {
	e.mu.Lock()
	if e.failure == nil {
		e.failure = err
	}
	e.mu.Unlock()
	e.owner.EngineFailed(err)
}

// Failed is the error given to Fail first, or nil.
func (e *Engine) Failed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failure
}

// EndError makes the most of what is known about the engine's end.
func (e *Engine) EndError(err error) error {
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

// StartWatcher begins to watch full sockets.
func (e *Engine) StartWatcher() (err error) {
	if e.watcher, err = sys.NewWatcher(func(c *Conn) { c.sh.Post(Command{Kind: CommandWritable, Conn: c}) }); err != nil {
		return fmt.Errorf("watch for writable sockets: %w", err)
	}
	return nil
}

// Start does what goes on besides the loops, until ctx ends. Then run is called.
func (e *Engine) Start(ctx context.Context) {
	go e.keepTime(ctx)
	e.beginChecks(ctx)
	e.startAcceptors()
}

// Run returns when the loops have ended.
func (e *Engine) Run() error {
	defer close(e.LoopsEnded)
	var addresses []string
	for _, l := range e.TCP {
		addresses = append(addresses, l.engineAddress())
	}
	options := []gnet.Option{
		gnet.WithNumEventLoop(e.Settings().Loops),
		gnet.WithReusePort(true), // each loop accepts its own connections
		gnet.WithReuseAddr(true),
		gnet.WithLogger(&engineLogger{e}),
	}
	if e.Arriving() > 0 { // see meetLoops
		options = append(options, gnet.WithTicker(true), gnet.WithLoadBalancing(gnet.LeastConnections))
	}
	return gnet.Rotate(&gnetHandler{engine: e}, addresses, options...)
}

// Stop asks gnet to end. Its own Stop would look only every half second whether it has.
func (e *Engine) Stop() {
	e.stopping.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = e.gnet.Stop(ctx)
}

// CloseShards closes what wakes the loops, which have ended.
func (e *Engine) CloseShards() {
	for _, sh := range e.AllShards() {
		sh.Mail.close()
	}
}

// Close gives up all but the shards.
func (e *Engine) Close() {
	e.FDReserve.close()
	e.CloseListeners()
	e.watcher.Close()
}

// keepTime has every shard look for time-outs.
func (e *Engine) keepTime(ctx context.Context) {
	tick := e.Settings().Tick
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for part := 0; ; part++ {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if is := e.Settings().Tick; is != tick {
				tick = is
				ticker.Reset(tick)
			}
			e.owner.SweepTopics(now, part)
			e.Addresses.Sweep(part)
			for _, sh := range e.AllShards() {
				sh.PostTick()
			}
		}
	}
}

// beginChecks begins to look after descriptors and blocked loops, until ctx ends.
func (e *Engine) beginChecks(ctx context.Context) {
	e.FDReserve.look()
	go Every(ctx, descriptorsEvery, func() { e.FDReserve.look() })
	go e.watchLoops(ctx)
}

// Every calls a function again and again, for the first time after one period, until ctx ends.
func Every(ctx context.Context, period time.Duration, do func()) {
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
	engine *Engine
}

func (e *gnetHandler) OnBoot(engine gnet.Engine) gnet.Action {
	e.engine.gnet = engine
	for _, l := range e.engine.TCP {
		if e.engine.Settings().Takeover {
			listen.ClearSteering(l.TCPAddr())
		}
		l.release() // the first loop listens, which holds the port for the others
	}
	err := e.engine.publishSockets()
	if err == nil {
		err = e.engine.owner.Booted()
	}
	if err != nil {
		e.engine.Fail(err)
	}
	close(e.engine.Started)
	return gnet.None
}

func (e *gnetHandler) OnOpen(gc gnet.Conn) ([]byte, gnet.Action) {
	switch enrolled := gc.Context().(type) {
	case *waker:
		return nil, gnet.None
	case Enrollee:
		if !enrolled.Opened(gc) {
			return nil, gnet.Close
		}
		return nil, gnet.None
	}
	isAccepted := gc.Context() == nil
	if isAccepted && !e.engine.FDReserve.admits() {
		e.engine.refuseUnknown(gc.Fd(), stats.RefuseDescriptors, RejectDescriptors)
		return nil, gnet.Close
	}
	sh, err := e.engine.shardOf(gc.EventLoop())
	switch {
	case sys.IsExhausted(err) && isAccepted:
		e.engine.refuseUnknown(gc.Fd(), stats.RefuseDescriptors, RejectDescriptors)
		return nil, gnet.Close
	case err != nil:
		e.engine.Fail(err)
		return nil, gnet.Close
	}
	if gc.Context() == (greeting{}) {
		return nil, gnet.None
	}
	l := sh.listenerOf(gc)
	if l.hidden || !sh.accept(gc, l, e.engine.Sockets.Add(1)) {
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
		to.sh.BeginTurn()
		to.Received(b)
		to.sh.EndSocketTurn()
	case *waker:
		to.sh.wokenTurn()
	}
	return gnet.None
}

func (e *gnetHandler) OnClose(gc gnet.Conn, err error) gnet.Action {
	switch closed := gc.Context().(type) {
	case *Conn:
		sh := closed.sh
		begin := sh.Engine.Uptime()
		if !closed.outlive(err) {
			closed.isDetached(err)
		}
		if sh.lost == nil { // else it is a part of a turn, which counts it
			sh.AddToRound(sh.Engine.Uptime() - begin)
		}
	case *waker:
		closed.sh.endHalfClosed()
	}
	return gnet.None
}

// engineLogger hears what gnet has to say. Errors are kept, because gnet.Run returns nil for most of
// its ends.
type engineLogger struct{ engine *Engine }

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
	if l.engine.LogsEvents() {
		l.engine.LogEvent("engine", "message", logs.Shorten(word.Error()))
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
