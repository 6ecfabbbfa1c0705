package report

import (
	"fmt"
	"math"
	"strconv"

	"github.com/HdrHistogram/hdrhistogram-go"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
)

// deepest is the highest percentile drawn, as 1/(1-p): 99.9999%.
const deepest = 1e6

// percentileChart draws whole distributions: latency over 1/(1-p), both logarithmic, so that each step to
// the right adds a nine.
func percentileChart(title, caption string, of func(*Result) *Latency) func(*Section) (*chart, error) {
	return func(s *Section) (*chart, error) {
		c := &chart{Title: title, Caption: caption}
		p := newPlot()
		addGrid(p, true, true)
		lowest, highest, last := math.Inf(1), 0.0, 10.0
		coarse, merged := false, false
		for i, server := range s.Servers {
			points, whole := percentilePoints(server.Runs, of)
			if len(points) == 0 {
				continue
			}
			coarse = coarse || !whole
			merged = merged || len(server.Runs) > 1
			for _, xy := range points {
				lowest, highest, last = min(lowest, xy.Y), max(highest, xy.Y), max(last, xy.X)
			}
			line, err := plotter.NewLine(points)
			if err != nil {
				return nil, fmt.Errorf("draw %s: %w", title, err)
			}
			line.LineStyle = seriesLine(i, 1.8)
			p.Add(line)
			c.Legend = append(c.Legend, legendItem{server.Label(), seriesPaint(i), dashOf(i)})
		}
		if len(c.Legend) == 0 {
			return nil, nil
		}
		if merged {
			c.Caption += " All rounds are merged."
		}
		if coarse {
			c.Caption += " Some runs have no readable histogram; straight lines connect the known percentiles."
		}
		p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
		p.X.Min, p.X.Max = 1, last
		p.Y.Min, p.Y.Max = logRange(lowest, highest)
		p.X.Tick.Marker, p.Y.Tick.Marker = plot.TickerFunc(percentileTicks), logTicks(microseconds)
		p.X.Label.Text = "percentile"
		svg, err := svgOf(p, plotHeight, title+" by percentile")
		c.SVG = svg
		return c, err
	}
}

func percentileTicks(_, highest float64) []plot.Tick {
	ticks := []plot.Tick{{Value: 1, Label: "0"}, {Value: 2, Label: "50"}}
	for at := 10.0; at <= highest*1.0001; at *= 10 {
		ticks = append(ticks, plot.Tick{Value: at, Label: strconv.FormatFloat(100-100/at, 'g', 10, 64)})
	}
	return ticks
}

// percentilePoints merges the histograms of runs. If one is unreadable, it uses the recorded percentiles and
// whole is false.
func percentilePoints(runs []*Result, of func(*Result) *Latency) (points plotter.XYs, whole bool) {
	var recorded []*Latency
	var all *hdrhistogram.Histogram
	whole = true
	for _, r := range runs {
		l := of(r)
		if l == nil || l.Count <= 0 {
			continue
		}
		recorded = append(recorded, l)
		h, err := hdrhistogram.Decode([]byte(l.Histogram))
		switch {
		case err != nil || h.TotalCount() == 0:
			whole = false
		case all == nil:
			all = h
		case h.HighestTrackableValue() > all.HighestTrackableValue():
			h.Merge(all)
			all = h
		default:
			all.Merge(h)
		}
	}
	if len(recorded) == 0 {
		return nil, true
	}
	if !whole {
		return recordedPoints(recorded), false
	}
	return histogramPoints(all), true
}

// histogramPoints samples thirty percentiles per decade, evenly on the axis.
func histogramPoints(h *hdrhistogram.Histogram) plotter.XYs {
	last := min(float64(h.TotalCount()), deepest)
	var at, percents []float64
	for i := 0; ; i++ {
		x := min(math.Pow(10, float64(i)/30), last)
		at = append(at, x)
		percents = append(percents, 100*(1-1/x))
		if x >= last {
			break
		}
	}
	var points plotter.XYs
	for i, v := range h.ValueAtPercentilesSlice(percents) {
		points = append(points, plotter.XY{X: at[i], Y: max(float64(v), 1)})
	}
	return points
}

// recordedPoints returns the median of each recorded percentile over the rounds.
func recordedPoints(recorded []*Latency) plotter.XYs {
	var points plotter.XYs
	for _, part := range []struct {
		at float64
		of func(*Latency) float64
	}{
		{2, func(l *Latency) float64 { return l.P50 }},
		{10, func(l *Latency) float64 { return l.P90 }},
		{100, func(l *Latency) float64 { return l.P99 }},
		{1000, func(l *Latency) float64 { return l.P999 }},
	} {
		var values []float64
		for _, l := range recorded {
			values = append(values, part.of(l))
		}
		points = append(points, plotter.XY{X: part.at, Y: max(spreadOf(values).Median, 1)})
	}
	return points
}

// NewLatency summarizes a histogram. It returns nil if the histogram is empty.
func NewLatency(h *hdrhistogram.Histogram) *Latency {
	if h.TotalCount() == 0 {
		return nil
	}
	l := &Latency{
		Count: h.TotalCount(),
		Mean:  h.Mean(),
		P50:   float64(h.ValueAtPercentile(50)),
		P90:   float64(h.ValueAtPercentile(90)),
		P99:   float64(h.ValueAtPercentile(99)),
		P999:  float64(h.ValueAtPercentile(99.9)),
		Max:   float64(h.Max()),
	}
	if encoded, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err == nil {
		l.Histogram = string(encoded)
	}
	return l
}
