package report

import (
	"bytes"
	"fmt"
	"html"
	"html/template"
	"image/color"
	"math"
	"regexp"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// chart is one drawing of the report. Its colours are the style sheet's, so that it follows the
// reader's light or dark mode and prints black on white.
type chart struct {
	Title   string
	Caption string
	Legend  []legendItem
	SVG     template.HTML
}

type legendItem struct {
	Label string
	Paint paint
	Dash  string // stroke-dasharray, empty is a solid line
}

// paint is a colour variable of the style sheet. Drawn it is a colour that nothing else has, which
// svgOf replaces by the variable.
type paint string

const (
	paintInk    paint = "ink"
	paintFaint  paint = "faint"
	paintKernel paint = "kernel"

	seriesPaints = 8
	chartWidth   = 390 // points; small, for on a phone the whole chart shrinks
	plotHeight   = 260
	textSize     = 12
)

func seriesPaint(i int) paint { return paint(fmt.Sprintf("s%d", i%seriesPaints+1)) }

var paints = func() []paint {
	all := []paint{paintInk, paintFaint, paintKernel}
	for i := range seriesPaints {
		all = append(all, seriesPaint(i))
	}
	return all
}()

func (p paint) colour() color.Color {
	for i, known := range paints {
		if p == known {
			return color.RGBA{R: 0, G: 255, B: uint8(i*17 + 1), A: 255}
		}
	}
	panic("no such paint: " + string(p))
}

// seriesDashes tell the lines apart where colours can't.
var seriesDashes = [][]vg.Length{nil, {7, 3}, {2, 2}, {8, 3, 2, 3}}

func dashOf(i int) string {
	var parts []string
	for _, d := range seriesDashes[i%len(seriesDashes)] {
		parts = append(parts, fmt.Sprint(float64(d)))
	}
	return strings.Join(parts, " ")
}

func seriesLine(i int, width vg.Length) draw.LineStyle {
	return draw.LineStyle{Color: seriesPaint(i).colour(), Width: width, Dashes: seriesDashes[i%len(seriesDashes)]}
}

var (
	chartFont  = font.Font{Typeface: "Liberation", Variant: "Sans"}
	chartPlain = text.Plain{Fonts: font.DefaultCache}
)

func textStyle(x text.XAlignment, y text.YAlignment) text.Style {
	return text.Style{
		Color: paintInk.colour(), Font: font.From(chartFont, textSize),
		XAlign: x, YAlign: y, Handler: chartPlain,
	}
}

// newPlot has no background, title or legend: the page around it has those, as text that wraps.
func newPlot() *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	p.TextHandler = chartPlain
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color = paintInk.colour()
		axis.Tick.Color = paintInk.colour()
		axis.Tick.Length = 4
		axis.Padding = 0
		axis.Label.TextStyle = textStyle(text.XCenter, text.YBottom)
		axis.Label.Padding = 4
	}
	p.X.Tick.Label = textStyle(text.XCenter, text.YTop)
	p.Y.Tick.Label = textStyle(text.XRight, text.YCenter)
	return p
}

func addGrid(p *plot.Plot, vertical, horizontal bool) {
	grid := plotter.NewGrid()
	grid.Vertical = draw.LineStyle{}
	grid.Horizontal = draw.LineStyle{}
	faint := draw.LineStyle{Color: paintFaint.colour(), Width: 0.5}
	if vertical {
		grid.Vertical = faint
	}
	if horizontal {
		grid.Horizontal = faint
	}
	p.Add(grid)
}

var (
	svgHead = regexp.MustCompile(`(?s)^.*?<svg [^>]*>`)
	svgFont = regexp.MustCompile(`font-family:[^"]*?font-size:`)
	svgText = regexp.MustCompile(`(?s)<text ([^>]*)>([^<]*)</text>`)
	svgInk  = regexp.MustCompile(`#00FF[0-9A-F]{2}`)
)

// svgOf draws p as an element to be put into the page. It scales with the page's width.
func svgOf(p *plot.Plot, height vg.Length, title string) (template.HTML, error) {
	canvas := vgsvg.New(chartWidth, height)
	p.Draw(draw.Crop(draw.New(canvas), 2, -6, 2, -6))
	var buf bytes.Buffer
	if _, err := canvas.WriteTo(&buf); err != nil {
		return "", fmt.Errorf("draw %s: %w", title, err)
	}
	svg := svgHead.ReplaceAllString(buf.String(), fmt.Sprintf(`<svg viewBox="0 0 %d %g" role="img" aria-label="%s">`,
		chartWidth, float64(height), template.HTMLEscapeString(title)))
	svg = svgFont.ReplaceAllString(svg, "font-size:")
	// The reader's font may be wider than the one that the layout was made with.
	svg = svgText.ReplaceAllStringFunc(svg, func(element string) string {
		parts := svgText.FindStringSubmatch(element)
		width := textStyle(text.XLeft, text.YTop).Width(html.UnescapeString(parts[2]))
		return fmt.Sprintf(`<text textLength="%.1f" lengthAdjust="spacingAndGlyphs" %s>%s</text>`, float64(width), parts[1], parts[2])
	})
	variables := map[string]string{}
	for _, known := range paints {
		r, g, b, _ := known.colour().RGBA()
		variables[fmt.Sprintf("#%02X%02X%02X", r>>8, g>>8, b>>8)] = "var(--" + string(known) + ")"
	}
	svg = svgInk.ReplaceAllStringFunc(svg, func(hex string) string { return variables[hex] })
	return template.HTML(svg), nil
}

// scaleTicks are about five ticks from 0 on in round numbers of u's step for the largest.
func scaleTicks(u unit) plot.TickerFunc {
	return func(_, most float64) []plot.Tick {
		s := u.step(most)
		by := roundStep(most / s.size / 5)
		var ticks []plot.Tick
		for i := 0; i < 8 && float64(i)*by*s.size <= most*1.0001; i++ { // no more, for the step of a tiny number may be 0
			at := float64(i) * by
			label := fmt.Sprintf("%.4g%s", at, s.suffix)
			if at == 0 {
				label = "0"
			}
			ticks = append(ticks, plot.Tick{Value: at * s.size, Label: label})
		}
		return ticks
	}
}

// roundStep is the next 1, 2 or 5 times a power of ten from v up.
func roundStep(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, digit := range []float64{1, 2, 5} {
		if v <= digit*power*1.0001 {
			return digit * power
		}
	}
	return 10 * power
}

// logTicks label the powers of ten, and 2 and 5 between them if there are few. The other digits
// have ticks without labels.
func logTicks(u unit) plot.TickerFunc {
	return func(least, most float64) []plot.Tick {
		few := most/least < 150
		var ticks []plot.Tick
		for power := math.Pow(10, math.Floor(math.Log10(least))); power <= most*1.0001; power *= 10 {
			for digit := 1.0; digit < 10; digit++ {
				v := digit * power
				if v < least*0.9999 || v > most*1.0001 {
					continue
				}
				tick := plot.Tick{Value: v}
				if digit == 1 || few && (digit == 2 || digit == 5) {
					tick.Label = u.tick(v)
				}
				ticks = append(ticks, tick)
			}
		}
		return ticks
	}
}

// tick is v without digits that say nothing: "5 ms".
func (u unit) tick(v float64) string {
	s := u.step(v)
	return fmt.Sprintf("%.3g%s", v/s.size, s.suffix)
}

// logRange widens least and most to round numbers that differ.
func logRange(least, most float64) (from, to float64) {
	to = roundStep(most)
	from = math.Pow(10, math.Floor(math.Log10(least)))
	for _, digit := range []float64{2, 5} {
		if power := math.Pow(10, math.Floor(math.Log10(least))); digit*power <= least {
			from = digit * power
		}
	}
	if from >= to {
		to = from * 10
	}
	return from, to
}

// axisLabel keeps a name from taking the room of the chart. The whole name is in the tables.
func axisLabel(c *Entrant) string {
	const most = 20
	name := plain(c.Name)
	sign := strings.TrimPrefix(c.Label(), name)
	if letters := []rune(name); len(letters) > most {
		name = string(letters[:most-1]) + "…"
	}
	return name + sign
}
