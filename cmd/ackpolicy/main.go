// Ackpolicy looks at dead letters and consumer groups of watermill-ackpolicy, and repairs them.
//
//	go install github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy@latest
//
// See docs/command.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/group"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/letters"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/transactions"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	env := cli.NewEnv(os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	os.Exit(env.Run(ctx, os.Args[1:], commands...))
}

var commands = []func(*cli.Env) *cobra.Command{letters.Command, group.Status, group.Skip, record.Command, transactions.Command}
