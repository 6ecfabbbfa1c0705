package arch

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// unusual are words that a reader of this field stumbles over, with what is usual.
var unusual = []struct {
	pattern *regexp.Regexp
	usual   string
}{
	{regexp.MustCompile(`(?i)\b(nobody|somebody|whoever)\b`), "name what acts: no client, a subscriber, any caller"},
	{regexp.MustCompile(`(?i)\bsays (whether|if)\b`), "reports whether"},
	{regexp.MustCompile(`(?i)\bit may be called on nil\b`), "may be called on a nil receiver"},
}

// TestComments looks at the comments of all code that is not a test.
func TestComments(t *testing.T) {
	files := token.NewFileSet()
	seen := 0
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "node_modules" || path != "../.." && strings.HasPrefix(entry.Name(), ".")):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		seen++
		for _, group := range file.Comments {
			for _, word := range unusual {
				if found := word.pattern.FindString(group.Text()); found != "" {
					t.Errorf("%s: %q: %s", files.Position(group.Pos()), found, word.usual)
				}
			}
		}
		return nil
	})
	if err != nil || seen < 100 {
		t.Fatal(seen, err)
	}
}

// TestDocuments looks at what users read.
func TestDocuments(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatal(pages, err)
	}
	for _, page := range append(pages, "../../README.md", "../../CONTRIBUTING.md", "../../config.yaml") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			for _, word := range unusual {
				if found := word.pattern.FindString(line); found != "" {
					t.Errorf("%s:%d: %q: %s", page, n, found, word.usual)
				}
			}
		}
	}
}
