package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"carillon/loadtest/internal/generator"
	"carillon/loadtest/internal/report"
)

// options are the options of a run.
type options struct {
	Command string
	URLs    []string // connections are spread evenly over them
	Start   int      // number of servers to start, instead of URLs
	OnePort bool     // the started servers share one
	Name    string

	Connections int
	Publishers  int
	Size        int
	Rate        float64
	Depth       int
	Duration    time.Duration
	Ramp        time.Duration
	Text        bool
	Binary      bool
	Compression bool

	Subprotocols  []string
	Headers       []string
	Sources       string
	Processes     int
	PIDs          []int
	PublishURL    string
	PublishHeader []string

	CutBy    string
	Backoff  time.Duration
	MaxDelay time.Duration
}

const (
	defaultEcho      = "ws://127.0.0.1:8080/echo"
	defaultBroadcast = "ws://127.0.0.1:8080/broadcast"
)

// defaultsFor returns the defaults of a command.
func defaultsFor(command string) options {
	o := options{
		Command:     command,
		URLs:        []string{defaultEcho},
		Connections: 1000,
		Size:        128,
		Duration:    10 * time.Second,
		CutBy:       "tool",
		Backoff:     time.Second,
		MaxDelay:    30 * time.Second,
	}
	switch command {
	case "echo":
		o.Connections, o.Depth = 100, 1
	case "fanout":
		o.URLs, o.Publishers, o.Rate, o.Depth = []string{defaultBroadcast}, 1, 50, 32
	case "storm":
		o.Duration = time.Minute
	}
	return o
}

// sends reports whether the command sends messages.
func (o *options) sends() bool { return o.Command == "echo" || o.Command == "fanout" }

// senders is the number of senders.
func (o *options) senders() int {
	switch o.Command {
	case "echo":
		return o.Connections
	case "fanout":
		return o.Publishers
	}
	return 0
}

// Limits of a run, so that it ends and fits in memory.
const (
	maxConnections = 1_000_000
	maxSize        = 16 << 20
	maxRate        = 10_000_000
	maxDepth       = 65_536
	maxDuration    = 24 * time.Hour
	maxProcesses   = 256
	maxServers     = 256
	maxStreams     = 1 << 28
)

func (o *options) check() error {
	if o.Text && o.Binary {
		return errors.New("--text and --binary are mutually exclusive")
	}
	smallest := 0
	if o.sends() {
		smallest = generator.MinSize(o.Text)
	}
	for _, n := range []struct {
		name             string
		value, low, high float64
	}{
		{"connections", float64(o.Connections), 1, maxConnections},
		{"size", float64(o.Size), float64(smallest), maxSize},
		{"rate", o.Rate, 0, maxRate},
		{"depth", float64(o.Depth), 0, maxDepth},
		{"processes", float64(o.Processes), 0, maxProcesses},
	} {
		if !(n.value >= n.low && n.value <= n.high) {
			return fmt.Errorf("--%s is %v but must be from %v to %v", n.name, n.value, n.low, int(n.high))
		}
	}
	if o.Duration <= 0 || o.Duration > maxDuration || o.Ramp < 0 || o.Ramp > maxDuration {
		return fmt.Errorf("--duration must be positive, --ramp must not be negative, and both must be at most %v", maxDuration)
	}
	if o.Command == "fanout" {
		if o.Publishers < 1 || o.Publishers > o.Connections && o.PublishURL == "" {
			return fmt.Errorf("--publishers is %d but must be from 1 to the number of connections, %d", o.Publishers, o.Connections)
		}
		if o.Publishers*o.Connections > maxStreams {
			return fmt.Errorf("%d publishers times %d connections are too many streams to track", o.Publishers, o.Connections)
		}
	}
	if o.sends() && o.Rate == 0 && o.Depth < 1 {
		return errors.New("without --rate, --depth must be at least 1")
	}
	if o.CutBy != "tool" && o.CutBy != "server" {
		return fmt.Errorf("--cut is %q but must be tool or server", o.CutBy)
	}
	if o.Backoff <= 0 || o.MaxDelay < o.Backoff {
		return errors.New("--backoff must be positive and at most --backoff-max")
	}
	for _, h := range append(o.Headers[:len(o.Headers):len(o.Headers)], o.PublishHeader...) {
		if name, _, ok := strings.Cut(h, ":"); !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsAny(h, "\r\n") {
			return errors.New("header is not of the form \"Name: value\"") // without its text, which may be secret
		}
	}
	if err := o.checkServers(); err != nil {
		return err
	}
	_, err := o.sources()
	return err
}

// checkServers checks the options that select servers.
func (o *options) checkServers() error {
	for i, url := range o.URLs {
		if slices.Contains(o.URLs[:i], url) {
			return fmt.Errorf("duplicate URL %s", redactURL(url))
		}
	}
	switch {
	case o.Start < 0 || o.Start > maxServers || len(o.URLs) > maxServers:
		return fmt.Errorf("--start must be from 0 to %d, as must the number of URLs", maxServers)
	case o.Start == 0 && len(o.URLs) == 0:
		return errors.New("no URL given")
	case o.Start > 0 && len(o.URLs) > 0:
		return errors.New("--start and URLs are mutually exclusive")
	case o.OnePort && o.Start == 0:
		return errors.New("--one-port requires --start")
	case o.OnePort && runtime.GOOS != "linux":
		return errors.New("--one-port requires Linux, where servers can share a port")
	case o.Start > 0 && len(o.PIDs) > 0:
		return errors.New("--start and --pid are mutually exclusive")
	}
	return nil
}

// sources parses the range of source addresses.
func (o *options) sources() (r generator.SourceRange, err error) {
	if o.Sources == "" {
		return r, nil
	}
	first, last, isRange := strings.Cut(o.Sources, "-")
	if r.First, err = netip.ParseAddr(first); err != nil {
		return r, fmt.Errorf("--sources: %w", err)
	}
	if r.Last = r.First; isRange {
		if r.Last, err = netip.ParseAddr(last); err != nil {
			return r, fmt.Errorf("--sources: %w", err)
		}
	}
	if r.First.BitLen() != r.Last.BitLen() || r.Last.Less(r.First) || r.Count() > generator.MaxSources {
		return r, fmt.Errorf("--sources %s is not a range of at most %d addresses, such as 127.0.0.1-127.0.0.20", o.Sources, generator.MaxSources)
	}
	return r, nil
}

// settings are the options as part of a result.
func (o *options) settings(processes int, sources generator.SourceRange) report.Settings {
	s := report.Settings{
		Connections: o.Connections,
		Duration:    o.Duration.Seconds(),
		Ramp:        o.Ramp.Seconds(),
		Binary:      !o.Text,
		Compression: o.Compression,
		Processes:   processes,
	}
	if o.sends() {
		s.Rate, s.Size = o.Rate, o.Size
		if o.Rate == 0 {
			s.Depth = o.Depth
		}
	}
	if o.Command == "fanout" {
		s.Publishers, s.PublishURL = o.Publishers, redactURL(o.PublishURL)
	}
	if sources.First.IsValid() {
		s.Sources = []string{sources.First.String(), sources.Last.String()}
	}
	return s
}
