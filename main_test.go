package ackpolicy_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

func TestMain(m *testing.M) {
	if spec, ok := os.LookupEnv(killChildEnv); ok {
		os.Exit(child[killSpec](spec)) // the process that TestKill kills
	}
	if spec, ok := os.LookupEnv(letterChildEnv); ok {
		os.Exit(letterChild(spec)) // the one that TestKillBetweenLetterAndCommit kills
	}
	if spec, ok := os.LookupEnv(crashChildEnv); ok {
		os.Exit(child[crashSpec](spec)) // the one that ends itself in TestCrashLoop
	}
	// The tests wait for brokers and timers more than they compute: two at a time, which is what two cores would get,
	// leave the machine idle.
	parallel := flag.Lookup("test.parallel")
	flag.Parse()
	if parallel.Value.String() == parallel.DefValue {
		_ = parallel.Value.Set("16")
	}
	const multiplier = "github.com/ThreeDotsLabs/watermill/internal/subscriber.(*multiplier).Subscribe."
	goleak.VerifyTestMain(withBroker{m},
		// sarama's metrics start one goroutine for the process and never end it.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
		// Watermill's repository of seen keys has no end.
		goleak.IgnoreTopFunction("github.com/ThreeDotsLabs/watermill/message/router/middleware.(*mapExpiringKeyRepository).cleanOutLoop"),
		// Watermill's universal suite reads many subscribers through one channel, and goes while they still write to it.
		goleak.IgnoreAnyFunction(multiplier+"func2"), goleak.IgnoreAnyFunction(multiplier+"func3"),
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
