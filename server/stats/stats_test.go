package stats

import (
	"slices"
	"strings"
	"testing"
)

// Every reason has a name of its own.
func TestReasonNames(t *testing.T) {
	var names []string
	for r := range NumDropReasons {
		names = append(names, "drop "+r.String())
	}
	for r := range NumRefuseReasons {
		names = append(names, "refuse "+r.String())
	}
	for r := range NumCutReasons {
		names = append(names, "cut "+r.String())
	}
	for r := range NumPlainCutReasons {
		names = append(names, "plain "+r.String())
	}
	slices.Sort(names)
	if n := len(slices.Compact(slices.Clone(names))); n != len(names) || slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, " ") }) {
		t.Errorf("names: %q", names)
	}
}
