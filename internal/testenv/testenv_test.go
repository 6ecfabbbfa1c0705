package testenv

import (
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// verdict is a test that notes what becomes of it.
type verdict struct {
	testing.TB
	failed, skipped bool
}

func (v *verdict) Helper()               {}
func (v *verdict) Cleanup(func())        {}
func (v *verdict) Fatalf(string, ...any) { v.failed = true; runtime.Goexit() }
func (v *verdict) Skipf(string, ...any)  { v.skipped = true; runtime.Goexit() }

func TestWhatIsMissingSkipsAndFailsInCI(t *testing.T) {
	for _, row := range []struct {
		ci, program     string
		failed, skipped bool
	}{
		{"", "no-such-program", false, true},
		{"false", "no-such-program", false, true},
		{"true", "no-such-program", true, false},
		{"", "go", false, false},
		{"true", "go", false, false},
	} {
		t.Setenv("CI", row.ci)
		v := &verdict{TB: t}
		var path string
		var ended sync.WaitGroup
		ended.Go(func() { path = Program(v, row.program) })
		ended.Wait()
		if v.failed != row.failed || v.skipped != row.skipped {
			t.Errorf("with CI=%s, %s: failed %v, skipped %v", row.ci, row.program, v.failed, v.skipped)
		}
		if found := filepath.IsAbs(path); found != (row.program == "go") {
			t.Errorf("with CI=%s, the path of %s is %q", row.ci, row.program, path)
		}
	}
}

func TestAModuleOfPythonThatIsMissing(t *testing.T) {
	for ci, fails := range map[string]bool{"": false, "true": true} {
		t.Setenv("CI", ci)
		v := &verdict{TB: t}
		var ended sync.WaitGroup
		ended.Go(func() { Python(v, "no_such_module") })
		ended.Wait()
		if v.failed != fails || v.skipped == fails {
			t.Errorf("with CI=%s: failed %v, skipped %v", ci, v.failed, v.skipped)
		}
	}
}
