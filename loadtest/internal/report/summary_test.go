package report

import (
	"math"
	"strings"
	"testing"
	"unicode/utf8"
)

// The summary has a line per server and load, columns below their headings, and no long lines.
func TestShortTable(t *testing.T) {
	doc := &Document{Rounds: 3}
	commands := []string{"idle", "echo", "fanout", "storm"}
	servers := []string{"carillon", "gws", "goroutines"}
	for round := range 3 {
		for i, name := range servers {
			for _, command := range commands {
				r := sampleResult(t, command, name, 1+10.3*float64(i)+0.07*float64(round))
				r.Round = round + 1
				r.Server.SlabPerConn = 10_000
				if command == "echo" && i > 0 {
					r.Warnings = []string{"the machine was busy"}
				}
				if command == "fanout" && i == 1 && round == 2 {
					r.Messages.Missing = 12
				}
				doc.Results = append(doc.Results, r)
			}
		}
	}
	var out strings.Builder
	if err := PrintTable(&out, doc, false); err != nil {
		t.Fatal(err)
	}
	sections := strings.Split(out.String(), "to carillon.\n\n")[1:]
	if len(sections) != len(commands) {
		t.Fatalf("%d sections:\n%s", len(sections), &out)
	}
	for i, headings := range []string{
		"handshakes/s CPU/handshake RSS/conn kernel/conn", "messages/s p50 p99 CPU/message",
		"deliveries/s p99 completion p99 CPU/delivery missing", "95% back all back peak CPU peak RSS failed attempts",
	} {
		lines := strings.Split(sections[i], "\n")
		if got := strings.Join(strings.Fields(lines[0]), " "); got != headings {
			t.Errorf("%s: headings %q, expected %q", commands[i], got, headings)
		}
		for n, line := range lines[:4] {
			if n > 0 && !strings.HasPrefix(line, servers[n-1]) {
				t.Errorf("%s: line %d is %q", commands[i], n, line)
			}
			if utf8.RuneCountInString(line) > 110 || strings.HasSuffix(line, " ") {
				t.Errorf("%s: too wide, or with space at its end: %q", commands[i], line)
			}
		}
		if ratio := strings.Contains(lines[1], "x"); ratio || !strings.Contains(lines[2], "x") {
			t.Errorf("%s: the ratios are wrong:\n%s", commands[i], sections[i])
		}
	}
	for _, want := range []string{
		"Median of 3 rounds, ± largest deviation; ratios to carillon.",
		"gws *, goroutines *  3 of 3 runs: the machine was busy\n", " ±7%", " 9.77 KiB ±0% 1.00x",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "latency p99.9") {
		t.Error("has metrics of the full table")
	}
}

func TestMargin(t *testing.T) {
	never := math.Inf(1)
	for _, c := range []struct {
		name   string
		values []float64
		want   string
	}{
		{"the farther end counts", []float64{95, 100, 120}, "±20%"},
		{"one round has none", []float64{100}, ""},
		{"rounds that agree", []float64{100, 100}, "±0%"},
		{"nothing has no per cent", []float64{0, 0, 5}, ""},
		{"a round in which it never came", []float64{1, 1, never}, "or never"},
		{"never", []float64{1, never, never}, ""},
		{"not measured", []float64{math.NaN()}, ""},
	} {
		if got := (Cell{Value: spreadOf(c.values), unit: microseconds}).Margin(); got != c.want {
			t.Errorf("%s: %q, expected %q", c.name, got, c.want)
		}
	}
}
