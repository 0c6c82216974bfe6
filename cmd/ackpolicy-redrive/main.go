// Ackpolicy-redrive shows what is in a dead letter topic, and sends letters back to
// the topics that they are from.
//
//	go run github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy-redrive@latest -brokers kafka:9092 -topic orders.dlq
//
// See docs/dead-letters.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/ackpolicy/watermill-ackpolicy/internal/redrive"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(redrive.Main(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}
