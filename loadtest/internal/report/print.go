package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// PrintResult prints the metrics of one run for a terminal.
func PrintResult(w io.Writer, r *Result) {
	sign := ""
	if len(doubts(r)) > 0 {
		sign = doubtSign
	}
	fmt.Fprintf(w, "%s%s  %s\n%s\n", plain(r.Name), sign, plain(r.URL), describeLoad(r))
	if r.Error != "" {
		fmt.Fprintf(w, "\nERROR: the run ended early: %s\n", plain(r.Error))
	}
	fmt.Fprintln(w)
	lines := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range resultLines(r) {
		fmt.Fprintf(lines, "%s\t%s\n", line.name, strings.Join(line.parts, ", "))
	}
	lines.Flush()
	printDistributions(w, r)

	warnings := slices.DeleteFunc(doubts(r), func(s string) bool { return strings.HasPrefix(s, "ended early: ") })
	if len(warnings) > 0 {
		fmt.Fprintln(w)
	}
	for _, text := range warnings {
		fmt.Fprintf(w, "WARNING: %s\n", text)
	}
}

type resultLine struct {
	name  string
	parts []string
}

// add appends a part if its metric was measured.
func (l *resultLine) add(when bool, format string, args ...any) {
	if when {
		l.parts = append(l.parts, fmt.Sprintf(format, args...))
	}
}

func resultLines(r *Result) []resultLine {
	var lines []resultLine
	for _, line := range []resultLine{
		connectionLine(r.Connections), messageLine(r.Messages), faultLine(r.Messages), stormLine(r.Storm),
		serverLine(r.Server), memoryLine(r.Server), generatorLine(r.Generator),
	} {
		if len(line.parts) > 0 {
			lines = append(lines, line)
		}
	}
	return lines
}

func connectionLine(c Connections) resultLine {
	l := resultLine{name: "connections"}
	opened := fmt.Sprintf("%d of %d opened", c.Opened, c.Wanted)
	if c.Seconds != 0 {
		opened += " in " + microseconds.format(c.Seconds*1e6)
	}
	if c.PerSecond != 0 {
		opened += " (" + rates.format(c.PerSecond) + ")"
	}
	l.add(true, "%s", opened)
	l.add(c.Lost != 0, "%d lost", c.Lost)
	l.add(len(c.Failed) > 0, "failed: %s", reasons(c.Failed))
	return l
}

func messageLine(m *Messages) resultLine {
	l := resultLine{name: "messages"}
	if m == nil {
		return l
	}
	l.add(true, "%s sent (%s)", counts.format(float64(m.Sent)), rates.format(m.SentPerSecond))
	l.add(true, "%s received (%s)", counts.format(float64(m.Received)), rates.format(m.ReceivedPerSec))
	l.add(m.ReceivedBytes != 0, "%s", sizes.format(float64(m.ReceivedBytes)))
	return l
}

// faultLine prints exact numbers, since one missing message in a million matters.
func faultLine(m *Messages) resultLine {
	l := resultLine{name: "faults"}
	if m == nil {
		return l
	}
	l.add(m.Missing != 0, "%d missing of %d", m.Missing, m.Expected)
	l.add(m.Duplicated != 0, "%d duplicated", m.Duplicated)
	l.add(m.Reordered != 0, "%d reordered", m.Reordered)
	l.add(m.Foreign != 0, "%d foreign", m.Foreign)
	l.add(m.Unsent != 0, "%d unsent", m.Unsent)
	l.add(len(l.parts) == 0, "none")
	return l
}

func stormLine(s *Storm) resultLine {
	l := resultLine{name: "storm"}
	if s == nil {
		return l
	}
	l.add(s.CutBy != "", "cut by the %s", plain(s.CutBy))
	l.add(true, "50%% reconnected %s", after(s.Back50))
	l.add(true, "95%% %s", after(s.Back95))
	l.add(true, "all %s", after(s.Back100))
	l.add(true, "%d attempts", s.Attempts)
	l.add(len(s.Failed) > 0, "failed: %s", reasons(s.Failed))
	l.add(s.PeakCPU != 0, "peak %s", processors.format(s.PeakCPU))
	l.add(s.PeakMemory != 0, "peak RSS %s", sizes.format(float64(s.PeakMemory)))
	return l
}

// after formats the time until clients were back, in seconds: "after 1.10 s" or "never".
func after(seconds float64) string {
	if seconds == 0 {
		return "never"
	}
	return "after " + microseconds.format(seconds*1e6)
}

func serverLine(s *Server) resultLine {
	l := resultLine{name: "server CPU"}
	if s == nil {
		return l
	}
	l.add(true, "%s", processors.format(s.Cores))
	l.add(s.CPUPerMessage != 0, "%s per delivery", microseconds.format(s.CPUPerMessage))
	l.add(s.CPUPerConn != 0, "%s per handshake", microseconds.format(s.CPUPerConn))
	l.add(s.Processes > 1, "%d processes", s.Processes)
	l.add(s.Threads != 0, "%d threads", s.Threads)
	return l
}

func memoryLine(s *Server) resultLine {
	l := resultLine{name: "server memory"}
	if s == nil || s.RSS == 0 {
		return l
	}
	l.add(true, "RSS %s (%s before)", sizes.format(float64(s.RSS)), sizes.format(float64(s.RSSBefore)))
	l.add(s.PSS != 0, "PSS %s", sizes.format(float64(s.PSS)))
	l.add(s.RSSPerConn > 0, "%s per connection", sizes.format(s.RSSPerConn))
	l.add(s.KernelPerConn > 0, "%s per connection in kernel buffers (both ends)", sizes.format(s.KernelPerConn))
	l.add(s.SlabPerConn > 0, "%s per connection in the kernel slab (both ends)", sizes.format(s.SlabPerConn))
	return l
}

func generatorLine(g Generator) resultLine {
	l := resultLine{name: "generator CPU"}
	l.add(g.Cores != 0, "%s", processors.format(g.Cores))
	l.add(g.Processes > 1, "%d processes", g.Processes)
	l.add(g.CPUPerMessage != 0, "%s per delivery", microseconds.format(g.CPUPerMessage))
	l.add(g.MaxLate != 0, "sends up to %s late", microseconds.format(g.MaxLate))
	return l
}

func printDistributions(w io.Writer, r *Result) {
	lines := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := "\n\tp50\tp90\tp99\tp99.9\tmax\t\n"
	for _, d := range []struct {
		name string
		of   *Latency
	}{{"handshake", r.Connections.Handshake}, {"latency", r.Latency}, {"completion", r.Completion}} {
		if d.of == nil || d.of.Count == 0 {
			continue
		}
		fmt.Fprintf(lines, "%s%-11s\t", head, d.name)
		head = ""
		for _, v := range []float64{d.of.P50, d.of.P90, d.of.P99, d.of.P999, d.of.Max} {
			fmt.Fprintf(lines, "%s\t", microseconds.format(v))
		}
		fmt.Fprintln(lines)
	}
	lines.Flush()
}

// reasons lists failures by frequency: "12 refused, 3 timeout".
func reasons(byReason map[string]int) string {
	names := slices.Sorted(maps.Keys(byReason))
	slices.SortStableFunc(names, func(a, b string) int { return byReason[b] - byReason[a] })
	var parts []string
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%d %s", byReason[name], plain(name)))
	}
	return strings.Join(parts, ", ")
}
