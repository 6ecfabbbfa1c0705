package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"carillon/loadtest/internal/report"
)

func TestShow(t *testing.T) {
	dir := t.TempDir()
	file, page := filepath.Join(dir, "r.json"), filepath.Join(dir, "r.html")
	later := filepath.Join(dir, "later.json")
	latency := &report.Latency{Count: 3, P50: 100, P90: 200, P99: 300, P999: 300, Max: 300}
	run := &report.Result{Command: "fanout", Name: "a", Messages: &report.Messages{ReceivedPerSec: 1000}, Latency: latency, Completion: latency}
	if err := report.WriteJSON(file, &report.Document{Results: []*report.Result{run}}); err != nil {
		t.Fatal(err)
	}
	if err := report.WriteJSON(later, &report.Document{Results: []*report.Result{{Command: "hum", Name: "a", Connections: report.Connections{PerSecond: 7}}}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		says string
		err  string
	}{
		{"the short table", []string{file, "--html", page}, "completion p99", ""},
		{"the long one", []string{file, "--full"}, "latency p99.9", ""},
		{"a command of a later version has all its metrics", []string{later}, "connections/s", ""},
		{"no file", nil, "", "expected one file, got 0"},
		{"a file that is not there", []string{filepath.Join(dir, "none")}, "", "read results: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := showCommand()
			var out bytes.Buffer
			cmd.SetArgs(append([]string{}, c.args...))
			cmd.SetOut(&out)
			err := cmd.Execute()
			if (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
				t.Errorf("error %v, expected %q", err, c.err)
			}
			if !strings.Contains(out.String(), c.says) {
				t.Errorf("lacks %q:\n%s", c.says, &out)
			}
		})
	}
	if html, err := os.ReadFile(page); err != nil || !bytes.Contains(html, []byte("<figure>")) {
		t.Errorf("the report has no charts: %v", err)
	}
}
