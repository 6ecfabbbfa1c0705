package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"carillon/internal/testenv"
	"carillon/server/stats"
)

// ourMetrics are all metrics of a server by their names, each with its type and labels as docs/metrics.md
// writes them.
func ourMetrics(t *testing.T) map[string]string {
	t.Helper()
	s, err := New(Options{Endpoints: echoAndBroadcast(), Logger: silent()})
	if err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(s.Metrics())
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, f := range families {
		labels := map[string]bool{}
		for _, l := range f.Metric[0].Label {
			labels[l.GetName()] = true
		}
		all[f.GetName()] = strings.ToLower(f.GetType().String()) + " | " + strings.Join(slices.Sorted(maps.Keys(labels)), ", ")
		if f.GetType() == dto.MetricType_HISTOGRAM && len(f.Metric[0].Histogram.Bucket) != len(stats.Bounds) {
			t.Errorf("%s has %d buckets", f.GetName(), len(f.Metric[0].Histogram.Bucket))
		}
	}
	return all
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every metric is in docs/metrics.md, with its type and labels, and nothing else is; so are the reasons.
func TestMetricsAreDocumented(t *testing.T) {
	left := ourMetrics(t)
	row := regexp.MustCompile("(?m)^\\| `(carillon_[a-z_]+)` \\| ([a-z]+) \\| ([a-z_, ]*)\\| .{10,} \\|$")
	docs := readFile(t, "docs/metrics.md")
	for _, m := range row.FindAllStringSubmatch(docs, -1) {
		labels := strings.Split(strings.TrimSpace(m[3]), ", ")
		slices.Sort(labels)
		if is, there := left[m[1]]; !there {
			t.Errorf("docs/metrics.md has %s, which is no metric or is there twice", m[1])
		} else if says := m[2] + " | " + strings.Join(labels, ", "); says != is {
			t.Errorf("docs/metrics.md says that %s is %s: it is %s", m[1], says, is)
		}
		delete(left, m[1])
	}
	for name := range left {
		t.Errorf("docs/metrics.md does not have %s", name)
	}
	for _, name := range slices.Concat(namesOf(stats.NumRefuseReasons), namesOf(stats.NumDropReasons)) {
		if !strings.Contains(docs, "\n| `"+name+"` |") {
			t.Errorf("docs/metrics.md does not have the reason %s", name)
		}
	}
	wantMetricNames(t, "docs/metrics.md", docs)
}

// namesOf returns the names of the first n reasons.
func namesOf[R interface {
	~uint8
	fmt.Stringer
}](n R) (names []string) {
	for r := range n {
		names = append(names, r.String())
	}
	return names
}

var (
	metricName      = regexp.MustCompile(`\b(carillon|go|process)_[a-z_]+\b`)
	histogramSuffix = regexp.MustCompile(`_(bucket|count|sum)$`)
)

// wantMetricNames fails the test when a text has the name of a metric that does not exist.
func wantMetricNames(t *testing.T, where, text string) {
	t.Helper()
	ours := ourMetrics(t)
	theirs := scrape(t, withAPI(t, Options{}))
	cluster := readFile(t, "docs/cluster.md") // a test of package cluster holds its table against the code
	for _, name := range metricName.FindAllString(text, -1) {
		base := histogramSuffix.ReplaceAllString(name, "")
		_, isOurs := ours[name]
		_, isHistogram := ours[base]
		_, isTheirs := theirs[name]
		isTheirs = isTheirs || strings.HasPrefix(name, "process_") || // that needs Linux
			strings.HasPrefix(name, "carillon_nats_") && strings.Contains(cluster, "| `"+name+"` |")
		if name == "go_version" || name == "go_" || name == "process_" {
			continue
		}
		if !isOurs && !(isHistogram && strings.HasPrefix(ours[base], "histogram")) && !isTheirs {
			t.Errorf("%s has %s, which is no metric", where, name)
		}
	}
}

type dashboard struct {
	Panels []struct {
		ID                       int
		Title, Description, Type string
		GridPos                  struct{ X, Y, W, H int }
		Targets                  []struct{ Expr string }
	}
}

// expressions are those of the dashboard, with what Grafana puts in place of its variables.
func expressions(t *testing.T) (list []string) {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(readFile(t, "deploy/grafana.json")), &d); err != nil {
		t.Fatal(err)
	}
	taken, ids := map[[2]int]string{}, map[int]string{}
	for _, p := range d.Panels {
		if other, there := ids[p.ID]; there {
			t.Errorf("the panels %q and %q have one id, %d", p.Title, other, p.ID)
		}
		ids[p.ID] = p.Title
		if p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("the panel %q shows or says nothing", p.Title)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := taken[at]; other != "" {
					t.Fatalf("the panels %q and %q overlap", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		for _, target := range p.Targets {
			list = append(list, strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr))
		}
	}
	return list
}

// The dashboard shows every metric and no other, and the alerts are about metrics that exist.
func TestDashboardAndAlerts(t *testing.T) {
	shown, docs := strings.Join(expressions(t), "\n"), readFile(t, "docs/metrics.md")
	wantMetricNames(t, "deploy/grafana.json", shown)
	for name, kind := range ourMetrics(t) {
		if strings.HasPrefix(kind, "histogram") {
			name += "_bucket"
		}
		deprecated := regexp.MustCompile("(?m)^\\| `" + name + "` .*\\| Deprecated: ").MatchString(docs)
		if regexp.MustCompile(`\b`+name+`\b`).MatchString(shown) == deprecated {
			t.Errorf("%s, which is deprecated: %v, is in a panel: %v", name, deprecated, deprecated)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(carillon_nats_[a-z_]+)` \\|").FindAllStringSubmatch(readFile(t, "docs/cluster.md"), -1) {
		if !strings.Contains(shown, m[1]) {
			t.Errorf("no panel shows %s", m[1])
		}
	}
	wantMetricNames(t, "deploy/alerts.yaml", readFile(t, "deploy/alerts.yaml"))
	wantMetricNames(t, "deploy/alerts.test.yaml", readFile(t, "deploy/alerts.test.yaml"))
}

// Prometheus itself takes the alerts, which fire as their tests say, the dashboard's expressions, and what
// /metrics says.
func TestPromtool(t *testing.T) {
	t.Parallel()
	promtool := testenv.Program(t, "promtool")
	check := func(in string, args ...string) {
		t.Helper()
		cmd := exec.Command(promtool, args...)
		cmd.Stdin = strings.NewReader(in)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	check("", "check", "rules", "../deploy/alerts.yaml")
	check("", "test", "rules", "../deploy/alerts.test.yaml")

	rules := "groups:\n- name: dashboard\n  rules:\n"
	for _, e := range slices.Compact(slices.Sorted(slices.Values(expressions(t)))) {
		quoted, _ := json.Marshal(e)
		rules += "  - {record: shown, expr: " + string(quoted) + "}\n"
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	check("", "check", "rules", "--lint=none", file)

	s := withAPI(t, Options{})
	check(string(call(t, s, "GET", "/metrics", "").is(t, 200).body), "check", "metrics")
}
