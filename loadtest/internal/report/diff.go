package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// Differences are the changes between two documents.
type Differences struct {
	Threshold float64 // percent
	Runs      []*RunDiff
	OnlyOld   []string // runs without a counterpart
	OnlyNew   []string
	Notes     []string
}

// RunDiff is one server under one load, in both documents.
type RunDiff struct {
	Title     string
	OldRounds int
	NewRounds int
	Changes   []Change
	Same      int // unchanged metrics
	Failed    bool
	OldDoubts string // empty if there are none
	NewDoubts string
}

// Change is a metric that changed by more than the threshold and the noise.
type Change struct {
	Name     string
	Old, New Spread
	Percent  float64 // infinite if it was zero or is never reached
	Verdict  string  // "worse", "better", "changed", "gone" or "new"
	unit     unit
}

// noiseKnown reports whether both sides have several rounds.
func (d *RunDiff) noiseKnown() bool { return d.OldRounds > 1 && d.NewRounds > 1 }

// Diff matches runs by server, command and settings and compares the medians of their rounds.
// A metric has changed if its median moved by more than threshold percent and, where both sides have
// several rounds, their ranges do not overlap.
func Diff(old, new *Document, threshold float64) *Differences {
	d := &Differences{Threshold: threshold}
	olds, news := seriesOf(old), seriesOf(new)
	for _, o := range olds.order {
		n := news.runs[o]
		if n == nil {
			d.OnlyOld = append(d.OnlyOld, o.title(olds.runs[o]))
			continue
		}
		d.Runs = append(d.Runs, diffRuns(olds.runs[o], n, threshold))
	}
	for _, n := range news.order {
		if olds.runs[n] == nil {
			d.OnlyNew = append(d.OnlyNew, n.title(news.runs[n]))
		}
	}
	if a, b := machinesOf(old.Results), machinesOf(new.Results); !slices.Equal(a, b) {
		d.Notes = append(d.Notes, fmt.Sprintf("The machines differ: %s before, %s now.", strings.Join(a, " and "), strings.Join(b, " and ")))
	}
	if slices.ContainsFunc(d.Runs, func(r *RunDiff) bool { return !r.noiseKnown() }) {
		d.Notes = append(d.Notes, "With a single round on either side the noise is unknown, and only the threshold counts.")
	}
	return d
}

// Worse reports whether a metric got worse or a run failed that did not fail before.
func (d *Differences) Worse() bool {
	return slices.ContainsFunc(d.Runs, func(r *RunDiff) bool {
		return r.Failed || slices.ContainsFunc(r.Changes, func(c Change) bool { return c.Verdict == "worse" })
	})
}

// runKey matches runs.
type runKey struct {
	name string
	load load
}

func (runKey) title(runs []*Result) string {
	return plain(runs[0].Name) + ", " + describeLoad(runs[0])
}

type runSeries struct {
	order []runKey
	runs  map[runKey][]*Result
}

func seriesOf(doc *Document) runSeries {
	s := runSeries{runs: map[runKey][]*Result{}}
	for _, r := range doc.Results {
		key := runKey{r.Name, loadOf(r)}
		if s.runs[key] == nil {
			s.order = append(s.order, key)
		}
		s.runs[key] = append(s.runs[key], r)
	}
	return s
}

func diffRuns(old, new []*Result, threshold float64) *RunDiff {
	d := &RunDiff{Title: runKey{}.title(new), OldRounds: len(old), NewRounds: len(new)}
	failed := func(r *Result) bool { return r.Error != "" }
	d.Failed = slices.ContainsFunc(new, failed) && !slices.ContainsFunc(old, failed)
	d.OldDoubts, d.NewDoubts = caveatsOf(old), caveatsOf(new)
	for _, f := range metrics {
		if f.group == "generator" {
			continue
		}
		o, n := spreadOf(metricValues(f, old)), spreadOf(metricValues(f, new))
		if o.N == 0 && n.N == 0 {
			continue
		}
		c := Change{Name: f.name, Old: o, New: n, unit: f.unit, Verdict: compareSpreads(f, o, n, threshold)}
		if c.Verdict == "" {
			d.Same++
			continue
		}
		c.Percent = percent(o.Median, n.Median)
		d.Changes = append(d.Changes, c)
	}
	return d
}

func caveatsOf(runs []*Result) string {
	c := &Entrant{}
	for _, r := range runs {
		c.add(r)
	}
	if c.Doubtful == 0 {
		return ""
	}
	return c.Caveats()
}

// compareSpreads returns the verdict on a metric, or "" if it did not change.
func compareSpreads(f metric, old, new Spread, threshold float64) string {
	switch {
	case old.N == 0:
		return "new"
	case new.N == 0:
		return "gone"
	}
	disjoint := new.Min > old.Max || new.Max < old.Min
	if old.N > 1 && new.N > 1 && !disjoint {
		return ""
	}
	change := percent(old.Median, new.Median)
	switch {
	case math.Abs(change) <= threshold:
		return ""
	case f.better == neither:
		return "changed"
	case (change > 0) == (f.better == lower):
		return "worse"
	}
	return "better"
}

// percent is the change from old to new.
func percent(old, new float64) float64 {
	switch {
	case old == new: // also if both are zero or infinite
		return 0
	case old == 0 || math.IsInf(new, 0):
		return math.Inf(1)
	case math.IsInf(old, 0):
		return math.Inf(-1)
	}
	return (new - old) / math.Abs(old) * 100
}

// machinesOf describes the distinct machines.
func machinesOf(results []*Result) []string {
	var all []string
	for _, r := range results {
		if m := r.Machine.String(); !slices.Contains(all, m) {
			all = append(all, m)
		}
	}
	slices.Sort(all)
	return all
}

// WriteText prints the changes.
func (d *Differences) WriteText(w io.Writer) error {
	var text strings.Builder
	for _, r := range d.Runs {
		r.writeText(&text, d.Threshold)
		text.WriteString("\n")
	}
	for _, title := range d.OnlyOld {
		fmt.Fprintf(&text, "only in the old file: %s\n", title)
	}
	for _, title := range d.OnlyNew {
		fmt.Fprintf(&text, "only in the new file: %s\n", title)
	}
	for _, note := range d.Notes {
		fmt.Fprintln(&text, note)
	}
	if _, err := io.WriteString(w, withoutTrailingSpace(text.String())); err != nil {
		return fmt.Errorf("print the differences: %w", err)
	}
	return nil
}

func (d *RunDiff) writeText(text *strings.Builder, threshold float64) {
	sign, noise, also := "", "", " or the noise"
	if d.OldDoubts != "" || d.NewDoubts != "" {
		sign = doubtSign
	}
	if !d.noiseKnown() {
		noise, also = ", noise unknown", ""
	}
	fmt.Fprintf(text, "%s%s\n%s before, %s now%s\n", d.Title, sign, number(d.OldRounds, "round"), number(d.NewRounds, "round"), noise)
	if d.Failed {
		fmt.Fprintln(text, "  WORSE: a run ended early; none did before")
	}
	lines := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	for _, c := range d.Changes {
		fmt.Fprintf(lines, "  %s\t%s\t%s\t->\t%s\t%s\n", c.Verdict, c.Name,
			side(c.unit, c.Old), side(c.unit, c.New), c.percentText())
	}
	lines.Flush()
	fmt.Fprintf(text, "  %d metrics unchanged: within %g%%%s\n", d.Same, threshold, also)
	for _, side := range []struct{ when, doubts string }{{"before", d.OldDoubts}, {"now", d.NewDoubts}} {
		if side.doubts != "" {
			fmt.Fprintf(text, " %s %s, %s\n", doubtSign, side.when, side.doubts)
		}
	}
}

func side(u unit, s Spread) string {
	c := Cell{Value: s, unit: u}
	if s.N == 0 {
		return "not measured"
	}
	if r := c.Range(); r != "" {
		return c.Text() + " (" + r + ")"
	}
	return c.Text()
}

func (c Change) percentText() string {
	if c.Old.N == 0 || c.New.N == 0 || math.IsInf(c.Percent, 0) {
		return ""
	}
	return fmt.Sprintf("%+.1f%%", c.Percent)
}
