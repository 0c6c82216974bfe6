package observe_test

import (
	"math"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The deliveries per second are limited over all partitions, without bursts, and the limit is changed while records wait. A
// record that waits for its turn can be rejected.
func TestDeliveriesPerSecond(t *testing.T) {
	t.Parallel()
	const n = 300
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 2)
	for p := range int32(2) {
		testkit.Produce(t, topic, p, testkit.OwnKeys(0, n)...)
	}
	began := make(chan time.Time, 2*n)
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16))
	settled := make(chan ackpolicy.SettledEvent, 2*n)
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) { settled <- e }
	s := testkit.NewConsumer(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
		began <- time.Now()
		return nil
	}, ackpolicy.NackOnError.Middleware)
	sub := s.Sub
	testkit.Check(t, sub.SetLimits("alice", ackpolicy.Limits{MaxPerSecond: 100}))
	s.Start(t)
	o := &observed{s, topic}
	first := testkit.Await(t, "a delivery", began)
	last := first
	for range 100 {
		last = testkit.Await(t, "deliveries", began)
	}
	if took := last.Sub(first); took < 950*time.Millisecond {
		t.Errorf("100 deliveries took %v", took)
	}
	if st := sub.State().Subscriptions[0]; st.MaxPerSecond != 100 {
		t.Errorf("state: %+v", st)
	}

	testkit.Check(t, sub.SetLimits("alice", ackpolicy.Limits{MaxPerSecond: 1. / 3600}))
	testkit.Eventually(t, "all slots to wait", func() bool { // those that had their turn finish
		a, _ := o.partition(0)
		b, _ := o.partition(1)
		return a.InFlight == 16 && b.InFlight == 16 && len(s.All()) == len(settled)
	})
	before := len(s.All())
	st, _ := o.partition(1)
	testkit.Check(t, sub.Reject("alice", topic, 1, st.Oldest.Offset, "not needed"))
	testkit.Eventually(t, "the reject", func() bool {
		for len(settled) > 0 {
			if e := <-settled; e.Status == ackpolicy.Rejected {
				return e.Partition == 1 && e.Offset == st.Oldest.Offset
			}
		}
		return false
	})
	if more := len(s.All()) - before; more > 1 { // one may have had its turn
		t.Errorf("%d deliveries, though the limit is one in an hour", more)
	}
	testkit.Check(t, sub.SetLimits("alice", ackpolicy.Limits{MaxPerSecond: ackpolicy.Unlimited}))
	for p := range int32(2) {
		testkit.WaitCommitted(t, group, topic, p, n)
	}
	if got := len(s.All()); got != 2*n-1 {
		t.Errorf("%d deliveries, want %d", got, 2*n-1)
	}
	for _, wrong := range []float64{-2, math.NaN()} {
		if sub.SetLimits("alice", ackpolicy.Limits{MaxPerSecond: wrong}) == nil {
			t.Errorf("%v is taken", wrong)
		}
	}
}

// A stop does not wait for the turn of a record.
func TestStopDuringALowPace(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s := testkit.NewConsumer(t, testkit.Config(group), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Check(t, s.Sub.SetLimits("alice", ackpolicy.Limits{MaxPerSecond: 1. / 3600}))
	s.Start(t)
	testkit.SettledAll(t, s, 1)
	began := time.Now()
	s.Stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the stop took %v", took)
	}
	s.Want(t, "0#1")
	testkit.WantCommitted(t, group, topic, 0, 1)
}
