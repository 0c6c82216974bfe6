// Package observe_test is about what somebody on call sees of a Subscriber, and can do.
package observe_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// observed is a service whose Subscriber somebody looks at.
type observed struct {
	*testkit.Service
	topic string
}

func observe(t *testing.T, cfg ackpolicy.SubscriberConfig, topic string, h testkit.Handle, mw message.HandlerMiddleware) *observed {
	t.Helper()
	return &observed{testkit.Consume(t, cfg, topic, h, mw), topic}
}

// partition returns what State says of a partition; ok is false if it is not assigned.
func (o *observed) partition(p int32) (ackpolicy.PartitionState, bool) {
	for _, sub := range o.Sub.State().Subscriptions {
		for _, st := range sub.Partitions {
			if st.Partition == p {
				return st, true
			}
		}
	}
	return ackpolicy.PartitionState{}, false
}

// oldest waits until the oldest record that is not settled is in a status.
func (o *observed) oldest(t *testing.T, status ackpolicy.RecordStatus, attempt int) ackpolicy.PartitionState {
	t.Helper()
	var st ackpolicy.PartitionState
	testkit.Eventually(t, "the oldest record to be "+status.String(), func() bool {
		st, _ = o.partition(0)
		return st.Oldest != nil && st.Oldest.Status == status && st.Oldest.Attempt == attempt
	})
	return st
}

func backoff(d time.Duration) testkit.Option {
	return func(c *ackpolicy.SubscriberConfig) {
		c.Backoff = func(int, error) time.Duration { return d }
	}
}

// failing fails record 0, or the first of its lane, until the channel is closed.
func failing(err error, fixed <-chan struct{}) testkit.Handle {
	return func(_ *message.Message, d *ackpolicy.Delivery) error {
		select {
		case <-fixed:
			return nil
		default:
		}
		if d.Offset() == 0 {
			return err
		}
		return nil
	}
}

// A record that is nacked and holds its partition is in State, with its key, its error and its next
// delivery; so is what waits behind it. Retry has it delivered at once.
func TestStateOfANackedRecord(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "a", "b", "a", "b")...)
	fixed, boom := make(chan struct{}), errors.New("no such customer")
	cfg := testkit.Config(group, backoff(time.Hour), testkit.Ordering(ackpolicy.OrderByKey, 4))
	acted := make(chan ackpolicy.ActedEvent, 1)
	cfg.Hooks.Acted = func(e ackpolicy.ActedEvent) { acted <- e }
	o := observe(t, cfg, topic, failing(boom, fixed), ackpolicy.NackOnError.Middleware)
	o.oldest(t, ackpolicy.RecordParked, 1)
	var st ackpolicy.PartitionState
	testkit.Eventually(t, "the records of the other key", func() bool {
		st, _ = o.partition(0)
		return st.Unsettled == 3 && st.LedgerBytes > 0
	})
	old := st.Oldest
	if old.Offset != 0 || string(old.Key) != "a" || !errors.Is(old.LastErr, boom) || len(old.Tries) != 1 || time.Until(old.NextDelivery) < 50*time.Minute {
		t.Errorf("oldest: %+v", old)
	}
	if st.Nacked != 1 || st.Queued != 2 || st.InFlight != 0 || st.Watermark != 0 || st.Next != 5 || st.WorkLag != 3 || st.HighWatermark != 5 {
		t.Errorf("partition: %+v", st)
	}
	if st.LedgerRoom != 4096 || st.LedgerBytes > st.LedgerRoom || st.Blocked || st.Held {
		t.Errorf("partition: %+v", st)
	}
	records, sections, ok := o.Sub.Window(topic, 0, 10)
	if !ok || len(records) != 3 || records[1].Offset != 1 || records[2].Offset != 3 || len(sections) != 1 || sections[0].Settled != 2 || sections[0].Queued != 2 {
		t.Errorf("window: %+v, %+v, %v", records, sections, ok)
	}
	all := o.Sub.State()
	if sub := all.Subscriptions[0]; all.ConsumerGroup != group || sub.Topic != topic || sub.Handler != "handler" || !sub.Consuming || sub.MemberID == "" || sub.Generation < 1 || sub.BufferedBytes == 0 {
		t.Errorf("state: %+v", all)
	}
	if h := o.Sub.Health(); !h.Ready || !h.Live {
		t.Errorf("a record that waits for its next delivery makes it sick: %+v", h)
	}

	close(fixed)
	testkit.Check(t, o.Sub.Retry("alice", topic, 0, 0))
	testkit.WaitCommitted(t, group, topic, 0, 5)
	testkit.WantOnce(t, o.Service, "0#1", "0#2", "1#1", "2#1", "3#1", "4#1")
	if e := testkit.Await(t, "Acted", acted); e.By != "alice" || e.Action != ackpolicy.ActionRetry || e.Topic != topic || e.Partition != 0 || e.Offset != 0 {
		t.Errorf("acted: %+v", e)
	}
	testkit.Eventually(t, "nothing to be held", func() bool {
		st, _ := o.partition(0)
		return st.Oldest == nil && st.WorkLag == 0 && st.CommittedLag == 0 && st.Committed == 5
	})
}

// A handler that hangs is reported with every ordering, in State, Health, the log and the hook, naming
// the same record; and the log says when it has returned.
func TestHangingHandlerIsTold(t *testing.T) {
	t.Parallel()
	for name, order := range map[string]testkit.Option{
		"by partition": testkit.Ordering(ackpolicy.OrderByPartition, 1),
		"by key":       testkit.Ordering(ackpolicy.OrderByKey, 4),
		"unordered":    testkit.Ordering(ackpolicy.Unordered, 4),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "c", "d", "e")...)
			cfg := testkit.Config(group, order)
			cfg.HandlerSlow = 300 * time.Millisecond
			slow := make(chan ackpolicy.HandlerSlowEvent, 10)
			cfg.Hooks.HandlerSlow = func(e ackpolicy.HandlerSlowEvent) { slow <- e }
			release := make(chan struct{})
			o := observe(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 1 {
					return testkit.Until(msg.Context(), release)
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			e := testkit.Await(t, "HandlerSlow", slow)
			if e.Topic != topic || e.Partition != 0 || e.Offset != 1 || string(e.Key) != "b" || e.Attempt != 1 || e.Handler != "handler" || e.For < cfg.HandlerSlow || e.Handlers != 1 {
				t.Errorf("event: %+v", e)
			}
			st, _ := o.partition(0)
			if st.Slow == nil || st.Slow.Offset != 1 || st.SlowHandlers != 1 || st.Slow.Status != ackpolicy.RecordInFlight {
				t.Errorf("state: %+v", st)
			}
			h := o.Sub.Health()
			if h.Ready || !h.Live || len(h.Problems) != 1 || h.Problems[0].Code != ackpolicy.ProblemSlowHandler || h.Problems[0].Offset != 1 || h.Problems[0].Handler != "handler" {
				t.Errorf("health: %+v", h)
			}
			testkit.Eventually(t, "the line", func() bool {
				return len(testkit.Containing(o.Log.At("error"), "HandlerSlow", "handler_name=handler", "kafka_partition_offset=1 ")) == 1
			})
			close(release)
			testkit.WaitCommitted(t, group, topic, 0, 5)
			testkit.Eventually(t, "the line that it is over", func() bool {
				return len(testkit.Containing(o.Log.At("info"), "Handlers have returned")) == 1
			})
			if h := o.Sub.Health(); !h.Ready || len(h.Problems) > 0 {
				t.Errorf("health afterwards: %+v", h)
			}
			if n := len(slow); n > 0 {
				t.Errorf("%d more events: %+v", n, <-slow)
			}
		})
	}
}

// A record that its handler left unsettled under Manual is shown as pending, and Retry delivers it again.
func TestForgottenRecord(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b")...)
	o := observe(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() > 0 || d.Attempt() > 1 {
			d.Ack()
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	if st := o.oldest(t, ackpolicy.RecordPending, 1); st.Pending != 1 || st.Oldest.Offset != 0 {
		t.Errorf("state: %+v", st)
	}
	testkit.Check(t, o.Sub.Retry("alice", topic, 0, 0))
	testkit.WaitCommitted(t, group, topic, 0, 2)
	testkit.WantOnce(t, o.Service, "0#1", "0#2", "1#1")
}

// A record that its handler left unsettled has a line of its own after a minute, which repeats rarely,
// and one when it is settled.
func TestForgottenRecordIsTold(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		cfg := k.Config(testkit.Config("shop", testkit.Ordering(ackpolicy.OrderByKey, 4)))
		s := testkit.NewConsumer(t, cfg, "orders", func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Offset() == 1 || d.Attempt() > 1 {
				d.Ack()
			}
			return nil
		}, ackpolicy.Manual.Middleware)
		k.Start(s.Router)
		k.Produce("orders", message.NewMessage("1", nil), message.NewMessage("2", nil))
		told := func() int {
			return len(testkit.Containing(s.Log.At("error"), "its handler returned without settling it", "handler_name=handler", "kafka_partition_offset=0 ", "attempt=1 "))
		}
		over := func() int {
			return len(testkit.Containing(s.Log.At("info"), "no longer hold a partition"))
		}
		k.Advance(50 * time.Second)
		if told() != 0 {
			t.Error("told before a minute")
		}
		k.Advance(15 * time.Second)
		if told() != 1 {
			t.Errorf("%d lines after a minute", told())
		}
		k.Advance(10 * time.Minute)
		if n := told(); n < 3 || n > 6 {
			t.Errorf("%d lines after 11 minutes", n)
		}
		if over() != 0 {
			t.Error("over before it is settled")
		}
		testkit.Check(t, s.Sub.Retry("alice", "orders", 0, 0))
		k.Advance(2 * time.Second)
		if over() != 1 {
			t.Errorf("%d lines that it is over", over())
		}
	})
}

// In a plain loop many messages wait until the application takes them: no handler of theirs is slow.
func TestSlowLoop(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.Unordered, 3))
	cfg.HandlerSlow = 300 * time.Millisecond
	slow := make(chan ackpolicy.HandlerSlowEvent, 10)
	cfg.Hooks.HandlerSlow = func(e ackpolicy.HandlerSlowEvent) { slow <- e }
	sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	messages, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	msg := testkit.Await(t, "a message", messages)
	d, _ := ackpolicy.FromMessage(msg)
	testkit.Eventually(t, "all records", func() bool { return sub.State().Subscriptions[0].Partitions[0].InFlight == 3 })
	if e := testkit.Await(t, "HandlerSlow", slow); e.Handlers != 1 || e.Offset != d.Offset() {
		t.Errorf("event: %+v", e)
	}
	for range 2 {
		msg.Ack()
		msg = testkit.Await(t, "a message", messages)
	}
	msg.Ack()
	testkit.Check(t, sub.Close())
}
