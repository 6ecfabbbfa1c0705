package report

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

// roundsOf makes a run for each value of received messages per second.
func roundsOf(name string, perSecond ...float64) []*Result {
	var all []*Result
	for _, v := range perSecond {
		all = append(all, &Result{Command: "echo", Name: name, Messages: &Messages{ReceivedPerSec: v}})
	}
	return all
}

func TestRatiosAreTakenRoundByRound(t *testing.T) {
	for _, c := range []struct {
		name        string
		first, then []float64
		want        Spread
		verdict     string
		noted       bool
	}{
		{"a slow round for both leaves the ratio alone", []float64{100, 50, 100}, []float64{200, 100, 200}, Spread{2, 2, 2, 3}, "better", false},
		{"rounds that disagree give no verdict", []float64{100, 100}, []float64{90, 120}, Spread{1.05, 0.9, 1.2, 2}, "", false},
		{"less of what should be more is worse", []float64{100, 100}, []float64{50, 60}, Spread{0.55, 0.5, 0.6, 2}, "worse", false},
		{"one round has no verdict", []float64{100}, []float64{50}, Spread{0.5, 0.5, 0.5, 1}, "", false},
		{"uneven rounds compare medians only", []float64{100, 200, 300}, []float64{400}, Spread{2, 2, 2, 1}, "", true},
		{"a round that did not measure is left out", []float64{100, 0, 100}, []float64{200, 300, 400}, Spread{3, 2, 4, 2}, "better", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := Compare(append(roundsOf("a", c.first...), roundsOf("b", c.then...)...))
			section := table.Sections[0]
			row := section.row("received/s")
			if got := row.Cells[1].Ratio; fmt.Sprintf("%.4v", got) != fmt.Sprintf("%.4v", c.want) {
				t.Errorf("ratio %v, expected %v", got, c.want)
			}
			if got := row.Verdict(row.Cells[1]); got != c.verdict {
				t.Errorf("verdict %q, expected %q", got, c.verdict)
			}
			if noted := len(section.Notes) > 0; noted != c.noted {
				t.Errorf("notes are %v", section.Notes)
			}
		})
	}
}

// A missing or failed run does not shift others: ratios compare runs of the same round.
func TestRoundsArePairedByTheirNumber(t *testing.T) {
	numbered := func(rounds []int, runs []*Result) []*Result {
		for i, n := range rounds {
			runs[i].Round = n
		}
		return runs
	}
	for _, c := range []struct {
		name        string
		first, then []*Result
		want        Spread
		note        string
	}{
		{"all are there", numbered([]int{1, 2}, roundsOf("a", 100, 50)), numbered([]int{1, 2}, roundsOf("b", 200, 100)), Spread{2, 2, 2, 2}, ""},
		{"in another order", numbered([]int{1, 2}, roundsOf("a", 100, 50)), numbered([]int{2, 1}, roundsOf("b", 100, 200)), Spread{2, 2, 2, 2}, ""},
		{"the first round of one is missing", numbered([]int{1, 2, 3}, roundsOf("a", 100, 50, 10)), numbered([]int{2, 3}, roundsOf("b", 100, 20)),
			Spread{2, 2, 2, 2}, "b has no run in 1 of 3 rounds"},
		{"the first server's is missing", numbered([]int{2, 3}, roundsOf("a", 50, 10)), numbered([]int{1, 2, 3}, roundsOf("b", 200, 100, 20)),
			Spread{2, 2, 2, 2}, "a has no run in 1 of 3 rounds"},
		{"each misses another", numbered([]int{1, 2}, roundsOf("a", 100, 50)), numbered([]int{2, 3}, roundsOf("b", 100, 7)),
			Spread{2, 2, 2, 1}, "a has no run in 1 of 3 rounds"},
		{"a failed run measured nothing", numbered([]int{1, 2}, roundsOf("a", 100, 50)), numbered([]int{1, 2}, roundsOf("b", 0, 100)), Spread{2, 2, 2, 1}, ""},
		{"a round twice is no number to go by", numbered([]int{1, 1}, roundsOf("a", 100, 50)), numbered([]int{1, 2}, roundsOf("b", 200, 100)), Spread{2, 2, 2, 2}, ""},
		{"a number out of bounds neither", numbered([]int{1, 1e9}, roundsOf("a", 100, 50)), numbered([]int{1, 2}, roundsOf("b", 200, 100)), Spread{2, 2, 2, 2}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			section := Compare(append(c.first, c.then...)).Sections[0]
			cell := section.row("received/s").Cells[1]
			if fmt.Sprintf("%.4v", cell.Ratio) != fmt.Sprintf("%.4v", c.want) {
				t.Errorf("ratio %v, expected %v", cell.Ratio, c.want)
			}
			if notes := strings.Join(section.Notes, "\n"); !strings.HasPrefix(notes, c.note) || c.note == "" && notes != "" {
				t.Errorf("notes %q, expected %q", notes, c.note)
			}
		})
	}
}

// Memory that did not grow counts as not measured.
func TestMemoryThatDidNotGrowIsLeftOut(t *testing.T) {
	for _, c := range []struct {
		grew  float64
		shown bool
	}{{4096, true}, {0, false}, {-4096, false}} {
		r := &Result{Command: "idle", Name: "a", Server: &Server{RSS: 1 << 20, RSSPerConn: c.grew, KernelPerConn: c.grew, SlabPerConn: c.grew}}
		section := Compare([]*Result{r}).Sections[0]
		for _, name := range []string{"RSS per connection", "kernel per connection", "slab per connection"} {
			if shown := section.row(name) != nil; shown != c.shown {
				t.Errorf("%s of %g: shown is %v", name, c.grew, shown)
			}
		}
		var text strings.Builder
		PrintResult(&text, r)
		if shown := strings.Contains(text.String(), "per connection"); shown != c.shown {
			t.Errorf("%g is printed: %v\n%s", c.grew, shown, &text)
		}
	}
}

func TestDoubtsThatDifferInAmountOnly(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"busy for 97 % of the time", "busy for 91 % of the time", true},
		{"sent 12.3ms late", "sent 1.2s late", true},
		{"most often: HTTP 403", "most often: HTTP 503", false},
		{"3 connections were lost", "the generator was busy for 3 %", false},
	} {
		if sameDoubt(c.a, c.b) != c.same {
			t.Errorf("%q and %q", c.a, c.b)
		}
	}
}

func TestRunsAreComparedUnderTheSameLoadOnly(t *testing.T) {
	other := func(change func(*Result)) *Result {
		r := sampleResult(t, "echo", "b", 1)
		change(r)
		return r
	}
	for _, c := range []struct {
		name     string
		with     *Result
		sections int
	}{
		{"the same settings", other(func(*Result) {}), 1},
		{"other source addresses make no other load", other(func(r *Result) { r.Settings.Sources = []string{"127.0.0.9"} }), 1},
		{"another size does", other(func(r *Result) { r.Settings.Size = 7 }), 2},
		{"another command does", other(func(r *Result) { r.Command = "fanout" }), 2},
		{"publishing by HTTP does", other(func(r *Result) { r.Settings.PublishURL = "http://a/" }), 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Compare([]*Result{sampleResult(t, "echo", "a", 1), c.with})
			if len(got.Sections) != c.sections {
				t.Errorf("%d sections, expected %d", len(got.Sections), c.sections)
			}
		})
	}
}

func TestPrintedTable(t *testing.T) {
	var out strings.Builder
	if err := Compare(sampleDocument(t).Results).WriteText(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"fanout: 1000 connections", "storm: 1000 connections", "Median of 3 rounds", "ratios to carillon",
		"latency p99", "goroutines ", "long name <b>&\"' *", "1 of 3 runs: the generator used 15 of 16 cores", "1.72x",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q", want)
		}
	}
	for _, no := range []string{"missing", "duplicated", "carillon *", "goroutines *"} {
		if strings.Contains(out.String(), no) {
			t.Errorf("has %q", no)
		}
	}
	column := -1
	for line := range strings.Lines(out.String()) {
		if at := strings.Index(line, "goroutines "); strings.HasPrefix(line, " ") && at > 0 {
			if at = utf8.RuneCountInString(line[:at]); column >= 0 && at != column {
				t.Errorf("not aligned: %q", line)
			}
			column = strings.Index(line, "goroutines ")
		}
		if strings.HasSuffix(line, " \n") {
			t.Errorf("space at the end of %q", line)
		}
	}
}
