package ackpolicy_test

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
)

// domainError is an application's error that is a signal by its methods.
type domainError struct {
	text   string
	signal error
	deep   bool // errors.As finds the signal, too
}

func (e domainError) Error() string        { return e.text }
func (e domainError) Is(target error) bool { return errors.Is(e.signal, target) }
func (e domainError) As(target any) bool   { return e.deep && errors.As(e.signal, target) }

// An error of the application's own type is a signal if its method Is says so, at any depth; As brings delay and reason.
func TestSignalsByIs(t *testing.T) {
	t.Parallel()
	reject := domainError{text: "customer is blocked", signal: ackpolicy.ErrReject}
	nack := domainError{text: "busy", signal: ackpolicy.ErrNack}
	ack := domainError{text: "duplicate", signal: ackpolicy.ErrAck}
	reason := domainError{text: "text", signal: ackpolicy.RejectWith(errBoom), deep: true}
	for name, c := range map[string]struct {
		err    error
		want   ackpolicy.Status
		reason string // of the reject
	}{
		"reject":          {err: reject, want: ackpolicy.Rejected, reason: "customer is blocked"},
		"nack":            {err: nack, want: ackpolicy.Nacked},
		"ack":             {err: ack, want: ackpolicy.Acked},
		"wrapped":         {err: fmt.Errorf("order 7: %w", reject), want: ackpolicy.Rejected, reason: "customer is blocked"},
		"joined, nack":    {err: errors.Join(ack, errBoom, reject, nack), want: ackpolicy.Nacked},
		"joined, reject":  {err: errors.Join(ack, errBoom, reject), want: ackpolicy.Rejected, reason: "customer is blocked"},
		"beside a plain":  {err: errors.Join(reject, ackpolicy.ErrNack), want: ackpolicy.Nacked},
		"a reason, by As": {err: fmt.Errorf("order 7: %w", reason), want: ackpolicy.Rejected, reason: errBoom.Error()},
		"in a recovered panic": {
			err: middleware.RecoveredPanicError{V: fmt.Errorf("order 7: %w", reject)}, want: ackpolicy.Rejected, reason: "customer is blocked",
		},
	} {
		for _, how := range []string{"returned", "panicked"} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				if !ackpolicy.IsSignal(c.err) {
					t.Error("IsSignal says no")
				}
				topic := newTopic(t, 1, numbered(2)...)
				settled := make(chan ackpolicy.SettledEvent, 10)
				cfg := config(brokertest.Group(t))
				cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) { settled <- e }
				s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
					if d.Offset() > 0 || d.Attempt() > 1 {
						return nil
					}
					if how == "panicked" {
						panic(c.err)
					}
					return c.err
				}, ackpolicy.Manual.Middleware)
				e := await(t, "the settlement", settled)
				if e.Offset != 0 || e.Status != c.want || c.reason != "" && e.Reason.Error() != c.reason {
					t.Errorf("%+v", e)
				}
				s.stop()
			})
		}
	}
}

// A delay that As brings is kept.
func TestSignalDelayByAs(t *testing.T) {
	t.Parallel()
	const delay = 300 * time.Millisecond
	topic := newTopic(t, 1, numbered(1)...)
	var first time.Time
	s := consume(t, config(brokertest.Group(t)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() == 1 {
			first = time.Now()
			return fmt.Errorf("order 7: %w", domainError{text: "busy", signal: ackpolicy.NackAfter(delay), deep: true})
		}
		return nil
	}, ackpolicy.RejectOnError.Middleware)
	s.journal.wait(t, 2)
	if waited := time.Since(first); waited < delay {
		t.Errorf("came again after %v", waited)
	}
	s.stop()
}

// An error that wraps itself ends the search for signals.
func TestSignalSearchEnds(t *testing.T) {
	e := &loopError{}
	e.inner = e
	if ackpolicy.IsSignal(e) {
		t.Error("a signal")
	}
}

type loopError struct{ inner error }

func (*loopError) Error() string   { return "loop" }
func (e *loopError) Unwrap() error { return e.inner }

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
					group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
					cfg := config(group, drainTimeout(50*time.Millisecond))
					cfg.DeadLetter = &flaky{}
					cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) { t.Errorf("settled: %+v", e) }
					poisoned, counted := &failingPublisher{}, 0
					poison, err := middleware.PoisonQueueWithFilter(poisoned, "poison", notSignal)
					check(t, err)
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
					s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
						defer close(returned) // once: a second try would panic
						<-msg.Context().Done()
						return report(msg.Context())
					}, mw...)
					d := s.journal.wait(t, 1)
					s.stop()
					await(t, "the handler", returned)
					if poisoned.published != 0 || counted != 0 || d.Status() != ackpolicy.Revoked {
						t.Errorf("%d poisoned, %d counted, status %v", poisoned.published, counted, d.Status())
					}
					if lines := with(s.log.at("error"), "Handler returned error"); len(lines) > 0 {
						t.Errorf("logged as a failure: %v", lines)
					}
					wantCommitted(t, group, topic, 0, 0)
				})
			}
		}
	}
}

// A poison queue inside of which a Timeout ended the message's context publishes with the one that the message came with.
func TestPoisonAfterATimeout(t *testing.T) {
	t.Parallel()
	for _, policy := range policies {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			out := &honest{}
			stack, err := allTogether(policy, out, "poison")
			check(t, err)
			topic := newTopic(t, 1, numbered(1)...)
			s := consume(t, config(brokertest.Group(t)), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
				<-msg.Context().Done()
				return msg.Context().Err()
			}, stack...)
			eventually(t, "the poisoned message", func() bool { return out.count() == 1 })
			s.stop()
		})
	}
}

// honest is a publisher that honours the message's context.
type honest struct{ failingPublisher }

func (p *honest) Publish(topic string, messages ...*message.Message) error {
	if err := messages[0].Context().Err(); err != nil {
		return err
	}
	return p.failingPublisher.Publish(topic, messages...)
}

func (p *honest) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.published
}

// A rebalance that a handler outlives poisons nothing: its record comes again, and is handled once more.
func TestRebalancePoisonsNothing(t *testing.T) {
	t.Parallel()
	for name, report := range stops {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
			poisoned := &failingPublisher{}
			poison, err := middleware.PoisonQueueWithFilter(poisoned, "poison", notSignal)
			check(t, err)
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
			member := func() *service {
				return consume(t, config(group, drainTimeout(50*time.Millisecond)), topic, handle, mw...)
			}
			one := member()
			one.journal.wait(t, 1)
			two := member() // the group rebalances for it
			waitCommitted(t, group, topic, 0, 1)
			one.stop()
			two.stop()
			if n := len(one.journal.all()) + len(two.journal.all()); n != 2 || poisoned.published != 0 {
				t.Errorf("%d deliveries, %d poisoned", n, poisoned.published)
			}
		})
	}
}

// Under AckFirst the record of a handler that was stopped does not come again: that is an error line, since the Router,
// to which it is a context.Canceled, writes none.
func TestStoppedUnderAckFirstIsTold(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
	s := consume(t, config(group, drainTimeout(50*time.Millisecond)), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		<-msg.Context().Done()
		return msg.Context().Err()
	}, ackpolicy.AckFirst.Middleware)
	s.journal.wait(t, 1)
	s.stop()
	eventually(t, "the line", func() bool {
		return len(with(s.log.at("error"), "was stopped", "ack_first", "kafka_partition=0", "kafka_partition_offset=0")) == 1
	})
	wantCommitted(t, group, topic, 0, 1)
}

type contextKey struct{}
