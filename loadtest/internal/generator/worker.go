// Package generator drives the connections of a load test from worker processes. RunWorker is a worker;
// a Fleet is the parent's view of all workers.
package generator

import (
	"bufio"
	"encoding/json"
	"io"
	"maps"
	"runtime"
	"time"

	"carillon/loadtest/internal/wsclient"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// phase is the progress of a worker through its run.
type phase uint8

const (
	phaseReady phase = iota
	phaseConnecting
	phaseConnected
	phaseWindow // the measured window
	phaseEnded
	phaseDraining
	phaseDrained
	phaseFinishing
	phaseFinished
)

// ReportInterval is how often a worker reports. A storm is short, so its reports are frequent.
func ReportInterval(command string) time.Duration {
	if command == "storm" {
		return 100 * time.Millisecond
	}
	return 250 * time.Millisecond
}

const (
	idleTurn   = 10 * time.Millisecond // longest wait before commands are checked
	readBuffer = 256 << 10
	maxReasons = 32 // distinct reasons; any more are counted as "other"
)

// worker runs all connections of one process on a single goroutine. Only the HTTP publishers have
// goroutines of their own.
type worker struct {
	spec        Spec
	phase       phase
	endReported bool // eventEnded was sent
	commands    chan Command
	out         *json.Encoder
	outErr      error

	poll  *poller
	conns []conn
	buf   []byte // input
	batch []byte // output
	spare []byte // a buffer for partial frames, for reuse

	dialer      dialer
	reconnector reconnector
	sender      sender
	drain       Command
	drainEnd    int64

	payloads *payloads
	op       byte // of our messages
	ledger   *ledger
	arrivals []arrivals
	deflate  wsclient.Deflater

	Counters
	shares              []Share
	failedBy, lostBy    map[string]int
	handshakes, latency *hdr.Histogram
	nextReport          int64
}

// RunWorker reads commands from in and writes reports to out. It returns when the run is finished or in
// is closed.
func RunWorker(in io.Reader, out io.Writer) error {
	runtime.GOMAXPROCS(2)  // one for the loop, which never yields, and one for everything else
	runtime.LockOSThread() // timer slack is set per thread
	poll, err := newPoller()
	if err != nil {
		return err
	}
	w := &worker{
		commands:   make(chan Command, 8),
		out:        json.NewEncoder(out),
		poll:       poll,
		buf:        make([]byte, readBuffer),
		failedBy:   map[string]int{},
		lostBy:     map[string]int{},
		handshakes: newHistogram(),
		latency:    newHistogram(),
	}
	go func() {
		defer close(w.commands)
		decode := json.NewDecoder(bufio.NewReader(in))
		for {
			var c Command
			if decode.Decode(&c) != nil {
				return
			}
			w.commands <- c
		}
	}()
	for w.phase != phaseFinished && w.outErr == nil {
		if !w.runCommands() {
			return nil
		}
		next := w.turn(Monotonic())
		w.handle(w.poll.wait(time.Duration(next - Monotonic())))
	}
	return w.outErr
}

// runCommands executes the commands that have arrived. It returns false if the parent is gone.
func (w *worker) runCommands() bool {
	for {
		select {
		case c, ok := <-w.commands:
			if !ok {
				return false
			}
			w.execute(c)
		default:
			return true
		}
	}
}

func (w *worker) execute(c Command) {
	switch c.Name {
	case CmdPrepare:
		w.prepare(c.Spec)
		w.sendReport(EventReady)
	case CmdConnect:
		w.phase = phaseConnecting
		w.dialer.startedAt = c.At
	case CmdStart:
		w.start(c.At)
	case CmdStop:
		if w.phase == phaseConnecting {
			w.phase = phaseConnected
			w.sendReport(EventConnected)
		} else if w.phase == phaseWindow {
			w.end(Monotonic())
		}
	case CmdDrain:
		w.phase = phaseDraining
		w.drain = c
	case CmdFinish:
		w.finish()
	}
}

// prepare allocates everything that the run needs.
func (w *worker) prepare(s *Spec) {
	w.spec = *s
	w.conns = make([]conn, s.mine(s.Connections))
	w.shares = make([]Share, len(s.Targets))
	for i := range w.conns {
		w.conns[i].fd = -1
	}
	w.op = wsclient.OpBinary
	if s.Text {
		w.op = wsclient.OpText
	}
	w.payloads = newPayloads(s.Run, s.Text, s.Size)
	streams := 0
	switch s.Command {
	case "echo":
		streams = 1
	case "fanout":
		streams = s.Senders
		w.arrivals = newArrivals(s.Senders)
	}
	w.ledger = newLedger(len(w.conns), streams)
	w.dialer.prepare(s)
	w.sender.prepare(w)
}

// start begins the measured window.
func (w *worker) start(at int64) {
	SleepUntil(at)
	w.phase = phaseWindow
	w.CPUStart = cpuNanos()
	w.LastAt = at
	for i := range w.conns {
		if w.conns[i].state == stateOpen {
			w.conns[i].member = true
			w.Members++
		}
	}
	w.sender.start(w, at)
	if w.spec.Command == "storm" {
		w.reconnector.start(w, at)
	}
}

// end ends the window: nothing more is sent.
func (w *worker) end(now int64) {
	w.phase = phaseEnded
	w.CPUEnd = cpuNanos()
	w.sender.stop(w, now)
}

// turn does what is due and returns when it has to be called again.
func (w *worker) turn(now int64) (next int64) {
	next = now + int64(idleTurn)
	if w.nextReport == 0 {
		w.nextReport = now
	}
	if now >= w.nextReport && w.phase != phaseReady && w.phase != phaseFinishing {
		w.sendReport(eventProgress)
		w.nextReport = now + int64(ReportInterval(w.spec.Command))
	}
	switch w.phase {
	case phaseConnecting:
		next = min(next, w.dialer.turn(w, now))
		if w.dialer.done(w) {
			w.phase = phaseConnected
			w.sendReport(EventConnected)
		}
	case phaseWindow:
		next = min(next, w.sender.turn(w, now))
		if w.spec.Command == "storm" {
			next = min(next, w.reconnector.turn(w, now))
		}
		if end := w.sender.began + int64(w.spec.Duration); now >= end || w.reconnector.done(w) {
			w.end(now)
		} else {
			next = min(next, end)
		}
	case phaseEnded:
		if !w.endReported && w.sender.settled() {
			w.endReported = true
			w.sendReport(EventEnded)
		}
	case phaseDraining:
		if w.drained(now) {
			w.phase = phaseDrained
			w.CPUDrain = cpuNanos()
			w.sendReport(EventDrained)
		}
	case phaseFinishing:
		if w.Open == 0 || now >= w.drainEnd {
			w.phase = phaseFinished
			w.sendReport(EventFinished)
		}
	}
	return next
}

// DrainQuiet is how long a worker waits for the next message in flight after the window. Tests raise it.
var DrainQuiet = 2 * time.Second

// MaxDrain is how long a worker waits for messages in flight altogether.
const MaxDrain = 15 * time.Second

// drained reports whether there is nothing more to wait for.
func (w *worker) drained(now int64) bool {
	w.Expected = w.expected()
	return w.ledger.received >= w.Expected || w.Open == 0 ||
		now-max(w.LastAt, w.sender.ended) > int64(DrainQuiet) ||
		now-w.sender.ended > int64(MaxDrain)
}

// expected is the number of messages that the connections of this worker should receive, given how many
// each sender has sent.
func (w *worker) expected() int64 {
	if w.spec.Command != "fanout" {
		return w.Sent
	}
	var n int64
	for _, sent := range w.drain.Sent {
		n += int64(sent) * int64(w.Members)
	}
	for _, id := range w.noEcho() {
		n -= int64(w.drain.Sent[id])
	}
	return n
}

// noEcho lists the senders of this worker that received none of their own messages. That is taken for
// the server's rule, not for loss.
func (w *worker) noEcho() []uint32 {
	var list []uint32
	if w.spec.Command != "fanout" || w.spec.PublishURL != "" {
		return nil
	}
	for i := range w.sender.mine {
		if w.conns[i].member && w.conns[i].sent > 0 && w.ledger.reached(i, int(w.id(i))) == 0 {
			list = append(list, w.id(i))
		}
	}
	return list
}

// id is the number of a connection over all workers.
func (w *worker) id(i int) uint32 { return uint32(i*w.spec.Count + w.spec.Index) }

// targetOf is the index of the target of a connection.
func (w *worker) targetOf(i int) int {
	return spread(int(w.id(i)), w.spec.Count, len(w.spec.Targets))
}

// at prefixes a reason with the URL if there are several targets.
func (w *worker) at(i int, reason string) string {
	if len(w.spec.Targets) < 2 {
		return reason
	}
	return w.spec.Targets[w.targetOf(i)].URL + ": " + reason
}

// sendReport sends a report and resets the histograms.
func (w *worker) sendReport(what string) {
	w.Received, w.Duplicated, w.Reordered = w.received()
	w.CPU = cpuNanos()
	r := Report{
		Event: what, Counters: w.Counters,
		FailedBy: maps.Clone(w.failedBy), LostBy: maps.Clone(w.lostBy),
		Handshake: pack(w.handshakes), Latency: pack(w.latency),
		ReconnectFailedBy: maps.Clone(w.reconnector.failedBy), Back: w.reconnector.back, Shares: w.shares,
	}
	w.handshakes.Reset()
	w.latency.Reset()
	w.reconnector.back = nil
	w.sender.report(w, &r)
	if what == EventDrained {
		r.NoEcho = w.noEcho()
		for i := range w.arrivals {
			r.Arrivals = append(r.Arrivals, w.arrivals[i].pack())
		}
	}
	w.outErr = w.out.Encode(&r)
}

func (w *worker) received() (received, duplicated, reordered int64) {
	if w.ledger == nil {
		return 0, 0, 0
	}
	return w.ledger.received, w.ledger.duplicated, w.ledger.reordered
}

// count counts a reason. The number of distinct reasons is bounded, since servers word them.
func count(reasons map[string]int, reason string) {
	if _, known := reasons[reason]; !known && len(reasons) >= maxReasons {
		reason = "other"
	}
	reasons[reason]++
}
