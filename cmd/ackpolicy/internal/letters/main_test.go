package letters

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// childEnv has this process run the command, with these arguments: for tests that kill it.
const childEnv = "ACKPOLICY_LETTERS_CHILD"

func TestMain(m *testing.M) {
	sessionTimeout = 4 * time.Second
	if text, ok := os.LookupEnv(childEnv); ok {
		var args []string
		if err := json.Unmarshal([]byte(text), &args); err != nil {
			panic(err)
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop)
		os.Exit(cli.NewEnv(os.Getenv, os.Stdin, os.Stdout, os.Stderr).Run(ctx, args, Command))
	}
	// The tests wait for brokers and timers more than they compute.
	parallel := flag.Lookup("test.parallel")
	flag.Parse()
	if parallel.Value.String() == parallel.DefValue {
		_ = parallel.Value.Set("16")
	}
	goleak.VerifyTestMain(withBroker{m},
		// sarama's metrics start one goroutine for the process and never end it.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
	)
}

// shared is the broker of all tests that do not say otherwise.
var shared *brokertest.Broker

type withBroker struct{ m *testing.M }

func (w withBroker) Run() int {
	broker, err := brokertest.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer broker.Close()
	shared = broker
	return w.m.Run()
}
