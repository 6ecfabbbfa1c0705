// Loadtest measures any WebSocket server over the network.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"carillon/loadtest/internal/generator"
	"carillon/loadtest/internal/report"

	"github.com/spf13/cobra"
)

func main() { os.Exit(execute(os.Args[1:])) }

// Exit statuses.
const (
	exitFailed      = 1   // the run ended early, or its results could not be written
	exitUsage       = 2   // invalid command line
	exitInterrupted = 130 // the shell's status for Ctrl-C
)

// execute runs the program and returns its exit status.
func execute(args []string) int {
	if len(args) > 0 && args[0] == "diff" {
		return runDiff(args[1:], os.Stdout, os.Stderr)
	}
	cmd := rootCommand()
	cmd.SetArgs(args)
	err := cmd.Execute()
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	}
	if _, ok := errors.AsType[*failure](err); ok {
		if err.Error() != "" {
			fmt.Fprintf(os.Stderr, "loadtest: %v\n", err)
		}
		return exitFailed
	}
	fmt.Fprintf(os.Stderr, "loadtest: %v\nloadtest: see loadtest --help\n", err)
	return exitUsage
}

// failure is an error that is not about the command line.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

const rootHelp = `Measures the throughput, latency and connection handling of any WebSocket server
(RFC 6455). If the server runs on the same machine, its CPU time and memory are
measured too.

  loadtest fanout                                  carillon's default /broadcast
  loadtest echo ws://host:9001/ --connections 500 --depth 32
  loadtest idle ws://127.0.0.1:8080/echo --connections 15000
  loadtest echo ws://a:8080/echo ws://b:8080/echo  half of the connections each
  loadtest idle --connections 100000 --start 6     six servers, started for the run

The CPU time and memory of several server processes are added up, whether they
listen at different URLs or share one.

With --rate, messages are sent on a fixed schedule and latency is measured from
the time a message was due, so a server that stalls cannot hide it. Without
--rate, each message is sent when an earlier one has returned.

Ctrl-C ends a run early and reports what has been measured so far.

Exit status: 0 if the run completed, 1 if it ended early, 2 for an invalid
command line, 130 after Ctrl-C.`

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "loadtest", Short: "Measure a WebSocket server", Long: rootHelp,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(
		runCommand("idle", "Open connections and hold them",
			"Opens connections and holds them. Shows how fast they open, how much memory each takes,\nand how much CPU time they need while idle."),
		runCommand("echo", "Send messages and receive their echoes",
			"Every connection sends messages that the server echoes. By default it keeps --depth\nmessages in flight; with --rate it sends on a fixed schedule."),
		runCommand("fanout", "Send messages to all connections",
			"Publishers send messages that the server delivers to all connections, including the\npublishers. Latency is measured at every receiver; completion is the time until the last\nreceiver has a message. With --rate 0 each publisher keeps --depth messages in flight.\n\nServers at several URLs must form a cluster: every message is expected on every\nconnection of every URL. Messages that do not arrive count as missing."),
		runCommand("storm", "Close all connections and measure how they reconnect",
			"Closes all connections at once. Each reconnects after a random delay that grows with\nevery failure. With --cut server, the tool waits for the server to close them instead,\nfor example by a restart."),
		compareCommand(),
		showCommand(),
		diffCommand(),
		&cobra.Command{
			Use: generator.WorkerCommand, Hidden: true, Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return workerMain() },
		},
	)
	return root
}

// workerMain runs a worker of the generator. It ignores Ctrl-C, since its parent decides when it ends.
func workerMain() error {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	if err := generator.RunWorker(os.Stdin, os.Stdout); err != nil {
		return &failure{err}
	}
	return nil
}

// runCommand makes one of the commands that measure.
func runCommand(name, short, long string) *cobra.Command {
	o := defaultsFor(name)
	var jsonFile, htmlFile string
	cmd := &cobra.Command{
		Use: name + " [URL...]", Short: short, Long: long + "\n\nThe default URL is " + o.URLs[0] + ". If several are given, connections\nare spread evenly over them.",
		SilenceUsage: true, SilenceErrors: true, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 || o.Start > 0 {
				o.URLs = args
			}
			if err := o.check(); err != nil {
				return err
			}
			return runAndReport(&o, jsonFile, htmlFile)
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().StringVar(&jsonFile, "json", "", "write the results as JSON to `FILE`")
	cmd.Flags().StringVar(&htmlFile, "html", "", "write an HTML report to `FILE`")
	return cmd
}

// runAndReport measures and writes the results in every form that was asked for.
func runAndReport(o *options, jsonFile, htmlFile string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	defer stop()

	progress := newProgressLine(os.Stderr)
	var result *report.Result
	if o.Start > 0 {
		result = measureStarted(ctx, *o, os.Stderr, progress.show)
	} else {
		result = measure(ctx, o, progress.show)
	}
	interrupted := ctx.Err() != nil
	progress.clear()

	if result.Connections.Opened > 0 {
		report.PrintResult(os.Stdout, result)
	}
	var err error
	if result.Error != "" {
		err = errors.New(result.Error)
	}
	doc := &report.Document{Results: []*report.Result{result}}
	if jsonFile != "" {
		err = errors.Join(err, report.WriteJSON(jsonFile, doc))
	}
	if htmlFile != "" && result.Connections.Opened > 0 {
		err = errors.Join(err, report.WriteHTML(htmlFile, doc))
	}
	switch {
	case err == nil:
		return nil
	case interrupted:
		return errInterrupted
	}
	return &failure{err}
}
