package observe_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// MaxInFlight is lowered and raised while handlers run.
func TestMaxInFlightIsChanged(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "c", "d", "e", "f", "g", "h")...)
	var running atomic.Int32
	step := make(chan struct{})
	o := observe(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4)), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		running.Add(1)
		defer running.Add(-1)
		return testkit.Until(msg.Context(), step)
	}, ackpolicy.NackOnError.Middleware)
	inFlight := func(n int32, delivered int) {
		t.Helper()
		testkit.Eventually(t, "the handlers", func() bool { return running.Load() == n && len(o.Journal.All()) == delivered })
	}
	inFlight(4, 4)
	testkit.Check(t, o.Sub.SetLimits("alice", ackpolicy.Limits{MaxInFlight: 1}))
	if st := o.Sub.State().Subscriptions[0]; st.MaxInFlight != 1 {
		t.Errorf("state: %+v", st)
	}
	for range 3 {
		step <- struct{}{}
	}
	inFlight(1, 4)
	step <- struct{}{}
	inFlight(1, 5)
	testkit.Check(t, o.Sub.SetLimits("alice", ackpolicy.Limits{MaxInFlight: 3}))
	inFlight(3, 7)
	close(step)
	testkit.WaitCommitted(t, group, topic, 0, 8)
	for _, l := range []ackpolicy.Limits{{MaxInFlight: 5}, {MaxInFlight: -1}, {MaxDeliveries: -2}} {
		if o.Sub.SetLimits("alice", l) == nil {
			t.Errorf("%+v is taken", l)
		}
	}
	if n := len(testkit.Containing(o.Log.At("info"), "Subscription changed by hand", "by=alice", "max_in_flight=3")); n != 1 {
		t.Errorf("%d lines", n)
	}
}

// A record that would be tried forever is rejected at its next nack.
func TestMaxDeliveriesIsChanged(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	o := observe(t, testkit.Config(group, backoff(time.Millisecond)), topic, failing(testkit.ErrBoom, make(chan struct{})), ackpolicy.NackOnError.Middleware)
	o.Journal.Wait(t, 5)
	testkit.Check(t, o.Sub.SetLimits("alice", ackpolicy.Limits{MaxDeliveries: 5}))
	testkit.WaitCommitted(t, group, topic, 0, 2)
}

// Limits of a subscription with several topics have one line, and an event for each topic.
func TestLimitsOfSeveralTopics(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		cfg := k.Config(testkit.Config("shop"))
		var events []string
		cfg.Hooks.Acted = func(e ackpolicy.ActedEvent) { events = append(events, e.Topic) }
		s := testkit.NewConsumer(t, cfg, "orders, invoices, returns", func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
		k.Start(s.Router)
		testkit.Check(t, s.Sub.SetLimits("alice", ackpolicy.Limits{MaxDeliveries: 3}))
		k.Advance(time.Second)
		if lines := testkit.Containing(s.Log.At("info"), "Subscription changed by hand"); len(lines) != 1 || !strings.Contains(lines[0], "topics=orders, invoices, returns") {
			t.Errorf("lines:\n%s", strings.Join(lines, "\n"))
		}
		if slices.Sort(events); !slices.Equal(events, []string{"invoices", "orders", "returns"}) {
			t.Errorf("events: %v", events)
		}
	})
}
