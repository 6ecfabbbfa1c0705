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
		Short: "Print a file of results again",
		Long: `Prints the table of a file that --json wrote: a line for each server under each
load, or, with --full, every figure. With --html it writes the report too.`,
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
	f.BoolVar(&full, "full", false, "print every figure")
	f.StringVar(&htmlFile, "html", "", "write a report to `FILE`")
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
