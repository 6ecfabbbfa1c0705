package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// summaryColumn is a column of the summary.
type summaryColumn struct{ heading, metric string }

// summaryColumns are the metrics that each load is run for. The full table has all.
var summaryColumns = map[string][]summaryColumn{
	"idle": { // idle sockets have no buffers, so their kernel memory is in the slab
		{"handshakes/s", "connections/s"}, {"CPU/handshake", "CPU per handshake"},
		{"RSS/conn", "RSS per connection"}, {"kernel/conn", "slab per connection"},
	},
	"echo": {
		{"messages/s", "received/s"}, {"p50", "latency p50"}, {"p99", "latency p99"}, {"CPU/message", "CPU per delivery"},
	},
	"fanout": {
		{"deliveries/s", "received/s"}, {"p99", "latency p99"}, {"completion p99", "completion p99"}, {"CPU/delivery", "CPU per delivery"},
	},
	"storm": {
		{"95% back", "95% reconnected"}, {"all back", "all reconnected"}, {"peak CPU", "peak server CPU"}, {"peak RSS", "peak server RSS"},
	},
}

// WriteSummary prints a line per server and load with the main metrics and all faults.
func (t *Table) WriteSummary(w io.Writer) error { return t.write(w, (*Section).writeSummary) }

func (s *Section) writeSummary(text *strings.Builder) {
	columns := summaryColumns[s.command]
	if columns == nil { // a command of a newer version
		s.writeText(text)
		return
	}
	fmt.Fprintf(text, "%s\n%s\n\n", s.Title, s.method("± largest deviation"))
	grid := newGrid(s.Servers)
	for _, k := range columns {
		if row := s.row(k.metric); row != nil {
			grid.add(k.heading, row, func(c Cell) [3]string { return [3]string{c.Text(), c.Margin(), c.RatioText()} })
		}
	}
	for _, row := range s.Rows {
		if row.metric.hideZero { // deviations and ratios mean nothing for faults
			grid.add(row.Name, row, func(c Cell) [3]string { return [3]string{c.Highest()} })
		}
	}
	grid.write(text)
	s.writeFootnotes(text)
}

// Margin is the largest deviation of a round from the median: "±3%".
func (c Cell) Margin() string {
	v := c.Value
	switch {
	case v.N < 2 || v.Median == 0 || math.IsInf(v.Median, 0):
		return ""
	case math.IsInf(v.Max, 0):
		return "or never"
	}
	return fmt.Sprintf("±%.0f%%", 100*max(v.Max-v.Median, v.Median-v.Min)/math.Abs(v.Median))
}

// Highest is the highest value of all rounds.
func (c Cell) Highest() string {
	if c.Value.N == 0 {
		return ""
	}
	return c.unit.format(c.Value.Max)
}

// grid aligns columns whose cells have three parts each.
type grid struct {
	names    []string
	headings []string
	columns  [][][3]string // by heading and name
}

func newGrid(servers []*Entrant) *grid {
	g := &grid{}
	for _, c := range servers {
		g.names = append(g.names, c.Label())
	}
	return g
}

func (g *grid) add(heading string, row *Row, parts func(Cell) [3]string) {
	var column [][3]string
	for _, c := range row.Cells {
		column = append(column, parts(c))
	}
	g.headings = append(g.headings, heading)
	g.columns = append(g.columns, column)
}

func (g *grid) write(text *strings.Builder) {
	lines := make([]string, 1+len(g.names))
	nameWidth := widest(g.names)
	lines[0] = strings.Repeat(" ", nameWidth)
	for i, name := range g.names {
		lines[i+1] = name + strings.Repeat(" ", nameWidth-utf8.RuneCountInString(name))
	}
	for i, column := range g.columns {
		cells := aligned(column)
		width := widest(append(slices.Clone(cells), g.headings[i]))
		for k, cell := range append([]string{g.headings[i]}, cells...) {
			lines[k] += "  " + cell + strings.Repeat(" ", width-utf8.RuneCountInString(cell))
		}
	}
	fmt.Fprintln(text, strings.Join(lines, "\n"))
}

// aligned right-aligns the parts of the cells. All cells have the same width.
func aligned(column [][3]string) []string {
	cells := make([]string, len(column))
	for part := range 3 {
		var all []string
		for _, parts := range column {
			all = append(all, parts[part])
		}
		width := widest(all)
		for i, one := range all {
			if width > 0 && part > 0 {
				cells[i] += " "
			}
			cells[i] += strings.Repeat(" ", width-utf8.RuneCountInString(one)) + one
		}
	}
	return cells
}

func widest(texts []string) int {
	width := 0
	for _, t := range texts {
		width = max(width, utf8.RuneCountInString(t))
	}
	return width
}
