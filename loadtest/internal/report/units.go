package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
)

// unit formats values with three significant digits and a suitable prefix.
type unit struct {
	steps []step // ascending
	exact bool   // whole numbers below the second step are printed exactly
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

// format formats v with its unit: "1.23 ms". Infinity means never.
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

// interval formats a range in the unit that suits typical: "1.10–1.40".
func (u unit) interval(lowest, highest, typical float64) string {
	s := u.step(typical)
	one := func(v float64) string {
		if math.IsInf(v, 0) {
			return "never"
		}
		return u.digits(v, s)
	}
	low, high := one(lowest), one(highest)
	if math.IsInf(typical, 0) && !math.IsInf(lowest, 0) {
		low = u.format(lowest)
	}
	return low + "–" + high
}

// step chooses by the rounded value: 999.7 us is 1.00 ms.
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

// Spread is the median and the range of a metric over several rounds.
type Spread struct {
	Median, Min, Max float64
	N                int // rounds that measured it
}

// spreadOf ignores NaN: rounds that did not measure the metric.
func spreadOf(values []float64) Spread {
	known := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(known) == 0 {
		return Spread{}
	}
	slices.Sort(known)
	n := len(known)
	middle := known[n/2]
	if n%2 == 0 && known[n/2-1] != middle { // not if both are infinite
		middle = (known[n/2-1] + middle) / 2
	}
	return Spread{Median: middle, Min: known[0], Max: known[n-1], N: n}
}

// plain makes untrusted text safe to print: one line without control characters.
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
