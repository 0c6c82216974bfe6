package middlewares_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// stops are the ways for a handler to report that its context has ended.
var stops = map[string]func(ctx context.Context) error{
	"ctx.Err()":     func(ctx context.Context) error { return ctx.Err() },
	"context.Cause": context.Cause,
	"a child's Err()": func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		<-ctx.Done()
		return ctx.Err()
	},
	"a grandchild's": func(ctx context.Context) error {
		ctx, cancel := context.WithCancelCause(context.WithValue(ctx, contextKey{}, "value"))
		defer cancel(nil)
		<-ctx.Done()
		return fmt.Errorf("query: %w", context.Cause(ctx))
	},
	"bare context.Canceled, of a library": func(context.Context) error { return fmt.Errorf("query: %w", context.Canceled) },
	"a library's own error":               func(context.Context) error { return errors.New("rpc error: code = Internal") },
}

// A handler that outlives the drain, or the assignment, leaves its record, whatever it then returns: nothing is
// poisoned, retried, counted or logged as its failure, and the record comes again.
func TestStoppedHandlerLeavesItsRecord(t *testing.T) {
	t.Parallel()
	for name, report := range stops {
		for _, order := range []string{"ours outside", "ours inside"} {
			for _, policy := range []ackpolicy.Policy{ackpolicy.Ack, ackpolicy.RejectOnError, ackpolicy.NackOnError, ackpolicy.Manual} {
				t.Run(fmt.Sprintf("%s/%s/%v", name, order, policy), func(t *testing.T) {
					t.Parallel()
					group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
					cfg := testkit.Config(group, testkit.DrainTimeout(50*time.Millisecond))
					cfg.DeadLetter = &testkit.Flaky{}
					cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) { t.Errorf("settled: %+v", e) }
					poisoned, counted := &testkit.FailingPublisher{}, 0
					poison, err := middleware.PoisonQueueWithFilter(poisoned, "poison", notSignal)
					testkit.Check(t, err)
					breaker := breaker(func(err error) bool {
						if !succeeded(err) {
							counted++
						}
						return succeeded(err)
					})(chain{t: t, note: func(string) {}})
					again := middleware.Retry{MaxRetries: 3, InitialInterval: time.Millisecond, ShouldRetry: func(p middleware.RetryParams) bool { return notSignal(p.Err) }}
					theirs := []message.HandlerMiddleware{poison, again.Middleware, breaker, ackpolicy.RestoreContext}
					ours := ackpolicy.Middleware{Policy: policy, Classify: func(err error) (ackpolicy.Policy, bool) {
						t.Errorf("Classify was asked about %v", err)
						return ackpolicy.Ack, true
					}}.Middleware
					mw := append([]message.HandlerMiddleware{ours}, theirs...)
					if order == "ours inside" {
						mw = append(theirs, ours)
					}
					returned := make(chan struct{})
					s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
						defer close(returned) // once: a second try would panic
						<-msg.Context().Done()
						return report(msg.Context())
					}, mw...)
					d := s.Wait(t, 1)
					s.Stop()
					testkit.Await(t, "the handler", returned)
					if poisoned.Count() != 0 || counted != 0 || d.Status() != ackpolicy.Revoked {
						t.Errorf("%d poisoned, %d counted, status %v", poisoned.Count(), counted, d.Status())
					}
					if lines := testkit.Containing(s.Log.At("error"), "Handler returned error"); len(lines) > 0 {
						t.Errorf("logged as a failure: %v", lines)
					}
					testkit.WantCommitted(t, group, topic, 0, 0)
				})
			}
		}
	}
}

// A poison queue inside of which a Timeout ended the message's context publishes with the one that the message came with.
func TestPoisonAfterATimeout(t *testing.T) {
	t.Parallel()
	for _, policy := range testkit.Policies {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			out := &honest{}
			stack, err := allTogether(policy, out, "poison")
			testkit.Check(t, err)
			topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
				<-msg.Context().Done()
				return msg.Context().Err()
			}, stack...)
			testkit.Eventually(t, "the poisoned message", func() bool { return out.Count() == 1 })
			s.Stop()
		})
	}
}

// honest is a publisher that honours the message's context.
type honest struct{ testkit.FailingPublisher }

func (p *honest) Publish(topic string, messages ...*message.Message) error {
	if err := messages[0].Context().Err(); err != nil {
		return err
	}
	return p.FailingPublisher.Publish(topic, messages...)
}

// A rebalance that a handler outlives poisons nothing: its record comes again, and is handled again.
func TestRebalancePoisonsNothing(t *testing.T) {
	t.Parallel()
	for name, report := range stops {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			poisoned := &testkit.FailingPublisher{}
			poison, err := middleware.PoisonQueueWithFilter(poisoned, "poison", notSignal)
			testkit.Check(t, err)
			var first atomic.Bool
			first.Store(true)
			handle := func(msg *message.Message, _ *ackpolicy.Delivery) error {
				if !first.CompareAndSwap(true, false) {
					return nil
				}
				<-msg.Context().Done()
				if cause := context.Cause(msg.Context()); !errors.Is(cause, ackpolicy.ErrRevoked) {
					t.Errorf("cause: %v", cause)
				}
				return report(msg.Context())
			}
			mw := []message.HandlerMiddleware{ackpolicy.NackOnError.Middleware, poison, ackpolicy.RestoreContext}
			member := func() *testkit.Service {
				return testkit.Consume(t, testkit.Config(group, testkit.DrainTimeout(50*time.Millisecond)), topic, handle, mw...)
			}
			one := member()
			one.Wait(t, 1)
			two := member() // the group rebalances for it
			testkit.WaitCommitted(t, group, topic, 0, 1)
			one.Stop()
			two.Stop()
			if n := len(one.All()) + len(two.All()); n != 2 || poisoned.Count() != 0 {
				t.Errorf("%d deliveries, %d poisoned", n, poisoned.Count())
			}
		})
	}
}

// Under AckFirst the record of a handler that was stopped does not come again: that is an error line, since the Router,
// to which it is a context.Canceled, writes none.
func TestStoppedUnderAckFirstIsTold(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, testkit.Config(group, testkit.DrainTimeout(50*time.Millisecond)), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		<-msg.Context().Done()
		return msg.Context().Err()
	}, ackpolicy.AckFirst.Middleware)
	s.Wait(t, 1)
	s.Stop()
	testkit.Eventually(t, "the line", func() bool {
		return len(testkit.Containing(s.Log.At("error"), "was stopped", "ack_first", "kafka_partition=0", "kafka_partition_offset=0")) == 1
	})
	testkit.WantCommitted(t, group, topic, 0, 1)
}

type contextKey struct{}
