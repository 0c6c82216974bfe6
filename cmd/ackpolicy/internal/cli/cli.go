// Package cli is what the commands share: how they are run, their exit codes, and what
// they print on a terminal.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
)

// Exit codes. A command may have others: see [ExitCode].
const (
	Done        = 0
	Failed      = 1
	Usage       = 2
	Interrupted = 130
)

// UsageError is a mistake on the command line.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// ExitCode is the error of a command that has said already what is to be said.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// Env is what a command is given from outside.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	// Ask asks a question that wants yes or no. Nil: there is nobody to ask.
	Ask func(ctx context.Context, question string) (yes bool, err error)
	Now func() time.Time
	// Screen is that Out is a terminal, which can be written over.
	Screen bool
	Kafka  kafka.Connection

	getenv func(string) string
	began  bool // the command line was understood, and the command runs
}

// NewEnv returns the environment of a process with these streams.
func NewEnv(getenv func(string) string, in io.Reader, out, errs io.Writer) *Env {
	e := &Env{In: in, Out: out, Err: errs, Now: time.Now, Screen: isTerminal(out), getenv: getenv}
	if isTerminal(in) && isTerminal(errs) {
		e.Ask = func(ctx context.Context, question string) (bool, error) { return ask(ctx, in, errs, question) }
	}
	return e
}

// Client connects to Kafka. What is wrong with the connection's flags is a [UsageError].
func (e *Env) Client(transactionalID string) (sarama.Client, error) {
	if err := e.Kafka.Check(); err != nil {
		return nil, UsageError{Err: err}
	}
	return e.Kafka.Client(transactionalID, e.Err)
}

const long = `Looks at dead letters and consumer groups of watermill-ackpolicy, and repairs them.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted. A command that has
others names them in its help.`

// Run runs one of the commands until it is done or ctx ends, and returns its exit code.
func (e *Env) Run(ctx context.Context, args []string, commands ...func(*Env) *cobra.Command) int {
	root := e.Root(commands...)
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	return e.exitCode(ctx, command, err)
}

// Root returns the command that has the others.
func (e *Env) Root(commands ...func(*Env) *cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use: "ackpolicy", Short: "Looks at dead letters and consumer groups, and repairs them", Long: long,
		Version: version(), SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(*cobra.Command, []string) { e.began = true },
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetIn(e.In)
	root.SetOut(e.Out)
	root.SetErr(e.Err)
	root.SetFlagErrorFunc(flagError)
	e.Kafka.Flags(root.PersistentFlags(), e.getenv)
	Complete(root, "sasl", kafka.Mechanisms...)
	root.AddCommand(versionCommand())
	for _, command := range commands {
		root.AddCommand(command(e))
	}
	return root
}

func (e *Env) exitCode(ctx context.Context, command *cobra.Command, err error) int {
	var mistake UsageError
	var code ExitCode
	switch {
	case err == nil:
		return Done
	case errors.As(err, &mistake), !e.began:
		fmt.Fprintf(e.Err, "ackpolicy: %v\nSee '%s --help'.\n", err, command.CommandPath())
		return Usage
	case errors.As(err, &code):
		return int(code)
	case IsInterrupt(ctx, err):
		return Interrupted
	}
	fmt.Fprintf(e.Err, "ackpolicy: %v\n", err)
	return Failed
}

// IsInterrupt reports whether the error is that ctx has ended.
func IsInterrupt(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Cause(ctx))
}

var oneDash = regexp.MustCompile(` in -([a-z][a-z-]+)`)

// flagError explains flags that were given with one dash, as Go's own commands take them,
// and flags behind a command that there is not.
func flagError(command *cobra.Command, err error) error {
	if command.HasSubCommands() && command.HasParent() {
		var names []string
		for _, c := range command.Commands() {
			names = append(names, c.Name())
		}
		return fmt.Errorf("%w: want a command before the flags, one of %s", err, strings.Join(names, ", "))
	}
	if m := oneDash.FindStringSubmatch(err.Error()); m != nil && command.Flags().Lookup(m[1]) != nil {
		return fmt.Errorf("%w: long flags have two dashes, --%s", err, m[1])
	}
	return err
}

// Group returns a command that has nothing but others.
func Group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: NoArgs, // or an unknown command is taken for an argument
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	group.SuggestionsMinimumDistance = 2
	group.AddCommand(commands...)
	return group
}

// NoArgs refuses arguments: commands of which there are none, and whatever follows the flags.
func NoArgs(command *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case !command.HasSubCommands():
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], command.CommandPath())
	if near := command.SuggestionsFor(args[0]); len(near) > 0 {
		text += "\n\nDid you mean this?\n\t" + strings.Join(near, "\n\t") + "\n"
	}
	return errors.New(text)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: NoArgs,
		Run: func(command *cobra.Command, _ []string) {
			fmt.Fprintln(command.OutOrStdout(), command.Root().Name(), command.Root().Version)
		},
	}
}

// version is the module's, as go install knows it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}
