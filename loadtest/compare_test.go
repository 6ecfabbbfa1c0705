package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/loadtest/internal/report"
)

func TestParsePeer(t *testing.T) {
	for _, row := range []struct {
		text string
		want entrant
		err  string
	}{
		{"uws=ws://127.0.0.1:9001", entrant{name: "uws", base: "ws://127.0.0.1:9001"}, ""},
		{"uws=ws://127.0.0.1:9001/,42", entrant{name: "uws", base: "ws://127.0.0.1:9001", pid: 42}, ""},
		{"ws://127.0.0.1:9001", entrant{}, "is not of the form NAME="},
		{"uws=wss://127.0.0.1:9001", entrant{}, "is not of the form NAME=ws://"},
		{"uws=http://127.0.0.1:9001", entrant{}, "is not of the form NAME="},
		{"uws=ws://127.0.0.1:9001,x", entrant{}, `invalid process ID "x"`},
		{"uws=ws://127.0.0.1:9001,0", entrant{}, `invalid process ID "0"`},
	} {
		got, err := parsePeer(row.text)
		if row.err == "" && (err != nil || got.name != row.want.name || got.base != row.want.base || got.pid != row.want.pid) {
			t.Errorf("%s: %+v, %v", row.text, got, err)
		}
		if row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)) {
			t.Errorf("%s: error %v, want %q", row.text, err, row.err)
		}
	}
}

// The error about a program that does not start names it and quotes its output.
func TestEntrantThatFails(t *testing.T) {
	script := filepath.Join(t.TempDir(), "server")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho hello\necho port is taken >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ program, want string }{
		{script, "sad printed no listen address within 10s: port is taken"},
		{script + "-that-is-not-there", "start sad: "},
	} {
		c := entrant{name: "sad", program: row.program}
		if _, err := c.start(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v, want %q", err, row.want)
		}
		o := defaultsFor("echo")
		if r := measureOne(t.Context(), c, o, nil); r.Name != "sad" || !strings.Contains(r.Error, row.want) {
			t.Errorf("the result says %q, want %q", r.Error, row.want)
		}
	}
}

// In two rounds of carillon against itself every run is in the results, the second round is in reverse order,
// and the table has both servers.
func TestCompareRounds(t *testing.T) {
	t.Parallel()
	into := t.TempDir()
	one := entrant{name: "one", program: carillon(t), env: carillonEnv}
	two := one
	two.name = "two"
	c := comparison{quick: true, rounds: 2, htmlFile: filepath.Join(into, "report.html"), jsonFile: filepath.Join(into, "report.json")}
	some := c.loads()[2:4] // an echo and a fan-out; another test runs all
	doc := &report.Document{Rounds: 2, Results: c.measureAll(t.Context(), []entrant{one, two}, some, io.Discard)}
	loads := len(some)
	if len(doc.Results) != 2*2*loads {
		t.Fatalf("%d results, want %d", len(doc.Results), 2*2*loads)
	}
	for i, r := range doc.Results {
		first := i%2 == 0
		if i >= 2*loads {
			first = !first
		}
		if round := 1 + i/(2*loads); r.Round != round {
			t.Errorf("run %d is of round %d, want %d", i, r.Round, round)
		}
		if want := map[bool]string{true: "one", false: "two"}[first]; r.Name != want || r.Error != "" || r.Server == nil || r.Connections.Opened != r.Settings.Connections {
			t.Errorf("run %d is of %s, want %s; error %q, %d open, server %v", i, r.Name, want, r.Error, r.Connections.Opened, r.Server)
		}
	}
	var text bytes.Buffer
	if err := c.output(&text, doc); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"two", "CPU/delivery", "fanout: "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table does not say %q:\n%s", want, text.String())
		}
	}
	if again, err := report.ReadJSON(c.jsonFile); err != nil || len(again.Results) != len(doc.Results) {
		t.Errorf("the JSON: %v", err)
	}
}

// Ctrl-C keeps what was measured.
func TestCompareInterrupted(t *testing.T) {
	t.Parallel()
	one := entrant{name: "one", program: carillon(t), env: carillonEnv}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	c := comparison{rounds: 3}
	results := c.measureAll(ctx, []entrant{one}, c.loads(), io.Discard)
	if len(results) == 0 || len(results) > 4 || results[len(results)-1].Error == "" {
		t.Errorf("%d results", len(results))
	}
}

func TestOnlyAndPeerNameServersThatAre(t *testing.T) {
	built := []entrant{{name: "carillon"}, {name: "gws"}}
	for _, row := range []struct {
		others, only []string
		want         string // the names, or the beginning of the error
	}{
		{nil, nil, "carillon gws"},
		{[]string{"mine=ws://127.0.0.1:1"}, nil, "carillon gws mine"},
		{[]string{"mine=ws://127.0.0.1:1"}, []string{"mine", "carillon"}, "carillon mine"},
		{nil, []string{"gsw"}, "--only gsw: no such server; there are carillon, gws"},
		{[]string{"gws=ws://127.0.0.1:1"}, nil, "--peer gws: name already in use"},
		{[]string{"mine"}, nil, "--peer mine is not of the form"},
	} {
		list, err := (&comparison{peers: row.others, only: row.only}).choose(slices.Clone(built))
		var names []string
		for _, one := range list {
			names = append(names, one.name)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, row.want) {
			t.Errorf("--peer %v --only %v: %s, want %s", row.others, row.only, got, row.want)
		}
	}
}

// Loads without a rate use two processes, so that the generator does not limit fast servers.
func TestProcessesOfLoads(t *testing.T) {
	for _, load := range (&comparison{storm: true}).loads() {
		if fast := load.sends() && load.Rate == 0; load.Processes < 1 || fast && load.Processes < 2 {
			t.Errorf("%s: %d processes", load.describe(), load.Processes)
		}
	}
	for _, load := range (&comparison{processes: 3}).loads() {
		if load.Processes != 3 {
			t.Errorf("%s: %d processes, and 3 were asked for", load.describe(), load.Processes)
		}
	}
}

// A running server that --peer adds is one process under all loads, so some metrics are left out. A server
// that does not start has results under the same loads.
func TestComparePeerAndStorm(t *testing.T) {
	t.Parallel()
	url, pid := startCarillon(t)
	peer, err := parsePeer(fmt.Sprintf("mine=%s,%d", url, pid))
	if err != nil {
		t.Fatal(err)
	}
	sad := entrant{name: "sad", program: filepath.Join(t.TempDir(), "none")}
	c := comparison{quick: true, storm: true}
	var loads []options
	for _, load := range c.loads() {
		load.Connections, load.Duration = 60, 200*time.Millisecond
		if load.Command == "storm" {
			load.Duration, load.Backoff = 5*time.Second, 50*time.Millisecond
		}
		loads = append(loads, load)
	}
	c.rounds = 1
	results := c.measureAll(t.Context(), []entrant{peer, sad}, loads, io.Discard)
	table := report.Compare(results)
	if len(results) != 2*len(loads) || len(table.Sections) != len(loads) {
		t.Fatalf("%d results in %d sections, want %d in %d", len(results), len(table.Sections), 2*len(loads), len(loads))
	}
	for i, r := range results {
		if i%2 == 1 {
			if !strings.Contains(r.Error, "start sad") || r.Round != 1 {
				t.Errorf("%+v", r)
			}
			continue
		}
		if r.Name != "mine" || r.Error != "" || r.Connections.Opened != 60 {
			t.Errorf("%s %s: error %q, %+v", r.Name, r.Command, r.Error, r.Connections)
		}
		if runtime.GOOS != "linux" {
			continue
		}
		if s := r.Server; s == nil || s.PID != pid || s.RSS == 0 || i > 0 && s.RSSPerConn != 0 {
			t.Errorf("%s: measured %+v, and the process is %d", r.Command, s, pid)
		}
	}
	last := results[len(results)-2]
	if last.Storm == nil || last.Storm.Back100 == 0 {
		t.Errorf("the storm: %+v", last.Storm)
	}
}
