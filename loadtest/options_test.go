package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"carillon/loadtest/internal/generator"

	"github.com/spf13/pflag"
)

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command string
		change  func(o *options)
		want    string // a part of the error
	}{
		{"idle as it is", "idle", func(*options) {}, ""},
		{"echo as it is", "echo", func(*options) {}, ""},
		{"fanout as it is", "fanout", func(*options) {}, ""},
		{"storm as it is", "storm", func(*options) {}, ""},
		{"no connection", "echo", func(o *options) { o.Connections = 0 }, "--connections"},
		{"too small for a stamp", "echo", func(o *options) { o.Size = 27 }, "--size is 27 but must be from 28"},
		{"too small for a stamp as text", "echo", func(o *options) { o.Size, o.Text = 55, true }, "--size is 55 but must be from 56"},
		{"both kinds", "echo", func(o *options) { o.Text, o.Binary = true, true }, "mutually exclusive"},
		{"a rate below zero", "echo", func(o *options) { o.Rate = -1 }, "--rate"},
		{"more publishers than connections", "fanout", func(o *options) { o.Publishers = 1001 }, "--publishers"},
		{"no depth and no rate", "echo", func(o *options) { o.Depth = 0 }, "--depth"},
		{"no end", "idle", func(o *options) { o.Duration = 0 }, "--duration"},
		{"cut by an unknown side", "storm", func(o *options) { o.CutBy = "nobody" }, "--cut"},
		{"a header that would be two", "idle", func(o *options) { o.Headers = []string{"A: b\r\nC: d"} }, "header"},
		{"no URL", "idle", func(o *options) { o.URLs = nil }, "no URL"},
		{"a URL twice", "idle", func(o *options) { o.URLs = []string{"ws://a/", "ws://b/", "ws://a/"} }, "duplicate URL ws://a/"},
		{"servers to start", "echo", func(o *options) { o.URLs, o.Start = nil, 3 }, ""},
		{"too many servers to start", "echo", func(o *options) { o.URLs, o.Start = nil, 257 }, "--start must be from 0 to 256"},
		{"fewer than none to start", "echo", func(o *options) { o.URLs, o.Start = nil, -1 }, "--start must be"},
		{"servers to start, and a URL", "echo", func(o *options) { o.Start = 3 }, "--start and URLs are mutually exclusive"},
		{"servers to start, and a process", "echo", func(o *options) { o.URLs, o.Start, o.PIDs = nil, 3, []int{1} }, "--start and --pid are mutually exclusive"},
		{"fanout from one server to start", "fanout", func(o *options) { o.URLs, o.Start = nil, 1 }, ""},
		{"one port without servers to start", "idle", func(o *options) { o.OnePort = true }, "--one-port requires --start"},
		{"fanout from a cluster to start", "fanout", func(o *options) { o.URLs, o.Start = nil, 3 }, ""},
		{"fanout from a cluster", "fanout", func(o *options) { o.URLs = []string{"ws://a/", "ws://b/"} }, ""},
		{"no address", "idle", func(o *options) { o.Sources = "here" }, "--sources"},
		{"addresses backwards", "idle", func(o *options) { o.Sources = "127.0.0.9-127.0.0.1" }, "--sources"},
		{"too many addresses", "idle", func(o *options) { o.Sources = "10.0.0.0-11.0.0.0" }, "--sources"},
		{"mixed addresses", "idle", func(o *options) { o.Sources = "127.0.0.1-::1" }, "--sources"},
	} {
		o := defaultsFor(tt.command)
		tt.change(&o)
		err := o.check()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestFlagsOfProcesses(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want []int
	}{
		{"none", nil, nil},
		{"one", []string{"--pid", "7"}, []int{7}},
		{"a list", []string{"--pid", "7,8"}, []int{7, 8}},
		{"several times", []string{"--pid=7", "--pid=8,9"}, []int{7, 8, 9}},
	} {
		o := defaultsFor("idle")
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		o.addFlags(f)
		if err := f.Parse(tt.args); err != nil || !slices.Equal(o.PIDs, tt.want) {
			t.Errorf("%s: %v, %v", tt.name, o.PIDs, err)
		}
	}
}

func TestSourcesAreAllUsed(t *testing.T) {
	o := options{Sources: "127.0.0.254-127.0.1.1"}
	r, err := o.sources()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range r.All() {
		got = append(got, a.String())
	}
	if want := "127.0.0.254 127.0.0.255 127.0.1.0 127.0.1.1"; strings.Join(got, " ") != want {
		t.Errorf("%q, want %q", got, want)
	}
	if n := len((generator.SourceRange{}).All()); n != 0 {
		t.Errorf("no range has %d addresses", n)
	}
	one := netip.MustParseAddr("::1")
	if n := len((generator.SourceRange{First: one, Last: one}).All()); n != 1 {
		t.Errorf("one address is %d", n)
	}
}
