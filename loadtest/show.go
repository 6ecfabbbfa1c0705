package main

import (
	"errors"
	"fmt"
	"io"

	"carillon/loadtest/internal/report"

	"github.com/spf13/cobra"
)

func showCommand() *cobra.Command {
	var full bool
	var htmlFile string
	cmd := &cobra.Command{
		Use:   "show FILE.json",
		Short: "Print the results in a JSON file",
		Long: `Prints the table of a file written by --json: the main metrics of each server and
load or, with --full, all metrics. With --html it also writes an HTML report.`,
		SilenceUsage: true, SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("expected one file, got %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := showFile(cmd.OutOrStdout(), args[0], full, htmlFile); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&full, "full", false, "print all metrics")
	f.StringVar(&htmlFile, "html", "", "write an HTML report to `FILE`")
	return cmd
}

func showFile(out io.Writer, path string, full bool, htmlFile string) error {
	doc, err := report.ReadJSON(path)
	if err != nil {
		return err
	}
	err = report.PrintTable(out, doc, full)
	if htmlFile != "" {
		err = errors.Join(err, report.WriteHTML(htmlFile, doc))
	}
	return err
}
