package report

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"slices"
	"strings"
)

//go:embed report.html
var reportText string

var reportPage = template.Must(template.New("report").Parse(reportText))

// page is the data of the template.
type page struct {
	Title    string
	When     string
	Machines []string
	Sections []pageSection
}

type pageSection struct {
	*Section
	URLs   []string
	Charts []chart
	Runs   []pageRun
}

// pageRun is one run as printed in the terminal.
type pageRun struct{ Name, Text string }

// WriteHTML writes doc as a self-contained page, atomically.
func WriteHTML(path string, doc *Document) error {
	p := page{When: when(doc.Results), Machines: machinesOf(doc.Results)}
	table := Compare(doc.Results)
	for _, s := range table.Sections {
		charts, err := sectionCharts(s)
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		p.Sections = append(p.Sections, pageSection{Section: s, URLs: urlsOf(s), Charts: charts, Runs: runsOf(s)})
	}
	p.Title = pageTitle(table)
	var text bytes.Buffer
	if err := reportPage.Execute(&text, p); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replaceFile(path, text.Bytes())
}

func pageTitle(t *Table) string {
	var names []string
	for _, s := range t.Sections {
		for _, c := range s.Servers {
			if name := plain(c.Name); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return "Load test of " + enumerate(names)
}

func enumerate(names []string) string {
	if n := len(names); n > 2 {
		names = []string{strings.Join(names[:n-1], ", "), names[n-1]}
	}
	return strings.Join(names, " and ")
}

// when returns the time of the first and, if it was in another minute, of the last start.
func when(results []*Result) string {
	if len(results) == 0 {
		return ""
	}
	first, last := results[0].Started, results[0].Started
	for _, r := range results {
		if r.Started.Before(first) {
			first = r.Started
		}
		if r.Started.After(last) {
			last = r.Started
		}
	}
	if first.IsZero() {
		return ""
	}
	const minute = "2 January 2006, 15:04"
	from, to := first.UTC().Format(minute), last.UTC().Format(minute)
	if from != to {
		from += " to " + to
	}
	return from + " UTC"
}

func urlsOf(s *Section) []string {
	var all []string
	for _, c := range s.Servers {
		for _, r := range c.Runs {
			if line := plain(c.Name) + ": " + plain(r.URL); r.URL != "" && !slices.Contains(all, line) {
				all = append(all, line)
			}
		}
	}
	return all
}

func runsOf(s *Section) []pageRun {
	var all []pageRun
	for _, c := range s.Servers {
		for i, r := range c.Runs {
			var text strings.Builder
			PrintResult(&text, r)
			name := plain(c.Name)
			if len(c.paired) > 1 {
				name = fmt.Sprintf("%s, round %d", name, cmp.Or(r.Round, i+1))
			}
			if len(doubts(r)) > 0 {
				name += doubtSign
			}
			all = append(all, pageRun{name, text.String()})
		}
	}
	return all
}

// StartsGroup reports whether a heading precedes the nth row.
func (s *Section) StartsGroup(n int) bool {
	return n == 0 || s.Rows[n].Group != s.Rows[n-1].Group
}

// Columns is the number of table columns: the name of the metric, the values, and ratios for all servers
// but the first.
func (s *Section) Columns() int { return 2 * len(s.Servers) }

// Doubtful returns the servers with doubtful runs.
func (s *Section) Doubtful() []*Entrant {
	return slices.DeleteFunc(slices.Clone(s.Servers), func(c *Entrant) bool { return c.Doubtful == 0 })
}
