package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"carillon/loadtest/internal/generator"
	"carillon/loadtest/internal/report"
)

// Beyond these limits the generator counts as the bottleneck of a run.
const (
	maxBusy = 0.9                   // of a core, per process
	maxLate = 10 * time.Millisecond // behind the schedule
)

// collect fills in the result of a run, complete or not.
func (r *run) collect() {
	f, res := r.fleet, r.result
	sum := f.Total()
	res.Series = r.series.points
	res.Seconds = seconds(r.from, r.to)

	c := &res.Connections
	c.Opened, c.Lost, c.Failed, c.LostBy = sum.Opened, sum.Lost, r.failureReasons(), r.lossReasons()
	c.Seconds = seconds(r.began, r.connected)
	if c.Seconds > 0 {
		c.PerSecond = float64(c.Opened) / c.Seconds
	}
	c.Handshake = report.NewLatency(f.Handshakes)

	switch {
	case r.from == 0: // the window was not reached
	case r.o.sends():
		res.Seconds = max(res.Seconds, seconds(r.from, sum.LastAt))
		r.collectMessages(sum)
	case r.o.Command == "storm":
		r.collectStorm(sum)
	}
	res.Server = r.server.metrics(int64(sum.Opened), sum.Received, res.Seconds)
	r.collectGenerator(sum)
	r.addWarnings(sum)
}

func seconds(from, to int64) float64 { return max(0, float64(to-from)/1e9) }

func (r *run) collectMessages(sum generator.Counters) {
	res := r.result
	res.Messages = &report.Messages{
		Sent: sum.Sent, Received: sum.Received, Expected: sum.Expected,
		Missing:    max(0, sum.Expected-sum.Received),
		Duplicated: sum.Duplicated, Reordered: sum.Reordered, Foreign: sum.Foreign, Unsent: sum.Unsent,
		SentPerSecond:  float64(sum.Sent) / res.Seconds,
		ReceivedPerSec: float64(sum.Received) / res.Seconds,
		ReceivedBytes:  sum.Bytes,
	}
	res.Latency = report.NewLatency(r.fleet.Latency)
	if r.o.Command == "fanout" {
		res.Completion = report.NewLatency(r.fleet.Completions(r.o.Publishers, sum.Members))
	}
}

func (r *run) collectStorm(sum generator.Counters) {
	f := r.fleet
	slices.Sort(f.Back)
	s := &report.Storm{
		CutBy: r.o.CutBy, Attempts: sum.Attempts,
		Failed:    f.Reasons(func(r *generator.Report) map[string]int { return r.ReconnectFailedBy }),
		Back50:    backAt(f.Back, sum.Members, sum.CutAt, 0.5),
		Back95:    backAt(f.Back, sum.Members, sum.CutAt, 0.95),
		Back100:   backAt(f.Back, sum.Members, sum.CutAt, 1),
		Handshake: report.NewLatency(f.Reconnects),
	}
	if r.server != nil {
		s.PeakCPU, s.PeakMemory = r.server.peakCores, r.server.peakMemory
	}
	r.result.Storm = s
	r.result.Connections.Lost = sum.Members - sum.Open
	if s.Back100 == 0 {
		r.warn("%d of %d connections had reconnected when the run ended", len(f.Back), sum.Members)
	}
}

// backAt is how many seconds after the cut a share of the connections was back; 0 is never.
func backAt(back []int64, of int, cut int64, share float64) float64 {
	n := int(math.Ceil(share * float64(of)))
	if n < 1 || n > len(back) {
		return 0
	}
	return seconds(cut, back[n-1])
}

func (r *run) collectGenerator(sum generator.Counters) {
	g := &r.result.Generator
	if r.from == 0 || r.result.Seconds == 0 {
		return
	}
	g.CPUSeconds = float64(sum.CPUDrain-sum.CPUStart) / 1e9
	g.Cores = g.CPUSeconds / r.result.Seconds
	if sum.Received > 0 {
		g.CPUPerMessage = g.CPUSeconds * 1e6 / float64(sum.Received)
	}
	g.MaxLate = micros(sum.MaxLate)

	window := seconds(r.from, r.to)
	for _, m := range r.fleet.Processes {
		if busy := float64(m.Last.CPUEnd-m.Last.CPUStart) / 1e9 / window; busy > maxBusy {
			g.Bottleneck = true
			r.warn("the generator was the bottleneck: one of its processes was busy for %.0f%% of the time; use more --processes", 100*busy)
			break
		}
	}
	if late := time.Duration(sum.MaxLate); late > maxLate {
		g.Bottleneck = true
		r.warn("the generator missed its schedule: a message was sent %v late (limit %v)", late.Round(time.Millisecond/10), maxLate)
	}
}

// addWarnings adds the reasons to doubt the metrics.
func (r *run) addWarnings(sum generator.Counters) {
	res := r.result
	if n := sum.Failed; n > 0 && sum.Opened > 0 {
		r.warn("%d of %d connections could not be opened; most frequent reason: %s", n, res.Connections.Wanted, mostCommon(res.Connections.Failed))
	}
	if !r.allLost { // otherwise the error says so
		r.warnServers()
	}
	if sum.Lost > 0 && r.o.Command != "storm" {
		r.warn("%d connections were lost; most frequent reason: %s", sum.Lost, mostCommon(res.Connections.LostBy))
	}
	if by := r.fleet.Reasons(func(r *generator.Report) map[string]int { return r.PublishFailedBy }); len(by) > 0 {
		r.warn("publish requests failed; most frequent reason: %s", mostCommon(by))
	}
	if m := res.Messages; m != nil {
		r.warnMessages(m)
	}
	if s := res.Server; s != nil && r.o.Command != "idle" && s.Cores+res.Generator.Cores > 0.95*float64(runtime.NumCPU()) {
		r.warn("server and generator kept all %d cores busy and slowed each other down", runtime.NumCPU())
	}
}

// warnServers warns about server processes and URLs that were lost during the run.
func (r *run) warnServers() {
	for _, p := range r.server.gone() {
		r.warn("%v exited %.1f s after the start of the run; its CPU and memory count until then", p, seconds(r.began, p.ended))
	}
	if len(r.targets) < 2 {
		return
	}
	for i, s := range r.fleet.Shares(len(r.targets)) {
		if s.Opened > 0 && s.Lost == s.Opened {
			r.warn("all %d connections to %s were lost", s.Opened, r.targets[i].URL)
		}
	}
}

func (r *run) warnMessages(m *report.Messages) {
	if m.Unsent > 0 {
		r.warn("%d messages were due but not sent: their connections were full or closed", m.Unsent)
	}
	if m.Foreign > 0 {
		r.warn("%d messages were damaged or not from this run: does another client use this path?", m.Foreign)
	}
	switch urls := int64(len(r.o.URLs)); {
	case r.o.Command != "fanout" || m.Sent == 0 || m.Missing == 0:
	case m.Received == m.Sent:
		r.warn("each message reached only one receiver: %s seems to echo instead of broadcasting", redactURL(r.o.URLs[0]))
	case urls > 1 && m.Received <= m.Expected/urls*11/10:
		r.warn("each message reached about one receiver in %d: do the servers at these URLs form a cluster? fanout expects one", urls)
	}
}

// checkReceived returns an error if no message arrived at all.
func (r *run) checkReceived() error {
	sum := r.fleet.Total()
	switch {
	case !r.o.sends() || sum.Received > 0:
		return nil
	case sum.Sent == 0:
		if by := r.fleet.Reasons(func(r *generator.Report) map[string]int { return r.PublishFailedBy }); len(by) > 0 {
			return fmt.Errorf("nothing could be published: %s", mostCommon(by))
		}
		return fmt.Errorf("no message was due within %v at this rate", r.o.Duration)
	case sum.Foreign > 0:
		return fmt.Errorf("%d messages were sent, and all came back damaged or altered", sum.Sent)
	}
	return fmt.Errorf("%d messages were sent, and none came back: does %s %s?", sum.Sent, redactURL(r.o.URLs[0]),
		map[string]string{"echo": "echo", "fanout": "broadcast"}[r.o.Command])
}
