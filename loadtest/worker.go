package main

import (
	"bufio"
	"encoding/json"
	"io"
	"maps"
	"runtime"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// phase is how far a worker is in its run.
type phase uint8

const (
	phaseReady phase = iota
	phaseConnecting
	phaseConnected
	phaseWindow // what happens now is what is measured
	phaseEnded
	phaseDraining
	phaseDrained
	phaseFinishing
	phaseFinished
)

// reportEvery is how often a process says how it goes. A storm is over soon.
func reportEvery(command string) time.Duration {
	if command == "storm" {
		return 100 * time.Millisecond
	}
	return 250 * time.Millisecond
}

const (
	idleTurn    = 10 * time.Millisecond // the longest wait without a look at the orders
	readBuffer  = 256 << 10
	mostReasons = 32 // kept apart; the others are counted as "other"
)

// worker is one process of the generator: a single goroutine that waits for any of its sockets, and
// carries all of its connections. Nothing in here is shared but the publishers over HTTP.
type worker struct {
	spec   spec
	phase  phase
	told   bool // that the window is over
	orders chan order
	out    *json.Encoder
	outErr error

	poll  *poller
	conns []conn
	buf   []byte // what was read last
	batch []byte // what is written next
	spare []byte // the last buffer of a partial frame, to be used again

	dialing  dialing
	again    reconnecting
	sending  sending
	drain    order
	drainEnd int64

	payloads *payloads
	op       byte // of our messages
	ledger   *ledger
	arrivals []arrivals
	deflate  deflater

	counters
	shares              []share
	failedBy, lostBy    map[string]int
	handshakes, latency *hdr.Histogram
	nextReport          int64
}

// work is the life of a worker: it does what it is told on in, and says how it goes on out. It ends
// with the run, or when the parent is gone.
func work(in io.Reader, out io.Writer) error {
	runtime.GOMAXPROCS(2)  // one for the loop, which never lets go, and one for everything else
	runtime.LockOSThread() // the precision of the poller's timer is a property of the thread
	poll, err := newPoller()
	if err != nil {
		return err
	}
	w := &worker{
		orders:     make(chan order, 8),
		out:        json.NewEncoder(out),
		poll:       poll,
		buf:        make([]byte, readBuffer),
		failedBy:   map[string]int{},
		lostBy:     map[string]int{},
		handshakes: newHistogram(),
		latency:    newHistogram(),
	}
	go func() {
		defer close(w.orders)
		decode := json.NewDecoder(bufio.NewReader(in))
		for {
			var o order
			if decode.Decode(&o) != nil {
				return
			}
			w.orders <- o
		}
	}()
	for w.phase != phaseFinished && w.outErr == nil {
		if !w.takeOrders() {
			return nil
		}
		next := w.turn(monotonic())
		w.handle(w.poll.wait(time.Duration(next - monotonic())))
	}
	return w.outErr
}

// takeOrders does what the parent has asked for meanwhile. It returns false if there is no parent any
// more.
func (w *worker) takeOrders() bool {
	for {
		select {
		case o, ok := <-w.orders:
			if !ok {
				return false
			}
			w.obey(o)
		default:
			return true
		}
	}
}

func (w *worker) obey(o order) {
	switch o.Do {
	case doPrepare:
		w.prepare(o.Spec)
		w.say(sayReady)
	case doConnect:
		w.phase = phaseConnecting
		w.dialing.began = o.At
	case doStart:
		w.start(o.At)
	case doStop:
		if w.phase == phaseConnecting {
			w.phase = phaseConnected
			w.say(sayConnected)
		} else if w.phase == phaseWindow {
			w.end(monotonic())
		}
	case doDrain:
		w.phase = phaseDraining
		w.drain = o
	case doFinish:
		w.finish()
	}
}

// prepare makes room for everything that the run will need.
func (w *worker) prepare(s *spec) {
	w.spec = *s
	w.conns = make([]conn, s.mine(s.Connections))
	w.shares = make([]share, len(s.Targets))
	for i := range w.conns {
		w.conns[i].fd = -1
	}
	w.op = opBinary
	if s.Text {
		w.op = opText
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
	w.dialing.prepare(s)
	w.sending.prepare(w)
}

// start begins the measured window.
func (w *worker) start(at int64) {
	sleepUntil(at)
	w.phase = phaseWindow
	w.CPUStart = cpuNanos()
	w.LastAt = at
	for i := range w.conns {
		if w.conns[i].state == stateOpen {
			w.conns[i].member = true
			w.Members++
		}
	}
	w.sending.start(w, at)
	if w.spec.Command == "storm" {
		w.again.start(w, at)
	}
}

// end is the end of the window: nothing is sent any more.
func (w *worker) end(now int64) {
	w.phase = phaseEnded
	w.CPUEnd = cpuNanos()
	w.sending.stop(w, now)
}

// turn does all that is due, and returns when there is more to do.
func (w *worker) turn(now int64) (next int64) {
	next = now + int64(idleTurn)
	if w.nextReport == 0 {
		w.nextReport = now
	}
	if now >= w.nextReport && w.phase != phaseReady && w.phase != phaseFinishing {
		w.say(sayProgress)
		w.nextReport = now + int64(reportEvery(w.spec.Command))
	}
	switch w.phase {
	case phaseConnecting:
		next = min(next, w.dialing.turn(w, now))
		if w.dialing.done(w) {
			w.phase = phaseConnected
			w.say(sayConnected)
		}
	case phaseWindow:
		next = min(next, w.sending.turn(w, now))
		if w.spec.Command == "storm" {
			next = min(next, w.again.turn(w, now))
		}
		if end := w.sending.began + int64(w.spec.Duration); now >= end || w.again.done(w) {
			w.end(now)
		} else {
			next = min(next, end)
		}
	case phaseEnded:
		if !w.told && w.sending.settled() {
			w.told = true
			w.say(sayEnded)
		}
	case phaseDraining:
		if w.drained(now) {
			w.phase = phaseDrained
			w.CPUDrain = cpuNanos()
			w.say(sayDrained)
		}
	case phaseFinishing:
		if w.Open == 0 || now >= w.drainEnd {
			w.phase = phaseFinished
			w.say(sayFinished)
		}
	}
	return next
}

// What is still under way when the window ends is waited for: until all is there, until nothing has
// come for a while, and not for ever.
var drainQuiet = 2 * time.Second // longer in tests

const drainMost = 15 * time.Second

// drained says whether there is nothing more to wait for.
func (w *worker) drained(now int64) bool {
	w.Expected = w.expected()
	return w.ledger.received >= w.Expected || w.Open == 0 ||
		now-max(w.LastAt, w.sending.ended) > int64(drainQuiet) ||
		now-w.sending.ended > int64(drainMost)
}

// expected is how many messages should reach the connections of this process, now that it is known how
// many each sender has sent.
func (w *worker) expected() int64 {
	if w.spec.Command != "fanout" {
		return w.Sent
	}
	var n int64
	for _, sent := range w.drain.Sent {
		n += int64(sent) * int64(w.Members)
	}
	for _, id := range w.deaf() {
		n -= int64(w.drain.Sent[id])
	}
	return n
}

// deaf lists the own senders that got none of their own messages back. That is taken for the server's
// rule, not for a loss.
func (w *worker) deaf() []uint32 {
	var list []uint32
	if w.spec.Command != "fanout" || w.spec.PublishURL != "" {
		return nil
	}
	for i := range w.sending.mine {
		if w.conns[i].member && w.conns[i].sent > 0 && w.ledger.reached(i, int(w.id(i))) == 0 {
			list = append(list, w.id(i))
		}
	}
	return list
}

// id is the number of a connection among those of all processes.
func (w *worker) id(i int) uint32 { return uint32(i*w.spec.Count + w.spec.Index) }

// targetOf is the number of the target that a connection goes to.
func (w *worker) targetOf(i int) int {
	return spread(int(w.id(i)), w.spec.Count, len(w.spec.Targets))
}

// at says where a connection has failed, if it could be elsewhere.
func (w *worker) at(i int, reason string) string {
	if len(w.spec.Targets) < 2 {
		return reason
	}
	return w.spec.Targets[w.targetOf(i)].URL + ": " + reason
}

// say reports. Histograms are emptied by it.
func (w *worker) say(what string) {
	w.Received, w.Duplicated, w.Reordered = w.received()
	w.CPU = cpuNanos()
	r := report{
		Say: what, counters: w.counters,
		FailedBy: maps.Clone(w.failedBy), LostBy: maps.Clone(w.lostBy),
		Handshake: pack(w.handshakes), Latency: pack(w.latency),
		AgainBy: maps.Clone(w.again.failedBy), Back: w.again.back, Shares: w.shares,
	}
	w.handshakes.Reset()
	w.latency.Reset()
	w.again.back = nil
	w.sending.report(w, &r)
	if what == sayDrained {
		r.Deaf = w.deaf()
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

// count enters a reason. It comes from the server, so there may be very many.
func count(reasons map[string]int, reason string) {
	if _, known := reasons[reason]; !known && len(reasons) >= mostReasons {
		reason = "other"
	}
	reasons[reason]++
}
