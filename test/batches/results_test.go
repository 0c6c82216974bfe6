package batches_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The first call of a handler returns a result for records 0 to 3, which have the keys a, b, a, b; later ones succeed.
// What comes again, and with which attempt, is asserted for each policy and order.
func TestResults(t *testing.T) {
	t.Parallel()
	boom := testkit.ErrBoom
	for name, c := range map[string]struct {
		result   error
		first    func(ds []*ackpolicy.Delivery, messages []*message.Message) // is called before
		policy   ackpolicy.Policy
		ordering ackpolicy.Ordering
		again    []string // offset#attempt
		statuses string   // of the first deliveries: a letter each
	}{
		"nil":                            {policy: ackpolicy.NackOnError, statuses: "aaaa"},
		"one failed":                     {result: ackpolicy.BatchError{1: boom}, policy: ackpolicy.NackOnError, again: []string{"1#2"}, statuses: "anaa"},
		"two failed":                     {result: ackpolicy.BatchError{0: boom, 3: boom}, policy: ackpolicy.NackOnError, again: []string{"0#2", "3#2"}, statuses: "naan"},
		"wrapped":                        {result: fmt.Errorf("insert: %w", ackpolicy.BatchError{1: boom}), policy: ackpolicy.NackOnError, again: []string{"1#2"}, statuses: "anaa"},
		"one failed, nobody knows why":   {result: ackpolicy.BatchError{1: nil}, policy: ackpolicy.NackOnError, again: []string{"1#2"}, statuses: "anaa"},
		"stopped at 1, nobody knows why": {result: ackpolicy.FailedAt(1, nil), policy: ackpolicy.NackOnError, again: []string{"1#2", "2#1", "3#1"}, statuses: "anvv"},
		"one rejected":                   {result: ackpolicy.BatchError{1: boom}, policy: ackpolicy.RejectOnError, statuses: "araa"},
		"one failed under Ack":           {result: ackpolicy.BatchError{1: boom}, policy: ackpolicy.Ack, statuses: "aaaa"},
		"one failed under AckFirst":      {result: ackpolicy.BatchError{1: boom}, policy: ackpolicy.AckFirst, statuses: "aaaa"},
		"one failed under Manual":        {result: ackpolicy.BatchError{1: boom}, policy: ackpolicy.Manual, statuses: "pppp"},
		"a signal for one":               {result: ackpolicy.BatchError{1: ackpolicy.ErrReject, 2: boom}, policy: ackpolicy.NackOnError, again: []string{"2#2"}, statuses: "arna"},
		"a signal for all":               {result: ackpolicy.RejectWith(boom), policy: ackpolicy.NackOnError, statuses: "rrrr"},
		"a nack for all":                 {result: ackpolicy.NackAfter(0), policy: ackpolicy.RejectOnError, again: []string{"0#2", "1#2", "2#2", "3#2"}, statuses: "nnnn"},
		"stopped at 1":                   {result: ackpolicy.FailedAt(1, boom), policy: ackpolicy.NackOnError, again: []string{"1#2", "2#1", "3#1"}, statuses: "anvv"},
		"stopped at 1, rejected":         {result: ackpolicy.FailedAt(1, boom), policy: ackpolicy.RejectOnError, again: []string{"2#1", "3#1"}, statuses: "arvv"},
		"stopped at 1, by key":           {result: ackpolicy.FailedAt(1, boom), policy: ackpolicy.NackOnError, ordering: ackpolicy.OrderByKey, again: []string{"1#2", "2#1", "3#1"}, statuses: "anvv"},
		"settled by verbs": {
			result: boom, policy: ackpolicy.NackOnError, statuses: "arna", again: []string{"2#2"},
			first: func(ds []*ackpolicy.Delivery, messages []*message.Message) {
				ds[0].Ack()
				ds[1].Reject(boom)
				ds[2].Nack()
				messages[3].Ack()
			},
		},
		"settled by msg.Nack": {
			policy: ackpolicy.RejectOnError, statuses: "naaa", again: []string{"0#2"},
			first: func(_ []*ackpolicy.Delivery, messages []*message.Message) { messages[0].Nack() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "a", "b")...)
			var called atomic.Bool
			s, calls := consume(t, testkit.Config(group, testkit.Ordering(c.ordering, 0)), ackpolicy.BatchConfig{Wait: 50 * time.Millisecond}, topic,
				func(_ context.Context, messages []*message.Message, ds []*ackpolicy.Delivery) error {
					if called.Swap(true) {
						return nil
					}
					if c.first != nil {
						c.first(ds, messages)
					}
					return c.result
				}, ackpolicy.Middleware{Policy: c.policy}.Middleware)
			if c.policy == ackpolicy.Manual {
				testkit.Eventually(t, "the handler has returned", func() bool { return called.Load() })
			} else {
				testkit.WaitCommitted(t, group, topic, 0, 4)
			}
			statuses := ""
			for _, d := range calls.get()[0] {
				statuses += map[ackpolicy.Status]string{
					ackpolicy.Pending: "p", ackpolicy.Acked: "a", ackpolicy.Nacked: "n", ackpolicy.Rejected: "r", ackpolicy.Revoked: "v",
				}[d.Status()]
			}
			s.Stop()
			if statuses != c.statuses {
				t.Errorf("statuses %s, want %s", statuses, c.statuses)
			}
			var again []string
			for _, call := range calls.names()[1:] {
				again = append(again, call...)
			}
			if slices.Sort(again); !slices.Equal(again, c.again) {
				t.Errorf("came again: %v, want %v", again, c.again)
			}
		})
	}
}

// A handler that fails for all records, as in an outage, is not called for each of them again and again, and no record
// fails because of another: each has as many deliveries as it failed alone.
func TestOutage(t *testing.T) {
	t.Parallel()
	const n = 100
	for _, ordering := range orderings {
		t.Run(fmt.Sprint(ordering), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, keyed(n, 20)...)
			var alone [n]atomic.Int32
			var failed atomic.Int32
			s, c := consume(t, testkit.Config(group, testkit.Ordering(ordering, 0)), ackpolicy.BatchConfig{Wait: 50 * time.Millisecond}, topic,
				func(_ context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
					for _, d := range ds {
						if int(alone[d.Offset()].Load()) != d.Attempt()-1 {
							t.Errorf("offset %d: attempt %d, and it failed alone %d times", d.Offset(), d.Attempt(), alone[d.Offset()].Load())
						}
					}
					if failed.Add(1) > 60 {
						return nil
					}
					if len(ds) == 1 {
						alone[ds[0].Offset()].Add(1)
					}
					return testkit.ErrBoom
				}, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, n)
			s.Stop()
			_ = c
		})
	}
}

// A panic is a failure of the batch: the message because of which the handler panics is found.
func TestPanicIsSplit(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(20)...)
	letters := &testkit.Flaky{}
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 0))
	cfg.DeadLetter = letters
	s, _ := consume(t, cfg, untilFull(20), topic, func(_ context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
		if slices.ContainsFunc(ds, func(d *ackpolicy.Delivery) bool { return d.Offset() == 13 }) {
			panic("thirteen")
		}
		return nil
	}, ackpolicy.RejectOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 20)
	s.Stop()
	if n := letters.Sent.Load(); n != 1 {
		t.Errorf("%d letters, want 1", n)
	}
}

// A record that cannot be decoded is not in the batch; those behind it in its lane wait for it, the others do not.
func TestUndecodableInABatch(t *testing.T) {
	t.Parallel()
	for ordering, want := range map[ackpolicy.Ordering][]int64{
		ackpolicy.OrderByPartition: {0}, ackpolicy.OrderByKey: {0, 2}, ackpolicy.Unordered: {0, 2, 3},
	} {
		t.Run(fmt.Sprint(ordering), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "a", "b")...)
			cfg := testkit.Config(group, testkit.Ordering(ordering, 0))
			var decodes atomic.Bool
			cfg.Kafka.Unmarshaler = refusing{&decodes}
			s, c := consume(t, cfg, ackpolicy.BatchConfig{Wait: 50 * time.Millisecond}, topic, succeed, ackpolicy.NackOnError.Middleware)
			offsets := func() (all []int64) {
				for _, ds := range c.get() {
					for _, d := range ds {
						all = append(all, d.Offset())
					}
				}
				return all
			}
			testkit.Eventually(t, "the others", func() bool { return len(offsets()) >= len(want) })
			if got := offsets(); !slices.Equal(got, want) {
				t.Errorf("handled before it: %v, want %v", got, want)
			}
			decodes.Store(true)
			testkit.WaitCommitted(t, group, topic, 0, 4)
			s.Stop()
		})
	}
}

// refusing cannot decode the value "1" for a while.
type refusing struct{ decodes *atomic.Bool }

func (u refusing) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	if string(r.Value) == "1" && !u.decodes.Load() {
		return nil, errors.New("not yet")
	}
	return kafka.DefaultMarshaler{}.Unmarshal(r)
}

// Middlewares around the handler have one message, and one error if the whole batch failed: a Timeout ends the call.
func TestTimeoutOfABatch(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(4)...)
	var calls atomic.Int32
	s, c := consume(t, testkit.Config(group), ackpolicy.BatchConfig{Wait: 50 * time.Millisecond}, topic,
		func(ctx context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
			if calls.Add(1) > 1 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}, ackpolicy.NackOnError.Middleware, middleware.Timeout(100*time.Millisecond))
	testkit.WaitCommitted(t, group, topic, 0, 4)
	s.Stop()
	if got := fmt.Sprint(c.names()[0], c.names()[1]); got != "[0#1 1#1 2#1 3#1] [0#2 1#2 2#2 3#2]" {
		t.Errorf("calls: %v", got)
	}
}

// A message of another subscriber is a batch of one.
func TestHandleBatchOfASingleMessage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ err, want error }{
		{nil, nil}, {testkit.ErrBoom, testkit.ErrBoom}, {ackpolicy.BatchError{0: testkit.ErrBoom}, testkit.ErrBoom},
		{ackpolicy.FailedAt(0, testkit.ErrBoom), testkit.ErrBoom}, {ackpolicy.BatchError{}, nil},
	} {
		h := ackpolicy.HandleBatch(func(_ context.Context, messages []*message.Message) error {
			if len(messages) != 1 {
				t.Errorf("%d messages", len(messages))
			}
			return c.err
		})
		if err := h(message.NewMessage("id", nil)); !errors.Is(err, c.want) {
			t.Errorf("%v: got %v, want %v", c.err, err, c.want)
		}
	}
}

// SubscriberConfig.Policy applies to the records of a batch, where no middleware is.
func TestSubscribersPolicy(t *testing.T) {
	t.Parallel()
	for policy, want := range map[ackpolicy.Policy]ackpolicy.Status{
		ackpolicy.RejectOnError: ackpolicy.Rejected, ackpolicy.Ack: ackpolicy.Acked, ackpolicy.AckFirst: ackpolicy.Acked,
	} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
			cfg := testkit.Config(group)
			cfg.Policy = &policy
			s, c := consume(t, cfg, untilFull(3), topic, func(_ context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
				if policy == ackpolicy.AckFirst && ds[0].Status() != ackpolicy.Acked {
					t.Errorf("the handler runs, and its record is %v", ds[0].Status())
				}
				return ackpolicy.BatchError{1: testkit.ErrBoom}
			})
			testkit.WaitCommitted(t, group, topic, 0, 3)
			s.Stop()
			if got := c.get()[0][1].Status(); got != want {
				t.Errorf("the record that failed is %v, want %v", got, want)
			}
			if got := c.get()[0][0].Status(); got != ackpolicy.Acked {
				t.Errorf("one that did not is %v", got)
			}
		})
	}
}

// A handler that acks the message of the batch itself acks what it has not left: that comes again.
func TestLeaveAndAck(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s := testkit.NewService(t)
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	var names atomic.Value
	acked, returns := make(chan *ackpolicy.Delivery, 1), make(chan struct{})
	s.Router.AddConsumerHandler("handler", topic, testkit.NewSubscriber(t, testkit.Config(group), s.Log).Batches(ackpolicy.BatchConfig{Size: 3, Wait: 300 * time.Millisecond}), func(msg *message.Message) error {
		b, _ := ackpolicy.BatchFromMessage(msg)
		var all []string
		for _, m := range b.Messages() {
			d, _ := ackpolicy.FromMessage(m)
			all = append(all, testkit.Name(d))
		}
		names.Store(all)
		if len(all) == 3 {
			b.Leave(1)
			b.Leave(2)
			msg.Ack()
			d, _ := ackpolicy.FromMessage(b.Messages()[0])
			acked <- d
			<-returns
		}
		return nil
	})
	s.Start(t)
	first := testkit.Await(t, "the first batch", acked)
	testkit.Eventually(t, "what it acks is acked", func() bool { return first.Status() == ackpolicy.Acked })
	close(returns)
	testkit.Eventually(t, "the others come again", func() bool {
		all, _ := names.Load().([]string)
		return slices.Equal(all, []string{"1#1", "2#1"})
	})
	s.Stop()
	testkit.WantCommitted(t, group, topic, 0, 3)
}
