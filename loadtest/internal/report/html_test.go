package report

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/plot"
)

// writePage writes the report of doc and returns its path.
func writePage(t *testing.T, doc *Document) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	if err := WriteHTML(path, doc); err != nil {
		t.Fatal(err)
	}
	return path
}

// parsedPage is the content of a report.
type parsedPage struct {
	charts   []string // headings of charts
	elements map[string]int
	links    []string // references to other resources
	text     string
}

func parsePage(t *testing.T, path string) *parsedPage {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader(string(page)))
	d.Strict, d.Entity = false, xml.HTMLEntity
	found := &parsedPage{elements: map[string]int{}}
	var heading, text strings.Builder
	var within []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page does not parse: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			found.start(token)
			within = append(within, token.Name.Local)
			if token.Name.Local == "h3" {
				heading.Reset()
			}
			if token.Name.Local == "svg" && slices.Contains(within, "figure") && !slices.Contains(within, "ul") {
				found.charts = append(found.charts, heading.String())
			}
		case xml.EndElement:
			within = within[:len(within)-1]
		case xml.CharData:
			text.Write(token)
			if slices.Contains(within, "h3") {
				heading.Write(token)
			}
			if slices.Contains(within, "style") && regexp.MustCompile(`url\(|@import`).Match(token) {
				found.links = append(found.links, "in the style sheet")
			}
		}
	}
	found.text = text.String()
	return found
}

func (p *parsedPage) start(e xml.StartElement) {
	p.elements[e.Name.Local]++
	for _, a := range e.Attr {
		if slices.Contains([]string{"src", "href", "srcset", "action", "data"}, a.Name.Local) && a.Value != "data:," ||
			strings.Contains(a.Value, "//") || strings.Contains(a.Value, "url(") {
			p.links = append(p.links, a.Name.Local+"="+a.Value)
		}
	}
}

func TestPageHasAChartForEachMeasuredMetric(t *testing.T) {
	one := func(r *Result) *Document { return &Document{Results: []*Result{r}} }
	pair := func(command string) *Document {
		return &Document{Results: []*Result{sampleResult(t, command, "a", 1), sampleResult(t, command, "b", 2)}}
	}
	unreadable := sampleResult(t, "echo", "a", 1)
	unreadable.Latency.Histogram = "no histogram"
	unreadable.Series, unreadable.Server, unreadable.Connections.Handshake = nil, nil, nil
	zeroes := sampleResult(t, "echo", "a", 1)
	zeroes.Latency = &Latency{Count: 1}
	zeroes.Series, zeroes.Server, zeroes.Connections.Handshake = []Point{{}, {}}, &Server{}, &Latency{}
	for _, c := range []struct {
		name   string
		doc    *Document
		charts []string
	}{
		{"an echo", one(sampleResult(t, "echo", "a", 1)), []string{"Latency", "Handshake", "Latency p99 over time",
			"CPU per delivery", "Messages received", "Memory per connection", "Connections per second"}},
		{"a fan-out has completion too, and two servers have ratios", pair("fanout"), []string{"Latency", "Completion", "Handshake",
			"Latency p99 over time", "CPU per delivery", "Messages received", "Memory per connection", "Connections per second", "Ratios to a"}},
		{"a storm has its course", one(sampleResult(t, "storm", "a", 1)), []string{"Handshake", "Connections over time", "Server CPU over time",
			"Server RSS over time", "CPU per delivery", "Memory per connection", "Connections per second", "Time to reconnect"}},
		{"an unreadable histogram leaves the percentiles", one(unreadable), []string{"Latency", "Messages received", "Connections per second"}},
		{"metrics that are all zero are not drawn", one(zeroes), []string{"Latency", "Messages received", "Connections per second"}},
		{"a run that failed at once has none", one(&Result{Command: "idle", Name: "a", Error: "refused"}), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			page := parsePage(t, writePage(t, c.doc))
			if !slices.Equal(page.charts, c.charts) {
				t.Errorf("charts are %q\nexpected   %q", page.charts, c.charts)
			}
			if got := page.elements["figure"]; got != len(c.charts) {
				t.Errorf("%d figures, expected %d", got, len(c.charts))
			}
		})
	}
}

func TestPageIsSelfContainedAndEscaped(t *testing.T) {
	doc := sampleDocument(t)
	hostile := `"><script>x</script><img src=//evil.example/x onerror=y>`
	for _, r := range doc.Results {
		r.URL += hostile
		r.Machine.CPU += hostile
		r.Error = hostile
		r.Connections.Failed = map[string]int{hostile: 1}
		if r.Name == "goroutines" {
			r.Name += hostile
		}
	}
	path := writePage(t, doc)
	page := parsePage(t, path)
	for _, element := range []string{"script", "img", "b", "iframe", "object"} {
		if n := page.elements[element]; n > 0 {
			t.Errorf("%d elements %q", n, element)
		}
	}
	var links []string
	for _, l := range page.links {
		if !strings.HasPrefix(l, "aria-label=") { // text: the name is in a chart's title
			links = append(links, l)
		}
	}
	if len(links) > 0 {
		t.Errorf("needs something from elsewhere: %q", links)
	}
	for _, want := range []string{"long name <b>&\"' *", "3 of 3 runs", "<script>alert(1)</script>", "Example CPU", "Exemplix 9", "ERROR: the run ended early"} {
		if !strings.Contains(page.text, want) {
			t.Errorf("lacks %q", want)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if rest := regexp.MustCompile(`#00FF[0-9A-F]{2}|var\(--\)|NaN|Inf`).Find(raw); rest != nil {
		t.Errorf("%q is left in the drawings", rest)
	}
}

func TestEveryPaintIsAVariableOfTheStyleSheet(t *testing.T) {
	for _, p := range paints {
		if n := strings.Count(reportText, "--"+string(p)+":"); n != 3 {
			t.Errorf("--%s is set %d times, expected one each for light, dark and print", p, n)
		}
	}
}

func TestTicksAreRound(t *testing.T) {
	for _, c := range []struct {
		name            string
		ticks           func(lowest, highest float64) []string
		lowest, highest float64
		want            string
	}{
		{"linear microseconds", labelsOf(scaleTicks(microseconds)), 0, 9500, "0 2 ms 4 ms 6 ms 8 ms"},
		{"linear bytes", labelsOf(scaleTicks(sizes)), 0, 30 << 10, "0 10 KiB 20 KiB 30 KiB"},
		{"one decade of a logarithm", labelsOf(logTicks(microseconds)), 100, 2000, "100 us 200 us 500 us 1 ms 2 ms"},
		{"many decades of it", labelsOf(logTicks(microseconds)), 50, 1e6, "100 us 1 ms 10 ms 100 ms 1 s"},
		{"percentiles", labelsOf(percentileTicks), 1, 1e5, "0 50 90 99 99.9 99.99 99.999"},
		{"ratios near one", labelsOf(ratioTicks), 0.7, 1.5, "0.71x 1x 1.4x"},
		{"ratios far apart", labelsOf(ratioTicks), 0.05, 20, "0.1x 1x 10x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := strings.Join(c.ticks(c.lowest, c.highest), " "); got != c.want {
				t.Errorf("got %q, expected %q", got, c.want)
			}
		})
	}
}

func labelsOf(ticks plot.TickerFunc) func(lowest, highest float64) []string {
	return func(lowest, highest float64) []string {
		var labels []string
		for _, tick := range ticks(lowest, highest) {
			if tick.Label != "" {
				labels = append(labels, tick.Label)
			}
		}
		return labels
	}
}
