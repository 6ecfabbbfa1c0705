package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// summaryColumn is a column of the short table.
type summaryColumn struct{ heading, metric string }

// summaryColumns are what each load is run for. All others are in the long table.
var summaryColumns = map[string][]summaryColumn{
	"idle": { // sockets at rest have no buffers: what they take is in the kernel's other objects
		{"handshakes/s", "connections/s"}, {"CPU/handshake", "CPU per handshake"},
		{"RSS/conn", "RSS per connection"}, {"kernel/conn", "slab per connection"},
	},
	"echo": {
		{"messages/s", "received/s"}, {"p50", "latency p50"}, {"p99", "latency p99"}, {"CPU/message", "CPU per delivery"},
	},
	"fanout": {
		{"deliveries/s", "received/s"}, {"p99", "latency p99"}, {"to all, p99", "completion p99"}, {"CPU/delivery", "CPU per delivery"},
	},
	"storm": {
		{"95% back", "95% back after"}, {"all back", "all back after"}, {"peak CPU", "peak server CPU"}, {"peak RSS", "peak server RSS"},
	},
}

// WriteSummary prints a line for each server under each load, with the figures that matter most and with
// all that went wrong.
func (t *Table) WriteSummary(w io.Writer) error { return t.write(w, (*Section).writeSummary) }

func (s *Section) writeSummary(text *strings.Builder) {
	keys := summaryColumns[s.command]
	if keys == nil { // a command of a later version
		s.writeText(text)
		return
	}
	fmt.Fprintf(text, "%s\n%s\n\n", s.Title, s.method("± how far they were from it at most"))
	grid := newGrid(s.Servers)
	for _, k := range keys {
		if row := s.row(k.metric); row != nil {
			grid.add(k.heading, row, func(c Cell) [3]string { return [3]string{c.Text(), c.Margin(), c.RatioText()} })
		}
	}
	for _, row := range s.Rows {
		if row.metric.hideZero { // a fault in one round has no margin to speak of, and a ratio to none says nothing
			grid.add(row.Name, row, func(c Cell) [3]string { return [3]string{c.Highest()} })
		}
	}
	grid.write(text)
	s.writeFootnotes(text)
}

// Margin is how far the rounds were from the median at most: "±3%".
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

// Highest is the largest of the rounds.
func (c Cell) Highest() string {
	if c.Value.N == 0 {
		return ""
	}
	return c.unit.format(c.Value.Max)
}

// grid lines columns up that have three parts each, under a heading for all three.
type grid struct {
	names    []string
	headings []string
	columns  [][][3]string // for each heading, for each name
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
	beside := widest(g.names)
	lines[0] = strings.Repeat(" ", beside)
	for i, name := range g.names {
		lines[i+1] = name + strings.Repeat(" ", beside-utf8.RuneCountInString(name))
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

// aligned puts the parts of each cell right under each other. All cells come out equally wide.
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
