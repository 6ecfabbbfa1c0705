package report

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// sectionCharts draws the charts that the runs of a section have metrics for.
func sectionCharts(s *Section) ([]chart, error) {
	var all []chart
	for _, draw := range []func(*Section) (*chart, error){
		percentileChart("Latency", "Time from when a message was due until a receiver had it.", func(r *Result) *Latency { return r.Latency }),
		percentileChart("Completion", "Time from when a message was due until its last receiver had it.", func(r *Result) *Latency { return r.Completion }),
		percentileChart("Handshake", "Time from connecting to the last byte of the server’s response.", func(r *Result) *Latency { return r.Connections.Handshake }),
		seriesChart("Connections over time", counts, inStorm, func(p Point) float64 { return float64(p.Connections) }),
		seriesChart("Server CPU over time", processors, inStorm, func(p Point) float64 { return p.ServerCores }),
		seriesChart("Server RSS over time", sizes, inStorm, func(p Point) float64 { return float64(p.ServerRSS) }),
		seriesChart("Latency p99 over time", microseconds, notInStorm, func(p Point) float64 { return p.P99 }),
		barChart("CPU per delivery", "Server CPU time per message received by a client.", "CPU per delivery"),
		barChart("Messages received", "Per second, all clients together.", "received/s"),
		memoryChart,
		barChart("Connections per second", "Average until all connections were open or had failed.", "connections/s"),
		barChart("Time to reconnect", "From the cut until every client had reconnected.", "all reconnected"),
		ratioChart,
	} {
		c, err := draw(s)
		if err != nil {
			return nil, err
		}
		if c != nil {
			all = append(all, *c)
		}
	}
	return all, nil
}

func inStorm(r *Result) bool    { return r.Storm != nil }
func notInStorm(r *Result) bool { return r.Storm == nil }

// row finds a row by the name of its metric.
func (s *Section) row(name string) *Row {
	for _, r := range s.Rows {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// bar is a horizontal bar.
type bar struct {
	server int
	spread Spread
	more   float64 // stacked on it
	label  string
}

func finite(s Spread) bool {
	return s.N > 0 && s.Min >= 0 && !math.IsInf(s.Max, 0)
}

func barChart(title, caption, metric string) func(*Section) (*chart, error) {
	return func(s *Section) (*chart, error) {
		row := s.row(metric)
		if row == nil {
			return nil, nil
		}
		var bars []bar
		for i, c := range row.Cells {
			if finite(c.Value) {
				bars = append(bars, bar{server: i, spread: c.Value, label: c.Text()})
			}
		}
		return drawBars(s, &chart{Title: title, Caption: caption + whiskers(bars)}, bars, row.metric.unit)
	}
}

// memoryChart stacks kernel memory on the server's own.
func memoryChart(s *Section) (*chart, error) {
	own, kernel := s.row("RSS per connection"), s.row("kernel per connection")
	if own == nil && kernel == nil {
		return nil, nil
	}
	var bars []bar
	for i := range s.Servers {
		b := bar{server: i}
		if own != nil && finite(own.Cells[i].Value) {
			b.spread = own.Cells[i].Value
		}
		if kernel != nil && finite(kernel.Cells[i].Value) {
			b.more = kernel.Cells[i].Value.Median
		}
		b.label = sizes.format(b.spread.Median)
		if b.more > 0 {
			b.label += " + " + sizes.format(b.more)
		}
		if b.spread.N > 0 || b.more > 0 {
			bars = append(bars, b)
		}
	}
	c := &chart{Title: "Memory per connection", Caption: "Coloured: RSS of the server."}
	if kernel != nil {
		c.Caption += " Grey: kernel socket buffers of both ends, including the generator’s."
	}
	c.Caption += whiskers(bars)
	return drawBars(s, c, bars, sizes)
}

func whiskers(bars []bar) string {
	if slices.ContainsFunc(bars, func(b bar) bool { return b.spread.N > 1 }) {
		return " Bars are medians, whiskers span all rounds."
	}
	return ""
}

func drawBars(s *Section, c *chart, bars []bar, u unit) (*chart, error) {
	highest := 0.0
	for _, b := range bars {
		highest = max(highest, b.end())
	}
	if highest == 0 {
		return nil, nil
	}
	p := newPlot()
	addGrid(p, true, false)
	names := make([]string, len(bars))
	for i, b := range bars {
		at := float64(len(bars) - 1 - i) // first on top
		names[len(bars)-1-i] = axisLabel(s.Servers[b.server])
		if err := addBar(p, b, at, highest); err != nil {
			return nil, fmt.Errorf("draw %s: %w", c.Title, err)
		}
	}
	nominal(p, names)
	p.X.Min, p.X.Max = 0, roomFor(bars, names)
	p.X.Tick.Marker = scaleTicks(u)
	svg, err := svgOf(p, vg.Length(44+30*len(bars)), c.Title)
	c.SVG = svg
	return c, err
}

// roomFor is where the axis has to end so that the labels right of the bars fit.
func roomFor(bars []bar, names []string) float64 {
	style := textStyle(text.XLeft, text.YCenter)
	nameWidth := vg.Length(0)
	for _, name := range names {
		nameWidth = max(nameWidth, style.Width(name))
	}
	room := chartWidth - nameWidth - 20
	end := 0.0
	for _, b := range bars {
		end = max(end, b.end()/max(0.2, 1-float64((style.Width(b.label)+14)/room)))
	}
	return end
}

func (b bar) end() float64 { return max(b.spread.Max, b.spread.Median+b.more) }

// nominal labels 0, 1 and so on of the Y axis with names.
func nominal(p *plot.Plot, names []string) {
	var ticks []plot.Tick
	for i, name := range names {
		ticks = append(ticks, plot.Tick{Value: float64(i), Label: name})
	}
	p.Y.Tick.Marker = plot.ConstantTicks(ticks)
	p.Y.Tick.Length = 0
	p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4
	p.Y.Padding = 4
}

func addBar(p *plot.Plot, b bar, at, highest float64) error {
	own, err := plotter.NewBarChart(plotter.Values{b.spread.Median}, 17)
	if err != nil {
		return err
	}
	own.Horizontal, own.XMin = true, at
	own.Color, own.LineStyle = seriesPaint(b.server).colour(), draw.LineStyle{}
	p.Add(own)
	if b.more > 0 {
		kernel, err := plotter.NewBarChart(plotter.Values{b.more}, 17)
		if err != nil {
			return err
		}
		kernel.Horizontal = true
		kernel.StackOn(own)
		kernel.Color, kernel.LineStyle = paintKernel.colour(), draw.LineStyle{}
		p.Add(kernel)
	}
	if b.spread.N > 1 {
		if err := addWhisker(p, b.spread, at, paintInk); err != nil {
			return err
		}
	}
	labels, err := plotter.NewLabels(plotter.XYLabels{
		XYs: plotter.XYs{{X: b.end() + highest*0.015, Y: at}}, Labels: []string{b.label}})
	if err != nil {
		return err
	}
	labels.TextStyle[0] = textStyle(text.XLeft, text.YCenter)
	p.Add(labels)
	return nil
}

func addWhisker(p *plot.Plot, s Spread, at float64, colour paint) error {
	whisker, err := plotter.NewXErrorBars(struct {
		plotter.XYs
		plotter.XErrors
	}{plotter.XYs{{X: s.Median, Y: at}}, plotter.XErrors{{Low: s.Median - s.Min, High: s.Max - s.Median}}})
	if err != nil {
		return err
	}
	whisker.LineStyle = draw.LineStyle{Color: colour.colour(), Width: 1.2}
	p.Add(whisker)
	return nil
}

// seriesChart draws a line per round.
func seriesChart(title string, u unit, wanted func(*Result) bool, of func(Point) float64) func(*Section) (*chart, error) {
	return func(s *Section) (*chart, error) {
		c := &chart{Title: title}
		p := newPlot()
		addGrid(p, false, true)
		highest, last := 0.0, 0.0
		for i, server := range s.Servers {
			drawn := false
			for _, r := range server.Runs {
				var xys plotter.XYs
				for _, point := range r.Series {
					if v := of(point); wanted(r) && v >= 0 && point.At >= 0 {
						xys = append(xys, plotter.XY{X: point.At, Y: v})
						highest, last = max(highest, v), max(last, point.At)
						drawn = drawn || v > 0
					}
				}
				if len(xys) < 2 {
					continue
				}
				line, err := plotter.NewLine(xys)
				if err != nil {
					return nil, fmt.Errorf("draw %s: %w", title, err)
				}
				line.LineStyle = seriesLine(i, 1.4)
				p.Add(line)
			}
			if drawn {
				c.Legend = append(c.Legend, legendItem{server.Label(), seriesPaint(i), dashOf(i)})
			}
			if len(server.Runs) > 1 && c.Caption == "" {
				c.Caption = "One line per round."
			}
		}
		if highest == 0 || last == 0 || len(c.Legend) == 0 {
			return nil, nil
		}
		p.X.Min, p.X.Max = 0, last
		p.Y.Min, p.Y.Max = 0, highest*1.05
		p.X.Label.Text = "seconds since the start of the run"
		p.X.Tick.Marker, p.Y.Tick.Marker = scaleTicks(unit{steps: []step{{1, ""}}}), scaleTicks(u)
		svg, err := svgOf(p, plotHeight, title)
		c.SVG = svg
		return c, err
	}
}
