package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
)

// unit formats figures of one kind to three digits, in the step that suits their size.
type unit struct {
	steps []step // rising
	exact bool   // whole numbers below the second step are shown in full
}

type step struct {
	size   float64
	suffix string
}

var (
	microseconds = unit{steps: []step{{1e-3, " ns"}, {1, " us"}, {1e3, " ms"}, {1e6, " s"}}}
	sizes        = unit{steps: []step{{1, " B"}, {1 << 10, " KiB"}, {1 << 20, " MiB"}, {1 << 30, " GiB"}, {1 << 40, " TiB"}}, exact: true}
	counts       = unit{steps: []step{{1, ""}, {1e3, " k"}, {1e6, " M"}, {1e9, " G"}}, exact: true}
	rates        = unit{steps: []step{{1, "/s"}, {1e3, " k/s"}, {1e6, " M/s"}, {1e9, " G/s"}}}
	processors   = unit{steps: []step{{1, " cores"}}}
	ratios       = unit{steps: []step{{1, "x"}}}
)

// format is v with its unit: "1.23 ms". Infinity is "never", for it stands for what did not come.
func (u unit) format(v float64) string {
	switch {
	case math.IsInf(v, 0):
		return "never"
	case math.IsNaN(v):
		return "-"
	case v == 0 && len(u.steps) > 1 && !u.exact:
		return "0" + u.steps[1].suffix // "0 us", not "0 ns"
	}
	s := u.step(v)
	return u.digits(v, s) + s.suffix
}

// interval is least and most in the unit that suits typical: "1.10–1.40".
func (u unit) interval(least, most, typical float64) string {
	s := u.step(typical)
	one := func(v float64) string {
		if math.IsInf(v, 0) {
			return "never"
		}
		return u.digits(v, s)
	}
	low, high := one(least), one(most)
	if math.IsInf(typical, 0) && !math.IsInf(least, 0) {
		low = u.format(least)
	}
	return low + "–" + high
}

// step chooses by the figure as it will be rounded: 999.7 us is 1.00 ms.
func (u unit) step(v float64) step {
	v = math.Abs(v)
	if u.exact && v < 1e4 && len(u.steps) > 1 && u.steps[1].size == 1e3 {
		return u.steps[0]
	}
	chosen := u.steps[0]
	for _, s := range u.steps {
		if v >= s.size*0.9995 {
			chosen = s
		}
	}
	return chosen
}

func (u unit) digits(v float64, s step) string {
	scaled := v / s.size
	if u.exact && s.size == 1 && scaled == math.Trunc(scaled) {
		return fmt.Sprintf("%.0f", scaled)
	}
	switch size := math.Abs(scaled); {
	case scaled == 0:
		return "0"
	case size < 9.995:
		return fmt.Sprintf("%.2f", scaled)
	case size < 99.95:
		return fmt.Sprintf("%.1f", scaled)
	}
	return fmt.Sprintf("%.0f", scaled)
}

// Spread is the middle and the ends of one figure over several rounds.
type Spread struct {
	Median, Min, Max float64
	N                int // rounds that measured it; 0 is no figure at all
}

// spreadOf leaves out what is not a number: rounds that did not measure the figure.
func spreadOf(values []float64) Spread {
	kept := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(kept) == 0 {
		return Spread{}
	}
	slices.Sort(kept)
	n := len(kept)
	middle := kept[n/2]
	if n%2 == 0 && kept[n/2-1] != middle { // the test spares infinity
		middle = (kept[n/2-1] + middle) / 2
	}
	return Spread{Median: middle, Min: kept[0], Max: kept[n-1], N: n}
}

// plain makes text from a server or an error safe to print: no control characters, one line.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar:
			return '?'
		}
		return r
	}, text)
}
