package main

import (
	"strings"
	"testing"
)

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		name      string
		change    func(o *options)
		limit     int
		processes int
		sources   string
		want      string // a part of the error
	}{
		{"few connections", func(*options) {}, 20000, 1, "", ""},
		{"as many processes as the limit asks for", func(o *options) { o.Connections = 50_000 }, 20000, 3, "127.0.0.1-127.0.0.10", ""},
		{"as many as were asked for", func(o *options) { o.Processes = 4 }, 20000, 4, "", ""},
		{"too few", func(o *options) { o.Connections, o.Processes = 50_000, 2 }, 20000, 0, "", "use --processes 3"},
		{"a low limit", func(o *options) { o.Processes = 1 }, 256, 0, "", "ulimit -n 1064"},
		{"no limit to speak of", func(*options) {}, 64, 0, "", "ulimit -n"},
		{"own sources", func(o *options) { o.Connections, o.Sources = 50_000, "127.0.1.1-127.0.1.9" }, 60000, 1, "127.0.1.1-127.0.1.9", ""},
	} {
		o := defaultsFor("idle")
		tt.change(&o)
		processes, sources, err := plan(&o, tt.limit, true)
		got := ""
		if sources.First.IsValid() {
			got = sources.First.String() + "-" + sources.Last.String()
		}
		if tt.want == "" && (err != nil || processes != tt.processes || got != tt.sources) {
			t.Errorf("%s: %d processes from %q, %v; want %d from %q", tt.name, processes, got, err, tt.processes, tt.sources)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
