package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"carillon/loadtest/internal/generator"
	"carillon/loadtest/internal/report"
)

// run is one command against one server, which may have many processes.
type run struct {
	o       *options
	result  *report.Result
	watch   func(progress)
	targets []generator.Target
	sources generator.SourceRange
	fleet   *generator.Fleet
	server  *monitor // nil if no server process is known

	began     int64 // when the first connection was started
	connected int64 // when all were open or had failed
	from, to  int64 // the measured window
	series    series
	allLost   bool // the run ended because all connections were lost
}

// progress is the state of a run, for display.
type progress struct {
	phase          string
	elapsed, limit time.Duration
	open, wanted   int
	failed         int
	received       float64 // messages per second
	p50, p99       float64 // microseconds, since the last progress
	serverCores    float64
}

var errInterrupted = errors.New("interrupted")

// settle is the pause between opening the connections and the window.
const settle = 300 * time.Millisecond

// newResult is the result of a run that has measured nothing yet.
func newResult(o *options) *report.Result {
	return &report.Result{
		Schema: report.Schema, Command: o.Command, Name: o.Name, Started: time.Now(), Machine: report.ThisMachine(),
		Settings:    o.settings(o.Processes, generator.SourceRange{}),
		Connections: report.Connections{Wanted: o.Connections},
	}
}

// measure runs one command against one server. If it fails, the result has the error and what was measured
// before. Watch is called several times per second; it may be nil.
func measure(ctx context.Context, o *options, watch func(progress)) *report.Result {
	if watch == nil {
		watch = func(progress) {}
	}
	r := &run{o: o, watch: watch, result: newResult(o)}
	r.result.URL = redactURLs(o.URLs)
	err := r.prepare(ctx)
	if err == nil {
		err = r.execute(ctx)
		r.finish()
	}
	if r.result.Name == "" {
		r.result.Name = r.address()
	}
	if err != nil {
		r.result.Error = err.Error()
	}
	return r.result
}

// prepare checks all that can be checked before the run and starts the processes.
func (r *run) prepare(ctx context.Context) error {
	if err := r.o.check(); err != nil {
		return err
	}
	sources, _ := r.o.sources()
	var err error
	if r.targets, err = resolveTargets(ctx, r.o, sources); err != nil {
		return err
	}
	processes, sources, err := plan(r.o, descriptorLimit(), r.loopback())
	if err != nil {
		return err
	}
	r.sources = sources
	r.result.Settings = r.o.settings(processes, sources)
	r.result.Generator.Processes = processes
	if r.server, err = newMonitor(r.o.PIDs, r.targets); err != nil {
		return err
	}
	if r.server != nil && r.server.caveat != "" {
		r.warn("%s", r.server.caveat)
	}
	r.fleet, err = generator.StartFleet(processes)
	return err
}

// address is the name of a server that was given none.
func (r *run) address() string {
	switch n := len(r.targets); n {
	case 0:
		return ""
	case 1:
		return r.targets[0].Address.String()
	default:
		return fmt.Sprintf("%s and %d more", r.targets[0].Address, n-1)
	}
}

// loopback reports whether all targets are IPv4 loopback addresses.
func (r *run) loopback() bool {
	return !slices.ContainsFunc(r.targets, func(t generator.Target) bool {
		return !t.Address.Addr().Is4() || !t.Address.Addr().IsLoopback()
	})
}

func (r *run) warn(format string, args ...any) {
	r.result.Warnings = append(r.result.Warnings, fmt.Sprintf(format, args...))
}

// execute takes the processes through the run.
func (r *run) execute(ctx context.Context) error {
	seed := rand.Uint64()
	for i, m := range r.fleet.Processes {
		m.Send(generator.Command{Name: generator.CmdPrepare, Spec: r.spec(i, seed)})
	}
	if err := r.await(ctx, "preparing", generator.EventReady, time.Minute); err != nil {
		return err
	}
	r.server.read(r.server.beforeAll)
	r.began = generator.Monotonic()
	r.series.start(r.began, generator.ReportInterval(r.o.Command))
	r.fleet.Broadcast(generator.Command{Name: generator.CmdConnect, At: r.began})
	err := r.await(ctx, "connecting", generator.EventConnected, r.o.Ramp+generator.DialTimeout*time.Duration(2+r.o.Connections/generator.MaxDialing))
	r.connected = generator.Monotonic()
	if sum := r.fleet.Total(); err == nil && sum.Opened == 0 {
		err = fmt.Errorf("no connection could be opened: %s", mostCommon(r.failureReasons()))
	}
	if err == nil {
		err = r.pause(ctx, "settling", settle)
	}
	if err != nil {
		return err
	}
	err = r.window(ctx)
	r.server.read(r.server.afterWindow)
	return err
}

// window runs the measured window. It starts in all processes at the same time.
func (r *run) window(ctx context.Context) error {
	r.fleet.Storming = r.o.Command == "storm"
	r.from = generator.Monotonic() + int64(50*time.Millisecond)
	r.fleet.Broadcast(generator.Command{Name: generator.CmdStart, At: r.from})
	generator.SleepUntil(r.from)
	r.server.read(r.server.beforeWindow)
	err := r.await(ctx, r.phase(), generator.EventEnded, r.o.Duration+30*time.Second)
	r.to = min(generator.Monotonic(), r.from+int64(r.o.Duration))
	if err != nil {
		r.fleet.Broadcast(generator.Command{Name: generator.CmdStop})
		_ = r.await(context.Background(), "stopping", generator.EventEnded, generator.DialTimeout)
	}
	r.server.read(r.server.withAll)
	r.fleet.Broadcast(generator.Command{Name: generator.CmdDrain, Sent: r.fleet.SentBy(r.o.sendersOfFanout())})
	drained := r.await(context.Background(), "waiting for messages in flight", generator.EventDrained, generator.MaxDrain+generator.DialTimeout)
	if err == nil {
		err = drained
	}
	if errors.Is(err, errAllLost) {
		return r.lossError()
	}
	if err == nil {
		err = r.checkReceived()
	}
	return err
}

// sendersOfFanout is the number of senders whose message counts every process needs.
func (o *options) sendersOfFanout() int {
	if o.Command == "fanout" {
		return o.Publishers
	}
	return 0
}

func (r *run) phase() string {
	switch {
	case r.o.Command == "idle":
		return "holding"
	case r.o.Command == "storm" && r.o.CutBy == "server":
		return "waiting for the server to close the connections"
	case r.o.Command == "storm":
		return "reconnecting"
	}
	return "sending"
}

// finish closes the connections and completes the result.
func (r *run) finish() {
	r.fleet.Broadcast(generator.Command{Name: generator.CmdFinish})
	_ = r.await(context.Background(), "closing", generator.EventFinished, 5*time.Second)
	r.fleet.Close()
	r.collect()
}

// spec is the share of one process.
func (r *run) spec(index int, seed uint64) *generator.Spec {
	return &generator.Spec{
		Command: r.o.Command, Index: index, Count: len(r.fleet.Processes), Run: seed,
		Targets: r.targets, Sources: r.sources,
		Connections: r.o.Connections, Ramp: r.o.Ramp,
		Senders: r.o.senders(), Size: r.o.Size, Text: r.o.Text, Rate: r.o.Rate, Depth: r.o.Depth, Duration: r.o.Duration,
		PublishURL: r.o.PublishURL, PublishHeader: r.o.PublishHeader,
		CutBy: r.o.CutBy, Backoff: r.o.Backoff, MaxDelay: r.o.MaxDelay,
	}
}

var (
	errAllLost = errors.New("all connections were lost")
	errSilent  = errors.New("the generator processes do not respond")
)

// await waits until all processes have announced an event. Meanwhile it extends the series.
func (r *run) await(ctx context.Context, phase, event string, timeout time.Duration) error {
	begun := generator.Monotonic()
	late := time.After(timeout)
	ticks := time.NewTicker(r.series.every(r.o.Command))
	defer ticks.Stop()
	for !r.fleet.Reached(event) {
		select {
		case a := <-r.fleet.Reports:
			if err := r.fleet.Apply(a); err != nil {
				return err
			}
			if sum := r.fleet.Total(); event == generator.EventEnded && sum.Open == 0 && sum.Members > 0 && r.o.Command != "storm" {
				return errAllLost
			}
		case <-ticks.C:
			r.tick(phase, begun)
		case <-late:
			return errSilent
		case <-ctx.Done():
			return fmt.Errorf("%w after %.1f s", errInterrupted, float64(generator.Monotonic()-max(r.began, 1))/1e9)
		}
	}
	return nil
}

// pause waits for a while.
func (r *run) pause(ctx context.Context, phase string, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := r.await(ctx, phase, "never", time.Hour)
	if errors.Is(err, errInterrupted) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	return err
}

// tick adds a point to the series and shows progress.
func (r *run) tick(phase string, begun int64) {
	if r.began == 0 {
		return
	}
	sum := r.fleet.Total()
	p := r.series.point(sum, r.fleet.Recent, r.server)
	l := progress{
		phase: phase, elapsed: time.Duration(generator.Monotonic() - begun), open: sum.Open, wanted: r.o.Connections, failed: sum.Failed,
		received: p.Received, p99: p.P99, serverCores: p.ServerCores,
	}
	if r.fleet.Recent.TotalCount() > 0 {
		l.p50 = float64(r.fleet.Recent.ValueAtPercentile(50))
	}
	if phase == r.phase() {
		l.limit = r.o.Duration
	}
	r.fleet.Recent.Reset()
	r.watch(l)
}

func (r *run) failureReasons() map[string]int {
	return r.fleet.Reasons(func(r *generator.Report) map[string]int { return r.FailedBy })
}

func (r *run) lossReasons() map[string]int {
	return r.fleet.Reasons(func(r *generator.Report) map[string]int { return r.LostBy })
}

// lossError describes how all connections were lost.
func (r *run) lossError() error {
	r.allLost = true
	text := fmt.Sprintf("all connections were lost after %.1f s: %s", float64(r.to-r.from)/1e9, mostCommon(r.lossReasons()))
	var gone []string
	for _, p := range r.server.gone() {
		gone = append(gone, fmt.Sprintf("process %d", p.pid))
	}
	if len(gone) > 0 {
		text = fmt.Sprintf("the server (%s) exited: %s", strings.Join(gone, ", "), text)
	}
	return errors.New(text)
}

// mostCommon is the most frequent reason.
func mostCommon(reasons map[string]int) string {
	if len(reasons) == 0 {
		return "unknown reason"
	}
	return slices.MaxFunc(slices.Sorted(maps.Keys(reasons)), func(a, b string) int { return reasons[a] - reasons[b] })
}
