package lifecycle_test

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A handler that waits for a commit keeps its lane: no record behind it is handed out.
func TestWaitingForACommitKeepsTheOrder(t *testing.T) {
	t.Parallel()
	for name, mw := range map[string]message.HandlerMiddleware{
		"AckSync": ackpolicy.Manual.Middleware, "ConfirmFirst": testkit.ConfirmFirst,
	} {
		for order, change := range map[string]testkit.Option{
			"partition": testkit.Ordering(ackpolicy.OrderByPartition, 1), "key": testkit.Ordering(ackpolicy.OrderByKey, 4),
		} {
			t.Run(name+" by "+order, func(t *testing.T) {
				t.Parallel()
				broker := brokertest.NewFake(t)
				topic, at := testkit.FakeTopic(t, broker, testkit.Keyed("a", "a", "a")...)
				testkit.RefuseCommits(broker, 3)
				var running atomic.Int32
				s := testkit.Consume(t, testkit.Config(brokertest.Group(t), at, change, testkit.CommitOnDemand), topic,
					func(msg *message.Message, d *ackpolicy.Delivery) error {
						if n := running.Add(1); n > 1 {
							t.Errorf("%d: %d handlers of the lane at once", d.Offset(), n)
						}
						defer running.Add(-1)
						return d.AckSync(msg.Context())
					}, mw)
				s.Wait(t, 3)
				s.Stop()
				s.Want(t, "0#1", "1#1", "2#1")
			})
		}
	}
}

// What waits for its key when the drain begins is left to the next owner, and only that: what is settled behind it has its mark.
func TestDrainHandsNothingOut(t *testing.T) {
	t.Parallel()
	for name, mw := range map[string]message.HandlerMiddleware{
		"NackOnError": ackpolicy.NackOnError.Middleware, "ConfirmFirst": testkit.ConfirmFirst,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "a", "b")...)
			b := make(chan struct{})
			opened := sync.OnceFunc(func() { close(b) })
			cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 2))
			cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
				if e.Offset == 2 {
					opened()
				}
			}
			s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 0 { // holds record 1, of the same key
					return testkit.Until(msg.Context(), d.Draining())
				}
				return nil
			}, mw)
			testkit.Await(t, "the ack of record 2", b)
			s.Stop()
			testkit.WantCommitted(t, group, topic, 0, 1)
			testkit.WantOnce(t, s, "0#1", "2#1")

			s = testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 2)), topic,
				testkit.Succeed, mw)
			testkit.WaitCommitted(t, group, topic, 0, 3)
			s.Stop()
			s.Want(t, "1#1")
		})
	}
}

// A drain waits for no nacked record. The next owner delivers it when it is due, with the next attempt, and nothing else again.
func TestDrainDoesNotWaitForNackedRecords(t *testing.T) {
	t.Parallel()
	for name, order := range map[string]testkit.Option{
		"key": testkit.Ordering(ackpolicy.OrderByKey, 4), "unordered": testkit.Ordering(ackpolicy.Unordered, 4),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "a", "c")...)
			others := make(chan struct{})
			cfg := testkit.Config(group, order, testkit.DrainTimeout(time.Minute))
			cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
				if e.Offset == 3 {
					close(others)
				}
			}
			handler := func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 0 && d.Attempt() < 3 {
					return ackpolicy.NackAfter(2 * time.Second)
				}
				return nil
			}
			s := testkit.Consume(t, cfg, topic, handler, ackpolicy.NackOnError.Middleware)
			testkit.Await(t, "the last record", others)
			testkit.Eventually(t, "the nack", func() bool { return s.Find(0, 1) != nil && s.Find(0, 1).Status() == ackpolicy.Nacked })
			began := time.Now()
			s.Stop()
			t.Logf("stopped in %v", time.Since(began))
			testkit.WantCommitted(t, group, topic, 0, 0)
			names := s.Names()
			cfg.Hooks.Settled = nil
			s = testkit.Consume(t, cfg, topic, handler, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 4)
			s.Stop()
			names = append(names, s.Names()...)
			slices.Sort(names)
			if want := []string{"0#1", "0#2", "0#3", "1#1", "2#1", "3#1"}; !slices.Equal(names, want) {
				t.Errorf("deliveries %v, want %v", names, want)
			}
		})
	}
}

// One that fails each time does not hold the drain.
func TestDrainLeavesPoison(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	s := testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 4), testkit.DrainTimeout(2*time.Minute)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return ackpolicy.NackAfter(20 * time.Millisecond)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "an acked record", func() bool {
		return slices.ContainsFunc(s.All(), func(d *ackpolicy.Delivery) bool { return d.Status() == ackpolicy.Acked })
	})
	began := time.Now()
	s.Stop()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the drain took %v", took)
	}
	testkit.WantCommitted(t, group, topic, 0, 0)
}

// Where nobody settles late, a pending record does not delay the end: the default DrainTimeout is 10 s.
func TestDrainDoesNotWaitForTheForgotten(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	s := testkit.Consume(t, testkit.Config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			d.Ack()
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.Wait(t, 2)
	started := time.Now()
	s.Stop()
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	testkit.WantCommitted(t, group, topic, 0, 0)
}
