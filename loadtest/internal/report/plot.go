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

// chart is one chart of the report. Its colours come from the style sheet, so that it follows light or dark
// mode and prints well.
type chart struct {
	Title   string
	Caption string
	Legend  []legendItem
	SVG     template.HTML
}

type legendItem struct {
	Label string
	Paint paint
	Dash  string // stroke-dasharray; empty is solid
}

// paint is a colour variable of the style sheet. It is drawn as a unique colour that svgOf replaces with the
// variable.
type paint string

const (
	paintInk    paint = "ink"
	paintFaint  paint = "faint"
	paintKernel paint = "kernel"

	seriesPaints = 8
	chartWidth   = 390 // points; small, since charts shrink to the width of a phone
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
	panic("unknown paint: " + string(p))
}

// seriesDashes distinguish lines without colour.
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

// newPlot has no background, title or legend. The page has those, as text that wraps.
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

// svgOf draws p as an SVG element that scales with the page.
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
	// The browser's font may be wider than the one used for layout.
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

// scaleTicks returns about five round ticks from 0, in u's step for the highest value.
func scaleTicks(u unit) plot.TickerFunc {
	return func(_, highest float64) []plot.Tick {
		s := u.step(highest)
		by := roundStep(highest / s.size / 5)
		var ticks []plot.Tick
		for i := 0; i < 8 && float64(i)*by*s.size <= highest*1.0001; i++ { // bounded, since the step of a tiny number may be 0
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

// roundStep rounds v up to 1, 2 or 5 times a power of ten.
func roundStep(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, digit := range []float64{1, 2, 5} {
		if v <= digit*power*1.0001 {
			return digit * power
		}
	}
	return 10 * power
}

// logTicks labels powers of ten and, over a narrow range, 2 and 5 times those. Other digits have ticks
// without labels.
func logTicks(u unit) plot.TickerFunc {
	return func(lowest, highest float64) []plot.Tick {
		few := highest/lowest < 150
		var ticks []plot.Tick
		for power := math.Pow(10, math.Floor(math.Log10(lowest))); power <= highest*1.0001; power *= 10 {
			for digit := 1.0; digit < 10; digit++ {
				v := digit * power
				if v < lowest*0.9999 || v > highest*1.0001 {
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

// tick formats v without trailing zeros: "5 ms".
func (u unit) tick(v float64) string {
	s := u.step(v)
	return fmt.Sprintf("%.3g%s", v/s.size, s.suffix)
}

// logRange widens a range to round numbers that differ.
func logRange(lowest, highest float64) (from, to float64) {
	to = roundStep(highest)
	from = math.Pow(10, math.Floor(math.Log10(lowest)))
	for _, digit := range []float64{2, 5} {
		if power := math.Pow(10, math.Floor(math.Log10(lowest))); digit*power <= lowest {
			from = digit * power
		}
	}
	if from >= to {
		to = from * 10
	}
	return from, to
}

// axisLabel shortens long names, which tables have in full.
func axisLabel(c *Entrant) string {
	const maxLetters = 20
	name := plain(c.Name)
	sign := strings.TrimPrefix(c.Label(), name)
	if letters := []rune(name); len(letters) > maxLetters {
		name = string(letters[:maxLetters-1]) + "…"
	}
	return name + sign
}
