package report

import (
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// Table compares servers, with a section for each load.
type Table struct {
	Sections []*Section
}

// Section is one load. It has a row per metric and in it a cell per server.
type Section struct {
	Title   string
	Servers []*Entrant // in the order of their first runs
	Rows    []*Row
	Notes   []string
	command string
}

// Entrant is one server with its runs.
type Entrant struct {
	Name     string
	Runs     []*Result // in order
	Doubts   []string  // without repetitions
	Doubtful int       // runs with doubts
	paired   []*Result // by round, nil where one has no run
}

// Row is one metric of all servers.
type Row struct {
	Group, Name string
	Cells       []Cell
	metric      metric
}

// Cell is one metric of one server over its rounds.
type Cell struct {
	Value Spread
	Ratio Spread // to the first server, round by round
	unit  unit
}

// Compare makes a table of results.
func Compare(results []*Result) *Table {
	table := &Table{}
	sections := map[load]*Section{}
	for _, r := range results {
		key := loadOf(r)
		s := sections[key]
		if s == nil {
			s = &Section{Title: describeLoad(r), command: r.Command}
			sections[key] = s
			table.Sections = append(table.Sections, s)
		}
		s.entrant(r.Name).add(r)
	}
	for _, s := range table.Sections {
		s.computeRows()
	}
	return table
}

func (s *Section) entrant(name string) *Entrant {
	for _, c := range s.Servers {
		if c.Name == name {
			return c
		}
	}
	c := &Entrant{Name: name}
	s.Servers = append(s.Servers, c)
	return c
}

func (c *Entrant) add(r *Result) {
	c.Runs = append(c.Runs, r)
	found := doubts(r)
	if len(found) > 0 {
		c.Doubtful++
	}
	for _, d := range found {
		if !slices.ContainsFunc(c.Doubts, func(known string) bool { return sameDoubt(known, d) }) {
			c.Doubts = append(c.Doubts, d)
		}
	}
}

var amounts = regexp.MustCompile(`[0-9.]+( ?%|[mµn]?s\b)`)

// sameDoubt ignores percentages and times, which differ between rounds.
func sameDoubt(a, b string) bool {
	return amounts.ReplaceAllString(a, "") == amounts.ReplaceAllString(b, "")
}

// Label is the server's name, with the doubt sign if a run is doubtful.
func (c *Entrant) Label() string {
	if c.Doubtful > 0 {
		return plain(c.Name) + doubtSign
	}
	return plain(c.Name)
}

// Caveats explains the doubt sign.
func (c *Entrant) Caveats() string {
	of := "single run"
	if n := len(c.Runs); n > 1 {
		of = fmt.Sprintf("%d of %d runs", c.Doubtful, n)
	}
	return of + ": " + strings.Join(c.Doubts, "; ")
}

func (s *Section) computeRows() {
	s.pair()
	base := s.Servers[0].paired
	for _, f := range metrics {
		row := &Row{Group: f.group, Name: f.name, metric: f}
		shown := false
		for i, c := range s.Servers {
			values := metricValues(f, c.paired)
			cell := Cell{Value: spreadOf(values), unit: f.unit}
			if i > 0 {
				cell.Ratio = ratioOf(values, metricValues(f, base))
			}
			row.Cells = append(row.Cells, cell)
			shown = shown || cell.Value.N > 0 && !(f.hideZero && cell.Value.Max == 0)
		}
		if shown {
			s.Rows = append(s.Rows, row)
		}
	}
}

// pair aligns the servers' runs by round. Runs without round numbers are taken in order: the nth run of a
// server is its nth round.
func (s *Section) pair() {
	if last := s.lastRound(); last > 0 {
		for _, c := range s.Servers {
			c.paired = make([]*Result, last)
			for _, r := range c.Runs {
				c.paired[r.Round-1] = r
			}
			if missing := last - len(c.Runs); missing > 0 {
				s.Notes = append(s.Notes, fmt.Sprintf("%s has no run in %d of %d rounds; its ratios use the remaining ones.", plain(c.Name), missing, last))
			}
		}
		return
	}
	uneven := false
	for _, c := range s.Servers {
		c.paired = c.Runs
		uneven = uneven || len(c.Runs) != len(s.Servers[0].Runs)
	}
	if uneven {
		s.Notes = append(s.Notes, "The servers have different numbers of runs, so ratios compare medians and have no range.")
	}
}

// MaxRounds is the highest round number.
const MaxRounds = 100

// lastRound is the number of rounds, or 0 if runs have no round numbers or repeat them.
func (s *Section) lastRound() int {
	last := 0
	for _, c := range s.Servers {
		var seen []int
		for _, r := range c.Runs {
			if r.Round < 1 || r.Round > MaxRounds || slices.Contains(seen, r.Round) {
				return 0
			}
			seen = append(seen, r.Round)
			last = max(last, r.Round)
		}
	}
	return last
}

func metricValues(f metric, runs []*Result) []float64 {
	values := make([]float64, len(runs))
	for i, r := range runs {
		values[i] = math.NaN()
		if r != nil {
			values[i] = f.value(r)
		}
	}
	return values
}

// ratioOf compares round by round, so that a slow round affects both sides. For runs that cannot be paired
// it returns the ratio of the medians.
func ratioOf(values, base []float64) Spread {
	if len(values) != len(base) {
		v, b := spreadOf(values), spreadOf(base)
		if v.N == 0 || b.N == 0 {
			return Spread{}
		}
		values, base = []float64{v.Median}, []float64{b.Median}
	}
	each := make([]float64, len(values))
	for i := range values {
		each[i] = values[i] / base[i]
		if base[i] == 0 || math.IsInf(base[i], 0) || math.IsInf(values[i], 0) {
			each[i] = math.NaN()
		}
	}
	return spreadOf(each)
}

// Text is the median: "1.23 ms".
func (c Cell) Text() string {
	if c.Value.N == 0 {
		return ""
	}
	return c.unit.format(c.Value.Median)
}

// Range is the range of several rounds: "1.10–1.40".
func (c Cell) Range() string {
	if c.Value.N < 2 {
		return ""
	}
	return c.unit.interval(c.Value.Min, c.Value.Max, c.Value.Median)
}

// RatioText is the median ratio: "1.52x".
func (c Cell) RatioText() string {
	if c.Ratio.N == 0 {
		return ""
	}
	return ratios.format(c.Ratio.Median)
}

// RatioRange is the range of the ratios of several rounds.
func (c Cell) RatioRange() string {
	if c.Ratio.N < 2 {
		return ""
	}
	return ratios.interval(c.Ratio.Min, c.Ratio.Max, c.Ratio.Median)
}

// Verdict is "better" or "worse" than the first server if all rounds agree, and empty otherwise.
func (r *Row) Verdict(c Cell) string {
	grew, shrank := c.Ratio.N > 1 && c.Ratio.Min > 1, c.Ratio.N > 1 && c.Ratio.Max < 1
	switch {
	case r.metric.better == lower && shrank, r.metric.better == higher && grew:
		return "better"
	case r.metric.better == lower && grew, r.metric.better == higher && shrank:
		return "worse"
	}
	return ""
}

// PrintTable prints the summary or the full table.
func PrintTable(out io.Writer, doc *Document, full bool) error {
	table := Compare(doc.Results)
	if full {
		return table.WriteText(out)
	}
	return table.WriteSummary(out)
}

// WriteText prints every metric. It has a line per metric and server, so that its width does not depend on
// the number of servers.
func (t *Table) WriteText(w io.Writer) error { return t.write(w, (*Section).writeText) }

// write prints the sections with one.
func (t *Table) write(w io.Writer, one func(*Section, *strings.Builder)) error {
	var text strings.Builder
	for i, s := range t.Sections {
		if i > 0 {
			text.WriteString("\n")
		}
		one(s, &text)
	}
	if _, err := io.WriteString(w, withoutTrailingSpace(text.String())); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	return nil
}

func (s *Section) writeText(text *strings.Builder) {
	fmt.Fprintf(text, "%s\n%s\n\n", s.Title, s.Method())
	lines := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	group := ""
	for i, row := range s.Rows {
		if i > 0 && row.Group != group {
			fmt.Fprintln(lines, "\t\t\t\t\t")
		}
		group = row.Group
		name := row.Name
		for k, c := range row.Cells {
			if c.Value.N == 0 {
				continue
			}
			fmt.Fprintf(lines, "%s\t%s\t%s\t%s\t%s\t%s\n", name, s.Servers[k].Label(), c.Text(), c.Range(), c.RatioText(), c.RatioRange())
			name = ""
		}
	}
	lines.Flush()
	s.writeFootnotes(text)
}

// writeFootnotes explains the doubt signs.
func (s *Section) writeFootnotes(text *strings.Builder) {
	footnotes := slices.Clone(s.Notes)
	done := map[string]bool{}
	for _, c := range s.Servers {
		if c.Doubtful == 0 || done[c.Caveats()] {
			continue
		}
		var names []string
		for _, other := range s.Servers {
			if other.Doubtful > 0 && other.Caveats() == c.Caveats() {
				names = append(names, other.Label())
			}
		}
		done[c.Caveats()] = true
		footnotes = append(footnotes, strings.Join(names, ", ")+"  "+c.Caveats())
	}
	if len(footnotes) > 0 {
		fmt.Fprintf(text, "\n%s\n", strings.Join(footnotes, "\n"))
	}
}

// withoutTrailingSpace removes the padding that a tabwriter leaves after empty cells.
func withoutTrailingSpace(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n")
}

// Method describes the values: "Median of 3 rounds, with minimum and maximum; ratios to carillon."
func (s *Section) Method() string { return s.method("with minimum and maximum") }

func (s *Section) method(spread string) string {
	first := s.Servers[0]
	text := "Single round, noise unknown"
	if n := len(first.paired); n > 1 {
		text = fmt.Sprintf("Median of %d rounds, %s", n, spread)
	}
	if len(s.Servers) > 1 {
		text += "; ratios to " + plain(first.Name)
	}
	return text + "."
}
