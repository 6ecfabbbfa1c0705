package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"carillon/loadtest/internal/report"

	"github.com/spf13/cobra"
)

// comparison measures several servers under the same loads in several rounds.
type comparison struct {
	quick     bool
	rounds    int
	storm     bool
	only      []string
	peers     []string
	processes int
	jsonFile  string
	htmlFile  string
	full      bool
}

const compareHelp = `Builds carillon and the servers in loadtest/peers, runs each under the same loads,
and prints the main metrics: the median of all rounds, the largest deviation from
it, and the ratio to carillon, computed round by round. --full prints all metrics;
the JSON and HTML reports always have them.

The loads are idle connections, echo with 1 and with 32 messages in flight per
connection, fan-out on a fixed schedule, and fan-out as fast as possible. Each run
starts a new server process. Every second round measures the servers in reverse
order, so that a machine that slows down over time favours none of them.

"floor" is not a usable WebSocket server but a bare loop of read(2) and write(2):
the limit of this machine with one system call per message.

--peer adds a running server in any language, which must serve /echo and
/broadcast. It is one process for all runs, so its memory per connection is
reported for the first run only. Restart it before each comparison.`

func compareCommand() *cobra.Command {
	var c comparison
	cmd := &cobra.Command{
		Use: "compare", Short: "Compare carillon with other servers", Long: compareHelp,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return c.run(os.Stdout, os.Stderr) },
	}
	f := cmd.Flags()
	f.BoolVar(&c.quick, "quick", false, "one round of short runs, about a minute")
	f.IntVar(&c.rounds, "rounds", 3, "measure each server `N` times")
	f.BoolVar(&c.storm, "storm", false, "also close all connections and measure how they reconnect")
	f.StringSliceVar(&c.only, "only", nil, "compare only these servers, `NAME,...`")
	f.StringArrayVar(&c.peers, "peer", nil, "add a running server, `NAME=ws://HOST:PORT[,PID]`; repeatable")
	f.IntVar(&c.processes, "processes", 0, "spread connections over `N` generator processes; 0 is as many as needed, and at least 2 without a rate")
	f.BoolVar(&c.full, "full", false, "print all metrics")
	f.StringVar(&c.jsonFile, "json", "", "write the results as JSON to `FILE`")
	f.StringVar(&c.htmlFile, "html", "", "write an HTML report to `FILE`")
	return cmd
}

// loads returns the loads of the comparison.
func (c *comparison) loads() []options {
	scale := func(quick, full int) int {
		if c.quick {
			return quick
		}
		return full
	}
	length := time.Duration(scale(500, 2000)) * time.Millisecond
	load := func(command string, connections int, change func(o *options)) options {
		o := defaultsFor(command)
		o.Connections, o.Duration, o.Processes = connections, length, c.processes
		change(&o)
		return o
	}
	list := []options{
		load("idle", scale(1000, 5000), func(o *options) {}),
		load("echo", 100, func(o *options) { o.Depth = 1 }),
		load("echo", 100, func(o *options) { o.Depth = 32 }),
		load("fanout", scale(500, 1000), func(o *options) { o.Rate = 20 }),
		load("fanout", scale(500, 1000), func(o *options) { o.Rate, o.Depth = 0, 32 }),
	}
	if c.storm {
		list = append(list, load("storm", scale(500, 2000), func(o *options) { o.Duration = 10 * time.Second }))
	}
	for i := range list {
		list[i].Processes = processesFor(&list[i])
	}
	return list
}

// processesFor fixes the number of processes in advance, so that the results of runs that fail to start have
// the same settings as the others.
//
// Loads without a rate use at least two processes, since one would limit the fastest servers: on two cores
// carillon delivers 4.6 million messages per second to one and 5.9 million to two, and against the floor one
// is busy for more than 90% of the time. The drawback is that the second takes CPU time from servers that use
// both cores: gws falls from 360 to 290 thousand per second. CPU time per delivery changes by about a tenth.
func processesFor(o *options) int {
	processes, _, err := plan(o, descriptorLimit(), true)
	if err != nil {
		return o.Processes // the run will return the error
	}
	if o.Processes == 0 && o.sends() && o.Rate == 0 {
		return max(processes, 2)
	}
	return processes
}

func (c *comparison) entrants(ctx context.Context, into string, log io.Writer) ([]entrant, error) {
	fmt.Fprintln(log, "building carillon and its peers")
	list, err := buildEntrants(ctx, into)
	if err != nil {
		return nil, err
	}
	return c.choose(list)
}

// choose applies --peer and --only.
func (c *comparison) choose(list []entrant) ([]entrant, error) {
	for _, text := range c.peers {
		other, err := parsePeer(text)
		if err != nil {
			return nil, err
		}
		list = append(list, other)
	}
	var names []string
	for _, one := range list {
		if slices.Contains(names, one.name) {
			return nil, fmt.Errorf("--peer %s: name already in use", one.name)
		}
		names = append(names, one.name)
	}
	if len(c.only) == 0 {
		return list, nil
	}
	for _, name := range c.only {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("--only %s: no such server; there are %s", name, strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(list, func(one entrant) bool { return !slices.Contains(c.only, one.name) }), nil
}

func (c *comparison) run(out, log io.Writer) error {
	if c.quick {
		c.rounds = 1
	}
	if c.rounds < 1 || c.rounds > report.MaxRounds {
		return fmt.Errorf("--rounds is %d but must be from 1 to %d", c.rounds, report.MaxRounds)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	defer stop()
	into, err := os.MkdirTemp("", "loadtest-compare-")
	if err != nil {
		return &failure{err}
	}
	defer os.RemoveAll(into)
	list, err := c.entrants(ctx, into, log)
	if err != nil {
		return &failure{err}
	}
	doc := &report.Document{Rounds: c.rounds}
	doc.Results = c.measureAll(ctx, list, c.loads(), log)
	if len(doc.Results) == 0 {
		return errInterrupted
	}
	err = c.output(out, doc)
	if ctx.Err() != nil {
		err = errors.Join(errInterrupted, err)
	} else if err != nil {
		err = &failure{err}
	}
	return err
}

// measureAll measures all rounds. The results include failed runs, with their errors.
func (c *comparison) measureAll(ctx context.Context, list []entrant, loads []options, log io.Writer) (results []*report.Result) {
	total, done, began := c.rounds*len(loads)*len(list), 0, time.Now()
	progress := newProgressLine(os.Stderr)
	defer progress.clear()
	for round := range c.rounds {
		order := slices.Clone(list)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for i, load := range loads {
			for _, one := range order {
				progress.clear()
				fmt.Fprintf(log, "%3d of %d%s  %s: %s\n", done+1, total, remaining(began, done, total), one.name, load.describe())
				r := measureOne(ctx, one, load, progress.show)
				r.Round = round + 1
				if used := round > 0 || i > 0; used && one.program == "" && r.Server != nil {
					// The memory of earlier connections was reused.
					r.Server.RSSPerConn = 0
				}
				results = append(results, r)
				if done++; ctx.Err() != nil {
					return results
				}
			}
		}
	}
	return results
}

func remaining(began time.Time, done, total int) string {
	if done == 0 {
		return ""
	}
	left := time.Since(began) / time.Duration(done) * time.Duration(total-done)
	return fmt.Sprintf(", %v left", left.Round(time.Second))
}

func (o *options) describe() string {
	text := fmt.Sprintf("%s, %d connections", o.Command, o.Connections)
	switch {
	case o.sends() && o.Rate > 0:
		text += fmt.Sprintf(", %v messages/s", o.Rate)
	case o.sends():
		text += fmt.Sprintf(", %d in flight", o.Depth)
	}
	return text
}

// measureOne measures one server under one load.
func measureOne(ctx context.Context, one entrant, o options, watch func(progress)) *report.Result {
	o.Name = one.name
	server, err := one.start()
	if err != nil {
		r := newResult(&o)
		r.Error = err.Error()
		return r
	}
	defer server.stop()
	path := "/echo"
	if o.Command == "fanout" {
		path = "/broadcast"
	}
	o.URLs = []string{server.base + path}
	if server.pid != 0 {
		o.PIDs = []int{server.pid}
	}
	r := measure(ctx, &o, watch)
	r.URL = strings.TrimPrefix(path, "/") // the port is different each time
	return r
}

// output prints the table and writes the files.
func (c *comparison) output(out io.Writer, doc *report.Document) error {
	err := report.PrintTable(out, doc, c.full)
	failed := 0
	for _, r := range doc.Results {
		if r.Error != "" {
			failed++
		}
	}
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d runs ended early: see the notes below the table", failed, len(doc.Results)))
	}
	if c.jsonFile != "" {
		err = errors.Join(err, report.WriteJSON(c.jsonFile, doc))
	}
	if c.htmlFile != "" {
		err = errors.Join(err, report.WriteHTML(c.htmlFile, doc))
	}
	return err
}
