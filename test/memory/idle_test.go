package memory_test

import (
	"runtime/pprof"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// slots returns how many goroutines of this process wait for a record to hand out, or have one.
func slots(t *testing.T) int {
	t.Helper()
	var stacks strings.Builder
	testkit.Check(t, pprof.Lookup("goroutine").WriteTo(&stacks, 2))
	return strings.Count(stacks.String(), "(*Claim).serveAll(")
}

// A partition that had many handlers at once keeps no goroutine for them while nothing comes, and has them again when
// records do.
func TestIdlePartitionHasNoGoroutines(t *testing.T) { // not parallel: it counts those of the process
	const records, atOnce = 200, 64
	topic := testkit.NewTopic(t, 1, testkit.OwnKeys(0, records)...)
	began, release := make(chan struct{}, 2*records), make(chan struct{})
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.OrderByKey, atOnce)), topic,
		func(msg *message.Message, _ *ackpolicy.Delivery) error {
			began <- struct{}{}
			return testkit.Until(msg.Context(), release)
		}, ackpolicy.NackOnError.Middleware)
	for range atOnce {
		testkit.Await(t, "handlers at once", began)
	}
	if n := slots(t); n < atOnce {
		t.Errorf("%d goroutines for %d handlers", n, atOnce)
	}
	close(release)
	s.Wait(t, records)
	testkit.Eventually(t, "the goroutines to end", func() bool { return slots(t) == 0 })
	testkit.Produce(t, topic, 0, testkit.OwnKeys(records, records)...)
	s.Wait(t, 2*records)
	s.Stop()
}
