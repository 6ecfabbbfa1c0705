package report

import (
	"strings"
	"testing"
)

func TestDiffTellsChangeFromNoise(t *testing.T) {
	throughput := func(v ...float64) *Document { return &Document{Results: roundsOf("a", v...)} }
	stormed := func(back ...float64) *Document {
		d := &Document{}
		for _, v := range back {
			d.Results = append(d.Results, &Result{Command: "storm", Name: "a", Storm: &Storm{Back50: 1, Back95: 1, Back100: v}})
		}
		return d
	}
	lost := func(n int64) *Document {
		return &Document{Results: []*Result{{Command: "echo", Name: "a", Messages: &Messages{Missing: n}}}}
	}
	failed := throughput(100)
	failed.Results[0].Error = "refused"
	for _, c := range []struct {
		name     string
		old, new *Document
		verdict  string // of the only change
		worse    bool
	}{
		{"less of what should be more is worse", throughput(100), throughput(80), "worse", true},
		{"more of it is better", throughput(100), throughput(120), "better", false},
		{"a change below the threshold is none", throughput(100), throughput(96), "", false},
		{"ranges that meet are noise", throughput(100, 70), throughput(80, 60), "", false},
		{"ranges apart are a change", throughput(100, 99), throughput(80, 81), "worse", true},
		{"ranges apart by less than the threshold are none", throughput(100, 101), throughput(98, 99), "", false},
		{"one round against several has only the threshold", throughput(100, 50, 110), throughput(90), "worse", true},
		{"the first missing message is worse", lost(0), lost(1), "worse", true},
		{"clients that never come back are worse", stormed(2), stormed(0), "worse", true},
		{"clients that come back at last are better", stormed(0), stormed(2), "better", false},
		{"never both times is no change", stormed(0, 0), stormed(0, 0), "", false},
		{"a metric that is no longer measured is no verdict", throughput(100), throughput(0), "gone", false},
		{"a new failure is worse", throughput(100), failed, "", true},
		{"an old failure is not", failed, failed, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Diff(c.old, c.new, 5)
			got := ""
			for _, change := range d.Runs[0].Changes {
				got += change.Verdict
			}
			if got != c.verdict || d.Worse() != c.worse {
				t.Errorf("verdict %q, worse %v; expected %q, %v", got, d.Worse(), c.verdict, c.worse)
			}
		})
	}
}

func TestDiffText(t *testing.T) {
	old, new := sampleDocument(t), sampleDocument(t)
	for _, r := range new.Results {
		r.Machine.Cores = 8
		if r.Latency != nil {
			r.Latency.P99 *= 2
		}
	}
	old.Results = append(old.Results, sampleResult(t, "echo", "gone", 1))
	new.Results = append(new.Results, sampleResult(t, "idle", "fresh", 1))
	var out strings.Builder
	if err := Diff(old, new, 5).WriteText(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"worse  latency p99", "+100.0%", "3 rounds before, 3 rounds now\n", "within 5% or the noise",
		"only in the old file: gone, echo", "only in the new file: fresh, idle", "The machines differ", "* before, 1 of 3 runs",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "noise is unknown") {
		t.Error("says that the noise is unknown, with three rounds a side")
	}
	out.Reset()
	one := &Document{Results: roundsOf("a", 1)}
	if err := Diff(one, one, 5).WriteText(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "noise unknown") || !strings.Contains(out.String(), "noise is unknown") {
		t.Errorf("does not say that one round's noise is unknown:\n%s", &out)
	}
}
