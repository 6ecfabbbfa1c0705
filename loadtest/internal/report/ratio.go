package report

import (
	"fmt"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// ratioMetrics are the metrics in the chart of ratios. Lower is better for all of them.
var ratioMetrics = []string{
	"latency p50", "latency p99", "completion p99", "all reconnected", "handshake p99",
	"CPU per delivery", "CPU per handshake", "RSS per connection", "kernel per connection",
}

// ratioChart draws each server's costs as multiples of the first server's.
func ratioChart(s *Section) (*chart, error) {
	if len(s.Servers) < 2 {
		return nil, nil
	}
	var rows []*Row
	lowest, highest := 0.8, 1.25
	for _, name := range ratioMetrics {
		row := s.row(name)
		if row == nil {
			continue
		}
		drawn := false
		for _, c := range row.Cells[1:] {
			if c.Ratio.N > 0 && c.Ratio.Min > 0 {
				lowest, highest, drawn = min(lowest, c.Ratio.Min), max(highest, c.Ratio.Max), true
			}
		}
		if drawn {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		return nil, nil
	}
	c := &chart{
		Title:   "Ratios to " + plain(s.Servers[0].Name),
		Caption: "Left of 1 is better. Dots are median ratios, whiskers span all rounds.",
	}
	p := newPlot()
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(ratioTicks)
	p.X.Min, p.X.Max = lowest/1.1, highest*1.1
	names := make([]string, len(rows))
	for i, row := range rows {
		names[len(rows)-1-i] = row.Name
	}
	nominal(p, names)
	addGrid(p, true, false)
	if err := addRatios(p, s, rows); err != nil {
		return nil, fmt.Errorf("draw %s: %w", c.Title, err)
	}
	for i, server := range s.Servers[1:] {
		c.Legend = append(c.Legend, legendItem{Label: server.Label(), Paint: seriesPaint(i + 1)})
	}
	rowHeight := 14 + 9*(len(s.Servers)-1)
	svg, err := svgOf(p, vg.Length(44+rowHeight*len(rows)), c.Title)
	c.SVG = svg
	return c, err
}

func addRatios(p *plot.Plot, s *Section, rows []*Row) error {
	one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: p.Y.Min}, {X: 1, Y: p.Y.Max}})
	if err != nil {
		return err
	}
	one.LineStyle = draw.LineStyle{Color: paintInk.colour(), Width: 1}
	p.Add(one)
	others := float64(len(s.Servers) - 1)
	for i, row := range rows {
		for k, c := range row.Cells[1:] {
			if c.Ratio.N == 0 || c.Ratio.Min <= 0 {
				continue
			}
			at := float64(len(rows)-1-i) + 0.7*((others-1)/2-float64(k))/others
			if c.Ratio.N > 1 {
				if err := addWhisker(p, c.Ratio, at, seriesPaint(k+1)); err != nil {
					return err
				}
			}
			dot, err := plotter.NewScatter(plotter.XYs{{X: c.Ratio.Median, Y: at}})
			if err != nil {
				return err
			}
			dot.GlyphStyle = draw.GlyphStyle{Color: seriesPaint(k + 1).colour(), Radius: 3.5, Shape: draw.CircleGlyph{}}
			p.Add(dot)
		}
	}
	return nil
}

// ratioTicks labels powers of two, or of ten over a wide range.
func ratioTicks(lowest, highest float64) []plot.Tick {
	by := 2.0
	switch {
	case highest/lowest > 40:
		by = 10
	case highest/lowest < 3:
		by = math.Sqrt2
	}
	var ticks []plot.Tick
	for i := math.Ceil(math.Log(lowest) / math.Log(by)); math.Pow(by, i) <= highest; i++ {
		v := math.Pow(by, i)
		ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.2gx", v)})
	}
	return ticks
}
