package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// command is the command line: without a subcommand it runs cases, and each experiment is one.
func command() *cobra.Command {
	b, shape := &bench{}, custom
	var names, out string
	var all, list bool
	c := &cobra.Command{
		Use: "bench", Short: "Runs this library beside its peers on one broker, and prints tables", Args: cobra.NoArgs,
		SilenceErrors: true, SilenceUsage: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if list {
				printList()
				return nil
			}
			run, err := chosen(c.Flags(), names, all)
			if err != nil {
				return err
			}
			return b.runAll(run, all && len(b.only) == 0, out)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&names, "case", "noop,1ms,10ms", "`cases` to run, by comma; --list shows them")
	flags.BoolVar(&all, "all", false, "run all cases and, without --only, the experiments that are published with them")
	flags.StringSliceVar(&b.only, "only", nil, "`consumers` to run, by comma; empty: those of the case")
	flags.IntVar(&b.runs, "runs", 3, "runs of each consumer")
	flags.BoolVar(&list, "list", false, "list cases and consumers")
	flags.StringVarP(&out, "output", "o", "", "write the tables as Markdown to this `file`, and a chart beside it")
	flags.StringVar(&b.profile, "profile", "", "write a CPU profile of each consumer's last run to this `folder`")
	flags.DurationVar(&b.limit, "limit", 4*time.Second, "end of a run whose records take longer")
	flags.DurationVar(&b.warm, "warm", 8*time.Second, "unmeasured run before, in a JVM")
	flags.DurationVar(&b.timeout, "timeout", 2*time.Minute, "when a run that has not ended has failed")
	shape.flags(flags)
	for _, e := range experiments() {
		c.AddCommand(e.cobra())
	}
	return c
}

// cobra is the experiment as a subcommand.
func (e experiment) cobra() *cobra.Command {
	c := &cobra.Command{Use: e.name, Short: e.about, Args: cobra.NoArgs}
	c.Flags().SortFlags = false
	run := e.prepare(c.Flags())
	c.RunE = func(*cobra.Command, []string) error {
		if err := run(); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		return nil
	}
	return c
}

// runAll runs cases and perhaps the studies, and writes what came of them to a file if it has a name.
func (b *bench) runAll(cases []bcase, studies bool, out string) (err error) {
	if b.runs < 1 {
		return fmt.Errorf("--runs is %d: at least 1 is needed", b.runs)
	}
	if b.brokers, err = brokersFromEnv(); err != nil {
		return err
	}
	for _, c := range cases {
		if err := b.run(c); err != nil {
			return err
		}
	}
	if studies {
		if err := b.studies(); err != nil {
			return err
		}
	}
	if out == "" {
		return nil
	}
	return b.write(out)
}
