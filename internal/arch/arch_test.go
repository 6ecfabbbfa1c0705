// Package arch tests that imports go the way that docs/architecture.md says.
package arch

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const page = "docs/architecture.md, Layers"

// arrows has each package with the packages of ours that it may import. Tests may import more.
var arrows = map[string][]string{
	"main":                        {"internal/cli"},
	"internal/cli":                {"client", "codec", "internal/demo", "internal/redact", "server", "server/cluster"},
	"internal/demo":               {"client", "codec", "server"},
	"server/cluster":              {"codec", "internal/patterns", "internal/redact", "internal/shrink", "server/internal/option", "server/topic"},
	"server":                      {"codec", "internal/redact", "internal/shrink", "server/internal/admin", "server/internal/auth", "server/internal/certs", "server/internal/drain", "server/internal/envelope", "server/internal/fair", "server/internal/hub", "server/internal/limit", "server/internal/listen", "server/internal/logs", "server/internal/option", "server/internal/outbox", "server/internal/protocol", "server/internal/reactor", "server/internal/sys", "server/stats", "server/topic"},
	"server/internal/protocol":    {"codec", "server/internal/auth", "server/internal/envelope", "server/internal/hub", "server/internal/limit", "server/internal/outbox", "server/internal/reactor", "server/internal/strictjson", "server/stats", "server/topic"},
	"server/internal/hub":         {"codec", "internal/indexheap", "internal/patterns", "internal/shrink", "server/internal/envelope", "server/internal/fair", "server/internal/limit", "server/internal/logs", "server/internal/reactor", "server/stats", "server/topic"},
	"server/internal/reactor":     {"codec", "internal/indexheap", "internal/shrink", "server/internal/certs", "server/internal/drain", "server/internal/envelope", "server/internal/fair", "server/internal/limit", "server/internal/listen", "server/internal/logs", "server/internal/option", "server/internal/outbox", "server/internal/sys", "server/internal/tlstable", "server/stats", "server/topic"},
	"server/internal/admin":       {"codec", "server/internal/envelope", "server/internal/logs", "server/internal/strictjson", "server/topic"},
	"server/stats":                {"codec"},
	"server/internal/auth":        {"codec", "internal/redact", "server/internal/logs", "server/internal/option", "server/internal/strictjson", "server/stats", "server/topic"},
	"server/internal/logs":        {},
	"server/internal/limit":       {"internal/shrink"},
	"server/internal/listen":      {"server/internal/option"},
	"server/internal/certs":       {},
	"server/internal/outbox":      {"codec"},
	"server/internal/sys":         {"internal/shrink"},
	"server/internal/drain":       {"codec"},
	"server/internal/fair":        {"internal/indexheap", "server/internal/sys"},
	"server/internal/tlstable":    {"internal/indexheap", "internal/shrink", "server/internal/limit"},
	"server/internal/envelope":    {"codec", "server/topic"},
	"server/internal/strictjson":  {},
	"server/topic":                {"codec", "server/internal/option"},
	"server/internal/option":      {"internal/redact"},
	"codec":                       {},
	"client":                      {},
	"loadtest":                    {"internal/redact", "loadtest/internal/generator", "loadtest/internal/report", "loadtest/internal/wsclient"},
	"loadtest/internal/generator": {"loadtest/internal/wsclient"},
	"loadtest/internal/report":    {},
	"loadtest/internal/wsclient":  {},
	"internal/indexheap":          {"internal/shrink"},
	"internal/patterns":           {"internal/shrink"},
	"internal/redact":             {},
	"internal/shrink":             {},
	"internal/arch":               {}, // this and the next two are for tests
	"internal/e2e":                {},
	"internal/testenv":            {},
}

// users has the libraries that only some packages may import.
var users = map[string][]string{
	"github.com/gobwas":     {"codec"},
	"github.com/golang-jwt": {"internal/testenv", "server/internal/auth"},
	"github.com/panjf2000":  {"server/internal/reactor"},
	"github.com/nats-io":    {"server/cluster"},
	"github.com/prometheus": {"server", "server/cluster"},
	"github.com/spf13":      {"internal/cli", "loadtest"},
}

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		imports := strings.Fields(line)
		name := strings.TrimPrefix(imports[0], "carillon/")
		if name == "carillon" {
			name = "main"
		}
		allowed, known := arrows[name]
		if !known {
			t.Errorf("%s has no place yet: %s", name, page)
		}
		for _, path := range imports[1:] {
			if ours, ok := strings.CutPrefix(path, "carillon/"); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s must not import %s: %s", name, ours, page)
			}
			for library, may := range users {
				if strings.HasPrefix(path, library+"/") && !slices.Contains(may, name) {
					t.Errorf("%s must not import %s: only %s may: %s", name, path, strings.Join(may, " and "), page)
				}
			}
		}
		for _, ours := range allowed {
			if !slices.Contains(imports, "carillon/"+ours) {
				t.Errorf("%s does not import %s any more: take the arrow out of %s", name, ours, page)
			}
		}
	}
}

// The document has the same two tables.
func TestTheDocumentSaysTheSame(t *testing.T) {
	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []map[string][]string{arrows, users} {
		for name, list := range table {
			row := "| `" + name + "` | `" + strings.Join(list, "`, `") + "` |"
			if row = strings.ReplaceAll(row, "``", "nothing"); !strings.Contains(string(text), row) {
				t.Errorf("docs/architecture.md has no row %s", row)
			}
		}
	}
}
