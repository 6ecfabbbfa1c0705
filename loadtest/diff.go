package main

import (
	"errors"
	"fmt"
	"io"
	"math"

	"carillon/loadtest/internal/report"

	"github.com/spf13/cobra"
)

// errWorse is returned if a metric got worse, which the output already says.
var errWorse = errors.New("worse")

// errTrouble is an error that is not about the command line.
type errTrouble struct{ error }

// runDiff runs "loadtest diff" and returns its exit status: 0 if nothing got worse, 1 if something did, 2 on
// errors.
func runDiff(args []string, stdout, stderr io.Writer) int {
	cmd := diffCommand()
	if args == nil {
		args = []string{} // with nil, cobra uses os.Args
	}
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.Execute()
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errWorse):
		return 1
	}
	fmt.Fprintf(stderr, "loadtest diff: %v\n", err)
	if _, ok := errors.AsType[errTrouble](err); !ok {
		fmt.Fprintln(stderr, "loadtest diff: see loadtest diff --help")
	}
	return 2
}

func diffCommand() *cobra.Command {
	threshold := 5.0
	cmd := &cobra.Command{
		Use:   "diff OLD.json NEW.json",
		Short: "Show what changed between two JSON files",
		Long: `Shows which metrics changed from OLD.json to NEW.json. Runs are matched by the name
of the server, the command and the settings. A metric has changed if its median
moved by more than the threshold and, where both files have several rounds, the
ranges of the two files do not overlap.

Exit status: 0 if nothing got worse, 1 if something did, 2 on errors.`,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "loadtest diff"}, // it is run without its parent
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("expected two files, OLD.json and NEW.json, got %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !(threshold >= 0) || math.IsInf(threshold, 0) {
				return fmt.Errorf("--threshold: %g is not a non-negative percentage", threshold)
			}
			return diffFiles(args[0], args[1], threshold, cmd.OutOrStdout())
		},
	}
	cmd.Flags().Float64Var(&threshold, "threshold", threshold, "ignore changes of up to `PERCENT`")
	return cmd
}

func diffFiles(oldPath, newPath string, threshold float64, out io.Writer) error {
	old, err := report.ReadJSON(oldPath)
	if err != nil {
		return errTrouble{err}
	}
	new, err := report.ReadJSON(newPath)
	if err != nil {
		return errTrouble{err}
	}
	d := report.Diff(old, new, threshold)
	if err := d.WriteText(out); err != nil {
		return errTrouble{err}
	}
	if len(d.Runs) == 0 {
		return errTrouble{fmt.Errorf("%s and %s have no runs in common", oldPath, newPath)}
	}
	if d.Worse() {
		return errWorse
	}
	return nil
}
