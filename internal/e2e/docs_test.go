package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func documents(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range append(names, "README.md", "CONTRIBUTING.md", "deploy/README.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

// anchor is what a heading is called in a link.
func anchor(heading string) string {
	heading = strings.ToLower(strings.TrimLeft(heading, "# "))
	heading = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(heading, "")
	return strings.ReplaceAll(heading, " ", "-")
}

// Links between files lead somewhere.
func TestLinks(t *testing.T) {
	all := documents(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading := regexp.MustCompile(`(?m)^#+ .*$`)
	n := 0
	for name, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			n++
			path, section, _ := strings.Cut(m[1], "#")
			to := name
			if path != "" {
				to = filepath.Join(filepath.Dir(name), path)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if section == "" {
				continue
			}
			found := false
			for _, h := range heading.FindAllString(all[to], -1) {
				found = found || anchor(h) == section
			}
			if !found {
				t.Errorf("%s: %s has no section %s", name, to, section)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d links were found", n)
	}
}

// The alerts, metrics and keys that docs/operations.md speaks of exist.
func TestOperationsNames(t *testing.T) {
	config, err := os.ReadFile("config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := documents(t)
	text, alerts := all["docs/operations.md"], read(t, "alerts.yaml")
	for _, name := range regexp.MustCompile("`Carillon[A-Za-z]+`").FindAllString(text, -1) {
		if !strings.Contains(alerts, "alert: "+strings.Trim(name, "`")+"\n") {
			t.Errorf("there is no alert %s", name)
		}
	}
	for _, name := range regexp.MustCompile("`carillon_[a-z_]+`").FindAllString(text, -1) {
		if !strings.Contains(all["docs/metrics.md"]+all["docs/cluster.md"], "| "+name+" |") {
			t.Errorf("there is no metric %s", name)
		}
	}
	for _, m := range regexp.MustCompile("`(limits|ping|drain|connections|agent|internal|slow_consumer|proxy_protocol)\\.([a-z_]+)").FindAllStringSubmatch(text, -1) {
		if !strings.Contains(string(config), " "+m[2]+":") {
			t.Errorf("there is no key %s.%s", m[1], m[2])
		}
	}
}
