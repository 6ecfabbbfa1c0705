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

// comparison is several servers under the same loads, in several rounds.
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

const compareHelp = `Builds carillon and the servers in loadtest/peers, starts each as a process of its
own, puts each under the same loads, and prints one table: the figures that matter most,
each as the median of the rounds, how far the rounds were from it at most, and its
ratio to carillon's, round by round. --full prints every figure, and the reports
have them all.

The loads are: idle connections; echo with one message under way on each
connection and with 32; fan-out on a schedule, and as fast as possible. Every run
begins with a fresh process, and every second round goes through the servers
backwards, so that a machine that changes its speed favours nobody.

"floor" is no WebSocket server but a bare loop of read(2) and write(2): what this
machine can do at most with one system call for each message.

Other servers, in any language, join with --peer: they need /echo and /broadcast.
Such a server is one process for all runs. How much a connection makes it grow is
known of its first run only; restart it before each comparison.`

func compareCommand() *cobra.Command {
	var c comparison
	cmd := &cobra.Command{
		Use: "compare", Short: "Compare servers, in one run", Long: compareHelp,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return c.run(os.Stdout, os.Stderr) },
	}
	f := cmd.Flags()
	f.BoolVar(&c.quick, "quick", false, "one round of short runs, under a minute")
	f.IntVar(&c.rounds, "rounds", 3, "go through all servers so `many` times")
	f.BoolVar(&c.storm, "storm", false, "also cut all connections off and watch them return")
	f.StringSliceVar(&c.only, "only", nil, "leave out all but these `names`")
	f.StringArrayVar(&c.peers, "peer", nil, "a server that runs already, as `NAME=ws://HOST:PORT[,PID]`; may be repeated")
	f.IntVar(&c.processes, "processes", 0, "of the generator; 0 is as many as the connections need, and at least 2 where messages go as fast as possible")
	f.BoolVar(&c.full, "full", false, "print every figure")
	f.StringVar(&c.jsonFile, "json", "", "write the results as JSON to `FILE`")
	f.StringVar(&c.htmlFile, "html", "", "write a report to `FILE`")
	return cmd
}

// loads are what every server is put under.
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

// processesFor settles the number before the run, so that one that fails at once stands under the same
// load as the others.
//
// As fast as possible takes two processes at least. One alone sets the pace of the fastest servers: on
// two cores carillon delivers 4.6 million messages a second to one and 5.9 million to two, and against
// the floor one is busy for more than 90 % of the time. The price is that the second takes processor
// time from servers that would use both cores: gws falls from 360 to 290 thousand a second. What a
// delivery costs in processor time moves by about a tenth.
func processesFor(o *options) int {
	processes, _, err := plan(o, descriptorLimit(), true)
	if err != nil {
		return o.Processes // the run will say it
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

// choose adds the servers that run already, and leaves out what --only does not name.
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
			return nil, fmt.Errorf("--peer %s: there is a server of this name already", one.name)
		}
		names = append(names, one.name)
	}
	if len(c.only) == 0 {
		return list, nil
	}
	for _, name := range c.only {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("--only %s: there are only %s", name, strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(list, func(one entrant) bool { return !slices.Contains(c.only, one.name) }), nil
}

func (c *comparison) run(out, log io.Writer) error {
	if c.quick {
		c.rounds = 1
	}
	if c.rounds < 1 || c.rounds > report.MaxRounds {
		return fmt.Errorf("--rounds is %d, and must be from 1 to %d", c.rounds, report.MaxRounds)
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

// measureAll goes through the rounds. A run that fails is in the results too, with its error.
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
					// It keeps memory of its earlier connections, into which these went first.
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
		text += fmt.Sprintf(", %d under way", o.Depth)
	}
	return text
}

// measureOne puts a fresh process of one server under one load.
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
	r.URL = strings.TrimPrefix(path, "/") // the port is another one each time
	return r
}

// output prints the table and writes the files. The error joins what failed.
func (c *comparison) output(out io.Writer, doc *report.Document) error {
	err := report.PrintTable(out, doc, c.full)
	failed := 0
	for _, r := range doc.Results {
		if r.Error != "" {
			failed++
		}
	}
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d runs ended early: see the notes under the table", failed, len(doc.Results)))
	}
	if c.jsonFile != "" {
		err = errors.Join(err, report.WriteJSON(c.jsonFile, doc))
	}
	if c.htmlFile != "" {
		err = errors.Join(err, report.WriteHTML(c.htmlFile, doc))
	}
	return err
}
