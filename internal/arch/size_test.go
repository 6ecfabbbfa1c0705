package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mostLines is how large a package may be that a newcomer is to know: lines of code, without comments and tests.
const mostLines = 6500

// No package grows without bound: what knows nothing of the rest becomes a package of its own before that.
func TestPackagesHaveASize(t *testing.T) {
	lines := map[string]int{}
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "node_modules" || path != "../.." && strings.HasPrefix(entry.Name(), ".")):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
				lines[filepath.Dir(path)]++
			}
		}
		return err
	})
	if err != nil || len(lines) < 20 {
		t.Fatal(len(lines), err)
	}
	for dir, n := range lines {
		if n > mostLines {
			t.Errorf("%s has %d lines of code, and may have %d: see docs/architecture.md, Layers", dir, n, mostLines)
		}
	}
}
