package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"carillon/loadtest/internal/report"
)

func TestDiffCommand(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, doc *report.Document) string {
		path := filepath.Join(dir, name)
		if err := report.WriteJSON(path, doc); err != nil {
			t.Fatal(err)
		}
		return path
	}
	echo := func(name string, perSecond float64) *report.Document {
		return &report.Document{Results: []*report.Result{{Command: "echo", Name: name, Messages: &report.Messages{ReceivedPerSec: perSecond}}}}
	}
	fast := write("fast.json", echo("a", 100))
	slow := write("slow.json", echo("a", 90))
	stranger := write("stranger.json", echo("b", 90))
	broken := filepath.Join(dir, "broken.json")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		args   []string
		status int
		says   string
	}{
		{"nothing got worse", []string{slow, fast}, 0, "better"},
		{"something got worse", []string{fast, slow}, 1, "worse"},
		{"a threshold above the change", []string{fast, slow, "--threshold=20"}, 0, "within 20%"},
		{"no arguments", nil, 2, "expected two files"},
		{"a negative threshold", []string{fast, slow, "--threshold=-1"}, 2, "--threshold: -1 is not a non-negative percentage"},
		{"a threshold that is no number", []string{fast, slow, "--threshold=NaN"}, 2, "is not a non-negative percentage"},
		{"an unknown flag", []string{fast, slow, "--frobnicate"}, 2, "unknown flag: --frobnicate"},
		{"a broken file", []string{fast, broken}, 2, "broken.json: file is truncated"},
		{"a missing file", []string{fast, filepath.Join(dir, "none.json")}, 2, "none.json"},
		{"files that have no run in common", []string{fast, stranger}, 2, "have no runs in common"},
		{"help", []string{"--help"}, 0, "Exit status"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			status := runDiff(c.args, &stdout, &stderr)
			if all := stdout.String() + stderr.String(); status != c.status || !strings.Contains(all, c.says) {
				t.Errorf("status %d, expected %d with %q:\n%s", status, c.status, c.says, all)
			}
			if (status == 2) != (stderr.Len() > 0) {
				t.Errorf("status %d with %q on standard error", status, &stderr)
			}
		})
	}
}
