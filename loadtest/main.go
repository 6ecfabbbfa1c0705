// Loadtest measures a WebSocket server from outside: any server, over the wire only.
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

// The exit status of a run.
const (
	exitFailed      = 1   // the run ended early, or its results could not be written
	exitUsage       = 2   // the command line makes no sense
	exitInterrupted = 130 // as a shell says it of Ctrl-C
)

// execute is the program with its exit status.
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

// failure is what went wrong in a command that was understood.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

const rootHelp = `Measures a WebSocket server, any server that speaks RFC 6455, over the wire. Of a
server on the same machine it also says what processor time and memory it takes.

  loadtest fanout                                  carillon's own /broadcast
  loadtest echo ws://host:9001/ --connections 500 --depth 32
  loadtest idle ws://127.0.0.1:8080/echo --connections 15000
  loadtest echo ws://a:8080/echo ws://b:8080/echo  half of the connections each
  loadtest idle --connections 100000 --start 6     six servers, started for the run

What several processes cost is added up, whether they listen at URLs of their
own or share one.

With --rate messages go out on a fixed schedule, and each latency counts from
the moment when the message was due, so that a server that stalls cannot hide
it. Without, the next message goes when an earlier one is back.

Ctrl-C ends a run early; what was measured until then is still reported.

Exit status: 0 after a whole run, 1 after one that ended early, 2 for a command
line that makes no sense, 130 after Ctrl-C.`

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "loadtest", Short: "Measure a WebSocket server", Long: rootHelp,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(
		runCommand("idle", "Open connections and hold them",
			"Opens connections and holds them: how fast they are opened, what memory each takes, and\nwhat they cost when nothing happens."),
		runCommand("echo", "Send messages that come back",
			"Every connection sends messages that the server sends back to it: as a closed loop that\nkeeps --depth of them under way on each connection, or on a schedule with --rate."),
		runCommand("fanout", "Send messages that go to everyone",
			"Publishers send messages that the server sends to all connections. The publishers are\nconnections too, and receive. Latency is counted at every receiver, and completion until\nthe last receiver had a message. With --rate 0 each publisher keeps --depth messages\nunder way.\n\nThe servers at several URLs must be one cluster: every message is expected at every\nconnection, whichever URL it goes to; otherwise messages are counted as missing."),
		runCommand("storm", "Cut all connections off, and watch them return",
			"All connections are cut off at once, and come back after random delays that grow with\nevery failure. With --cut server the tool waits for the server to cut them, for example\nby a restart."),
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

// workerMain is this program as one process of the generator. Ctrl-C at the terminal reaches it too, but
// its parent decides when it ends.
func workerMain() error {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	if err := generator.RunWorker(os.Stdin, os.Stdout); err != nil {
		return &failure{err}
	}
	return nil
}

// runCommand makes a command that measures.
func runCommand(name, short, long string) *cobra.Command {
	o := defaultsFor(name)
	var jsonFile, htmlFile string
	cmd := &cobra.Command{
		Use: name + " [URL...]", Short: short, Long: long + "\n\nThe URL is " + o.URLs[0] + " unless given. Over several, the connections are spread evenly.",
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
	cmd.Flags().StringVar(&htmlFile, "html", "", "write a report to `FILE`")
	return cmd
}

// runAndReport measures, and says what came of it in every form that was asked for.
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
