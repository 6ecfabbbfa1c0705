package report

import (
	"math"
	"strings"
	"testing"
)

func positiveInfinity() float64 { return math.Inf(1) }

func TestUnitsShowThreeDigits(t *testing.T) {
	for _, c := range []struct {
		name string
		unit unit
		v    float64
		want string
	}{
		{"less than a microsecond is in nanoseconds", microseconds, 0.35, "350 ns"},
		{"microseconds", microseconds, 210, "210 us"},
		{"what rounds up to the next unit is in it", microseconds, 999.7, "1.00 ms"},
		{"milliseconds", microseconds, 12345, "12.3 ms"},
		{"seconds", microseconds, 2.5e6, "2.50 s"},
		{"what never came", microseconds, math.Inf(1), "never"},
		{"no time at all", microseconds, 0, "0 us"},
		{"bytes are whole", sizes, 128, "128 B"},
		{"kibibytes", sizes, 4.5 * 1024, "4.50 KiB"},
		{"mebibytes", sizes, 300 << 20, "300 MiB"},
		{"small counts are exact", counts, 9999, "9999"},
		{"large counts are rounded", counts, 1234567, "1.23 M"},
		{"rates", rates, 50000, "50.0 k/s"},
		{"no rate", rates, 0, "0 k/s"},
		{"a ratio", ratios, 1.517, "1.52x"},
		{"no number", counts, math.NaN(), "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.unit.format(c.v); got != c.want {
				t.Errorf("%v is shown as %q, expected %q", c.v, got, c.want)
			}
		})
	}
}

func TestIntervalsUseTheUnitOfTheMedian(t *testing.T) {
	for _, c := range []struct {
		name                     string
		lowest, highest, typical float64
		want                     string
	}{
		{"around a millisecond", 980, 1400, 1200, "0.98–1.40"},
		{"up to never", 1e6, math.Inf(1), 2e6, "1.00–never"},
		{"a median that never came", 1e6, math.Inf(1), math.Inf(1), "1.00 s–never"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := microseconds.interval(c.lowest, c.highest, c.typical); got != c.want {
				t.Errorf("got %q, expected %q", got, c.want)
			}
		})
	}
}

func TestSpread(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		name   string
		values []float64
		want   Spread
	}{
		{"nothing measured is no metric", []float64{nan, nan}, Spread{}},
		{"one round is its own median", []float64{3}, Spread{3, 3, 3, 1}},
		{"an odd number has a middle", []float64{9, 1, 2}, Spread{2, 1, 9, 3}},
		{"an even number has a mean of two", []float64{4, 1, 2, 8}, Spread{3, 1, 8, 4}},
		{"rounds without the metric do not count", []float64{nan, 5, nan, 7}, Spread{6, 5, 7, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := spreadOf(c.values); got != c.want {
				t.Errorf("got %v, expected %v", got, c.want)
			}
		})
	}
}

func TestPrintedResult(t *testing.T) {
	failed := sampleResult(t, "fanout", "evil\x1b[2J\nname", 1)
	failed.Error = "dial: too many open files"
	failed.Warnings = []string{"the generator was late"}
	failed.Messages.Missing = 1
	failed.Connections.Failed = map[string]int{"timeout": 2, "refused": 30}
	never := sampleResult(t, "storm", "carillon", 1)
	never.Storm.Back100 = 0
	bottleneck := sampleResult(t, "echo", "carillon", 1)
	bottleneck.Generator.Bottleneck = true
	for _, c := range []struct {
		name  string
		of    *Result
		has   []string
		lacks []string
	}{
		{"a sound run has no sign, error or warning", sampleResult(t, "echo", "carillon", 1),
			[]string{"carillon  ws://", "faults         none", "latency  "}, []string{"*", "ERROR", "WARNING", "completion", "storm"}},
		{"an error stands above the metrics, a warning below", failed,
			[]string{"evil?[2J name *", "ERROR: the run ended early: dial: too many open files", "WARNING: the generator was late",
				"1 missing of 500000", "failed: 30 refused, 2 timeout"}, []string{"\x1b"}},
		{"clients that never came back", never, []string{"95% after 1.10 s", "all never"}, []string{"messages ", "faults"}},
		{"a generator at its limit is warned of", bottleneck, []string{"carillon *", "WARNING: the generator may have been the bottleneck"}, nil},
		{"a run of which only connections are known", &Result{Command: "idle", Name: "a"}, []string{"0 of 0 opened"}, []string{"server", "p50", "generator"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			PrintResult(&out, c.of)
			for _, want := range c.has {
				if !strings.Contains(out.String(), want) {
					t.Errorf("lacks %q:\n%s", want, &out)
				}
			}
			for _, no := range c.lacks {
				if strings.Contains(out.String(), no) {
					t.Errorf("has %q:\n%s", no, &out)
				}
			}
			text := out.String()
			if e, w := strings.Index(text, "ERROR"), strings.Index(text, "WARNING"); e > 0 && !(e < strings.Index(text, "connections  ") && w > strings.Index(text, "p99")) {
				t.Errorf("error at %d, warning at %d:\n%s", e, w, text)
			}
		})
	}
}
