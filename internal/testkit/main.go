// Package testkit is what the tests of behaviour share: a broker, topics and records, configurations in a hurry, a service
// with its journal and log, and waits that end. The tests are in test/, in packages named for what they show.
package testkit

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Main runs a package's tests on a broker that they share, and wants no goroutine left behind.
func Main(m *testing.M) {
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

// Shared is the broker of all tests that do not say otherwise.
var Shared *brokertest.Broker

type withBroker struct{ m *testing.M }

// Run runs the tests on a broker.
func (w withBroker) Run() int {
	broker, err := brokertest.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer broker.Close()
	Shared = broker
	return w.m.Run()
}
