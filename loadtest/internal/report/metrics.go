package report

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
)

// direction is which values of a metric are better.
type direction int

const (
	neither direction = iota
	lower
	higher
)

// metric is one number of a run, as tables, charts and Diff use it.
type metric struct {
	group    string
	name     string
	unit     unit
	better   direction
	hideZero bool                  // omitted if it is zero everywhere
	value    func(*Result) float64 // NaN if not measured
}

// metrics lists all metrics in display order.
var metrics = joined(
	[]metric{
		{"connecting", "connections/s", rates, higher, false, func(r *Result) float64 { return measured(r.Connections.PerSecond) }},
		{"connecting", "failed connections", counts, lower, true, func(r *Result) float64 { return float64(failures(r.Connections.Failed)) }},
		{"connecting", "lost connections", counts, lower, true, func(r *Result) float64 { return float64(r.Connections.Lost) }},
	},
	distribution("connecting", "handshake", func(r *Result) *Latency { return r.Connections.Handshake }),
	[]metric{
		{"messages", "received/s", rates, higher, false, ofMessages(func(m *Messages) float64 { return measured(m.ReceivedPerSec) })},
		{"messages", "missing", counts, lower, true, ofMessages(func(m *Messages) float64 { return float64(m.Missing) })},
		{"messages", "duplicated", counts, lower, true, ofMessages(func(m *Messages) float64 { return float64(m.Duplicated) })},
		{"messages", "reordered", counts, lower, true, ofMessages(func(m *Messages) float64 { return float64(m.Reordered) })},
		{"messages", "foreign", counts, lower, true, ofMessages(func(m *Messages) float64 { return float64(m.Foreign) })},
		{"messages", "unsent", counts, lower, true, ofMessages(func(m *Messages) float64 { return float64(m.Unsent) })},
	},
	distribution("latency", "latency", func(r *Result) *Latency { return r.Latency }),
	distribution("completion", "completion", func(r *Result) *Latency { return r.Completion }),
	[]metric{
		{"storm", "50% reconnected", microseconds, lower, false, ofStorm(func(s *Storm) float64 { return eventually(s.Back50) })},
		{"storm", "95% reconnected", microseconds, lower, false, ofStorm(func(s *Storm) float64 { return eventually(s.Back95) })},
		{"storm", "all reconnected", microseconds, lower, false, ofStorm(func(s *Storm) float64 { return eventually(s.Back100) })},
		{"storm", "attempts", counts, lower, false, ofStorm(func(s *Storm) float64 { return float64(s.Attempts) })},
		{"storm", "failed attempts", counts, lower, true, ofStorm(func(s *Storm) float64 { return float64(failures(s.Failed)) })},
		{"storm", "peak server CPU", processors, lower, false, ofStorm(func(s *Storm) float64 { return measured(s.PeakCPU) })},
		{"storm", "peak server RSS", sizes, lower, false, ofStorm(func(s *Storm) float64 { return measured(float64(s.PeakMemory)) })},

		{"server", "CPU per delivery", microseconds, lower, false, ofServer(func(s *Server) float64 { return measured(s.CPUPerMessage) })},
		{"server", "CPU per handshake", microseconds, lower, false, ofServer(func(s *Server) float64 { return measured(s.CPUPerConn) })},
		{"server", "server CPU", processors, neither, false, ofServer(func(s *Server) float64 { return measured(s.Cores) })},
		{"server", "RSS", sizes, lower, false, ofServer(func(s *Server) float64 { return measured(float64(s.RSS)) })},
		{"server", "PSS", sizes, lower, false, ofServer(func(s *Server) float64 { return measured(float64(s.PSS)) })},
		{"server", "RSS per connection", sizes, lower, false, ofServer(func(s *Server) float64 { return growth(s.RSSPerConn) })},
		{"server", "kernel per connection", sizes, lower, false, ofServer(func(s *Server) float64 { return growth(s.KernelPerConn) })},
		{"server", "slab per connection", sizes, lower, false, ofServer(func(s *Server) float64 { return growth(s.SlabPerConn) })},
		{"server", "threads", counts, neither, false, ofServer(func(s *Server) float64 { return measured(float64(s.Threads)) })},

		{"generator", "generator CPU", processors, neither, false, func(r *Result) float64 { return measured(r.Generator.Cores) }},
		{"generator", "worst send delay", microseconds, neither, false, func(r *Result) float64 { return measured(r.Generator.MaxLate) }},
	},
)

func joined(lists ...[]metric) []metric {
	var all []metric
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

func distribution(group, name string, of func(*Result) *Latency) []metric {
	at := func(part string, value func(*Latency) float64) metric {
		return metric{group, name + " " + part, microseconds, lower, false, func(r *Result) float64 {
			if l := of(r); l != nil && l.Count > 0 {
				return value(l)
			}
			return math.NaN()
		}}
	}
	return []metric{
		at("p50", func(l *Latency) float64 { return l.P50 }),
		at("p90", func(l *Latency) float64 { return l.P90 }),
		at("p99", func(l *Latency) float64 { return l.P99 }),
		at("p99.9", func(l *Latency) float64 { return l.P999 }),
		at("max", func(l *Latency) float64 { return l.Max }),
	}
}

func ofMessages(of func(*Messages) float64) func(*Result) float64 {
	return func(r *Result) float64 {
		if r.Messages == nil {
			return math.NaN()
		}
		return of(r.Messages)
	}
}

func ofStorm(of func(*Storm) float64) func(*Result) float64 {
	return func(r *Result) float64 {
		if r.Storm == nil {
			return math.NaN()
		}
		return of(r.Storm)
	}
}

func ofServer(of func(*Server) float64) func(*Result) float64 {
	return func(r *Result) float64 {
		if r.Server == nil {
			return math.NaN()
		}
		return of(r.Server)
	}
}

// measured turns zero into "not measured", for metrics that cannot be zero.
func measured(v float64) float64 {
	if v == 0 {
		return math.NaN()
	}
	return v
}

// growth turns values that are not positive into "not measured". When memory shrinks, because the server or
// another process has released some, the difference says nothing about a connection.
func growth(v float64) float64 {
	if v <= 0 {
		return math.NaN()
	}
	return v
}

// eventually converts seconds to microseconds, and 0, which means never, to infinity.
func eventually(seconds float64) float64 {
	if seconds == 0 {
		return math.Inf(1)
	}
	return seconds * 1e6
}

func failures(byReason map[string]int) int {
	n := 0
	for _, of := range byReason {
		n += of
	}
	return n
}

// load identifies comparable runs: the same command with the same settings.
type load string

// loadOf ignores source addresses and the URL for publishing, which do not change the load.
func loadOf(r *Result) load {
	s := r.Settings
	s.Sources = nil
	if s.PublishURL != "" {
		s.PublishURL = "yes"
	}
	text, err := json.Marshal(s)
	if err != nil { // NaN or infinity
		text = fmt.Append(nil, s)
	}
	return load(r.Command + " " + string(text))
}

// describeLoad describes the load of a run: "echo: 1000 connections, 128 B text, ...".
func describeLoad(r *Result) string {
	s := r.Settings
	parts := []string{number(s.Connections, "connection")}
	add := func(when bool, format string, args ...any) {
		if when {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	sends := r.Command != "idle" && r.Command != "storm" || s.Rate != 0 || s.Depth != 0
	kind := "text"
	if s.Binary {
		kind = "binary"
	}
	add(s.Publishers != 0, "%s", number(s.Publishers, "publisher"))
	add(s.Size != 0, "%s %s", sizes.format(float64(s.Size)), kind)
	add(s.Rate != 0, "%s messages/s", counts.format(s.Rate))
	add(s.Rate == 0 && sends, "as fast as possible")
	add(s.Depth != 0, "depth %d", s.Depth)
	add(s.Duration != 0, "%g s", s.Duration)
	add(s.Ramp != 0, "opened over %g s", s.Ramp)
	add(s.Compression, "permessage-deflate")
	add(s.PublishURL != "", "published over HTTP")
	add(s.Processes > 1, "%d generator processes", s.Processes)
	return plain(r.Command) + ": " + strings.Join(parts, ", ")
}

// number formats a count with its noun.
func number(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// doubts are the reasons to doubt the metrics of a run.
func doubts(r *Result) []string {
	var all []string
	if r.Error != "" {
		all = append(all, "ended early: "+plain(r.Error))
	}
	if r.Generator.Bottleneck && len(r.Warnings) == 0 {
		all = append(all, "the generator may have been the bottleneck")
	}
	for _, w := range r.Warnings {
		all = append(all, plain(w))
	}
	return all
}

// doubtSign marks the names of servers with doubtful runs.
const doubtSign = " *"
