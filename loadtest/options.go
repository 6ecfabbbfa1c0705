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

// options are all that shapes a run.
type options struct {
	Command string
	URLs    []string // the connections are spread evenly over them
	Start   int      // servers to be started for the run, instead of URLs
	OnePort bool     // they share one
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

// defaultsFor are the options of a command that was given none.
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

// sends says whether the command sends messages.
func (o *options) sends() bool { return o.Command == "echo" || o.Command == "fanout" }

// senders is how many send: every connection, some of them, or none.
func (o *options) senders() int {
	switch o.Command {
	case "echo":
		return o.Connections
	case "fanout":
		return o.Publishers
	}
	return 0
}

// What a run may ask for at most. Every run has an end, and fits in memory.
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
		return errors.New("--text and --binary exclude each other")
	}
	least := 0
	if o.sends() {
		least = generator.MinSize(o.Text)
	}
	for _, n := range []struct {
		name            string
		is, least, most float64
	}{
		{"connections", float64(o.Connections), 1, maxConnections},
		{"size", float64(o.Size), float64(least), maxSize},
		{"rate", o.Rate, 0, maxRate},
		{"depth", float64(o.Depth), 0, maxDepth},
		{"processes", float64(o.Processes), 0, maxProcesses},
	} {
		if !(n.is >= n.least && n.is <= n.most) {
			return fmt.Errorf("--%s is %v, and must be from %v to %v", n.name, n.is, n.least, int(n.most))
		}
	}
	if o.Duration <= 0 || o.Duration > maxDuration || o.Ramp < 0 || o.Ramp > maxDuration {
		return fmt.Errorf("--duration must be positive, --ramp not negative, and both at most %v", maxDuration)
	}
	if o.Command == "fanout" {
		if o.Publishers < 1 || o.Publishers > o.Connections && o.PublishURL == "" {
			return fmt.Errorf("--publishers is %d, and must be from 1 to the number of connections, %d", o.Publishers, o.Connections)
		}
		if o.Publishers*o.Connections > maxStreams {
			return fmt.Errorf("%d publishers to %d connections are too many streams to keep account of", o.Publishers, o.Connections)
		}
	}
	if o.sends() && o.Rate == 0 && o.Depth < 1 {
		return errors.New("without --rate, --depth must be at least 1")
	}
	if o.CutBy != "tool" && o.CutBy != "server" {
		return fmt.Errorf("--cut is %q, and must be tool or server", o.CutBy)
	}
	if o.Backoff <= 0 || o.MaxDelay < o.Backoff {
		return errors.New("--backoff must be positive and not more than --backoff-max")
	}
	for _, h := range append(o.Headers[:len(o.Headers):len(o.Headers)], o.PublishHeader...) {
		if name, _, ok := strings.Cut(h, ":"); !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsAny(h, "\r\n") {
			return errors.New("a header is not of the form \"Name: value\"") // it may be a secret
		}
	}
	if err := o.checkServers(); err != nil {
		return err
	}
	_, err := o.sources()
	return err
}

// checkServers is about which servers there are, and not yet about whether they answer.
func (o *options) checkServers() error {
	for i, url := range o.URLs {
		if slices.Contains(o.URLs[:i], url) {
			return fmt.Errorf("%s is given twice", redactURL(url))
		}
	}
	switch {
	case o.Start < 0 || o.Start > maxServers || len(o.URLs) > maxServers:
		return fmt.Errorf("--start must be from 0 to %d, and there can be no more URLs", maxServers)
	case o.Start == 0 && len(o.URLs) == 0:
		return errors.New("there is no URL")
	case o.Start > 0 && len(o.URLs) > 0:
		return errors.New("--start and URLs exclude each other: the servers that it starts are the ones that are measured")
	case o.OnePort && o.Start == 0:
		return errors.New("--one-port is for servers that --start starts")
	case o.OnePort && runtime.GOOS != "linux":
		return errors.New("--one-port needs Linux, where the kernel spreads connections over the servers that share a port")
	case o.Start > 0 && len(o.PIDs) > 0:
		return errors.New("--start and --pid exclude each other: the processes that it starts are known")
	}
	return nil
}

// sources are the first and the last source address, or none.
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

// settings is what the result says about the options.
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
