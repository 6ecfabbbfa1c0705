package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParsePeer(t *testing.T) {
	for _, row := range []struct {
		text string
		want contestant
		err  string
	}{
		{"uws=ws://127.0.0.1:9001", contestant{name: "uws", base: "ws://127.0.0.1:9001"}, ""},
		{"uws=ws://127.0.0.1:9001/,42", contestant{name: "uws", base: "ws://127.0.0.1:9001", pid: 42}, ""},
		{"ws://127.0.0.1:9001", contestant{}, "is not of the form NAME="},
		{"uws=http://127.0.0.1:9001", contestant{}, "is not of the form NAME="},
		{"uws=ws://127.0.0.1:9001,x", contestant{}, `"x" is not the number of a process`},
		{"uws=ws://127.0.0.1:9001,0", contestant{}, `"0" is not the number of a process`},
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

// A program that does not start well is named with its own words, and nobody waits for it for ever.
func TestContestantThatFails(t *testing.T) {
	script := filepath.Join(t.TempDir(), "server")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho hello\necho port is taken >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ program, want string }{
		{script, "sad did not say where it listens within 10s: port is taken"},
		{script + "-that-is-not-there", "start sad: "},
	} {
		c := contestant{name: "sad", program: row.program}
		if _, err := c.start(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v, want %q", err, row.want)
		}
		o := defaultsFor("echo")
		if r := measureOne(t.Context(), c, o, nil); r.Name != "sad" || !strings.Contains(r.Error, row.want) {
			t.Errorf("the result says %q, want %q", r.Error, row.want)
		}
	}
}

// Two rounds of carillon against itself: every run is there, forwards and then backwards, and the table
// knows both servers.
func TestCompareRounds(t *testing.T) {
	into := t.TempDir()
	one := contestant{name: "one", program: filepath.Join(into, "carillon"), env: ourEnv}
	if err := build(t.Context(), "..", one.program, "."); err != nil {
		t.Fatal(err)
	}
	two := one
	two.name = "two"
	c := comparison{quick: true, rounds: 2, htmlFile: filepath.Join(into, "report.html"), jsonFile: filepath.Join(into, "report.json")}
	doc := &Document{Rounds: 2, Results: c.measureAll(t.Context(), []contestant{one, two}, io.Discard)}
	loads := len(c.loads())
	if len(doc.Results) != 2*2*loads {
		t.Fatalf("%d results, want %d", len(doc.Results), 2*2*loads)
	}
	for i, r := range doc.Results {
		first := i%2 == 0
		if i >= 2*loads {
			first = !first
		}
		if want := map[bool]string{true: "one", false: "two"}[first]; r.Name != want || r.Error != "" || r.Server == nil || r.Connections.Opened != r.Settings.Connections {
			t.Errorf("run %d is of %s, want %s; error %q, %d open, server %v", i, r.Name, want, r.Error, r.Connections.Opened, r.Server)
		}
	}
	var text bytes.Buffer
	if err := c.tell(&text, doc); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"two", "CPU per delivery", "fanout: "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table does not say %q:\n%s", want, text.String())
		}
	}
	if again, err := readJSON(c.jsonFile); err != nil || len(again.Results) != len(doc.Results) {
		t.Errorf("the JSON: %v", err)
	}
}

// Ctrl-C in the middle leaves what was measured.
func TestCompareInterrupted(t *testing.T) {
	into := t.TempDir()
	one := contestant{name: "one", program: filepath.Join(into, "carillon"), env: ourEnv}
	if err := build(t.Context(), "..", one.program, "."); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	c := comparison{rounds: 3}
	results := c.measureAll(ctx, []contestant{one}, io.Discard)
	if len(results) == 0 || len(results) > 4 || results[len(results)-1].Error == "" {
		t.Errorf("%d results", len(results))
	}
}
