package middlewares_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// brokenError is an application's error with methods that panic.
type brokenError struct{ in string }

func (e *brokenError) fail(method string) {
	if e.in == method {
		panic("bug in " + method)
	}
}

func (e *brokenError) Error() string { e.fail("Error"); return "broken" }

func (e *brokenError) Unwrap() error { e.fail("Unwrap"); return nil }

func (e *brokenError) Is(error) bool { e.fail("Is"); return false }

func (e *brokenError) As(any) bool { e.fail("As"); return false }

func (e *brokenError) Permanent() bool { e.fail("Permanent"); return false }

// brokenLogger panics at every line.
type brokenLogger struct{}

func (brokenLogger) Error(string, error, watermill.LogFields) { panic("bug in the logger") }

func (brokenLogger) Info(string, watermill.LogFields) { panic("bug in the logger") }

func (brokenLogger) Debug(string, watermill.LogFields) { panic("bug in the logger") }

func (brokenLogger) Trace(string, watermill.LogFields) { panic("bug in the logger") }

func (l brokenLogger) With(watermill.LogFields) watermill.LoggerAdapter { return l }

// brokenUnmarshaler fails as configured at the first attempt of record 0.
type brokenUnmarshaler struct {
	kafka.DefaultMarshaler
	failed *atomic.Bool
	fail   func()
}

func (u brokenUnmarshaler) Unmarshal(record *sarama.ConsumerMessage) (*message.Message, error) {
	if record.Offset == 0 && u.failed.CompareAndSwap(false, true) {
		u.fail()
	}
	return u.DefaultMarshaler.Unmarshal(record)
}

// Code of the application that panics, or ends its goroutine, costs at most the attempt of the record that it was called
// for: the record behind it is delivered, and what happened is logged with the record.
func TestBrokenUserCode(t *testing.T) {
	t.Parallel()
	bug := func() { panic("bug") }
	classify := func(f func()) ackpolicy.Middleware {
		return ackpolicy.Middleware{
			Policy:   ackpolicy.NackOnError,
			Classify: func(error) (ackpolicy.Policy, bool) { f(); return ackpolicy.Ack, true },
		}
	}
	nackOnError := ackpolicy.Middleware{Policy: ackpolicy.NackOnError}
	for name, c := range map[string]struct {
		mw       ackpolicy.Middleware
		err      error // of the first attempt of record 0
		change   testkit.Option
		want     []string
		reported []string // in one line; nil: nothing
	}{
		"Classify panics": {mw: classify(bug), err: testkit.ErrBoom, reported: []string{"Classify", "bug", "partition=0", "offset=0"}},
		"Classify ends the goroutine": {
			mw: classify(runtime.Goexit), err: testkit.ErrBoom, reported: []string{"Classify", "Goexit", "partition=0", "offset=0"},
		},
		"Error panics":  {mw: nackOnError, err: &brokenError{in: "Error"}},
		"Unwrap panics": {mw: nackOnError, err: &brokenError{in: "Unwrap"}, reported: []string{"brokenError", "bug in Unwrap", "offset=0"}},
		"Is panics":     {mw: nackOnError, err: &brokenError{in: "Is"}, reported: []string{"brokenError", "bug in Is", "offset=0"}},
		"As panics":     {mw: nackOnError, err: &brokenError{in: "As"}, reported: []string{"brokenError", "bug in As", "offset=0"}},
		"Permanent panics": {
			mw:  ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Classify: ackpolicy.NeverRetry()},
			err: &brokenError{in: "Permanent"}, reported: []string{"Classify", "bug in Permanent", "offset=0"},
		},
		"a reason whose Error panics": {
			mw: nackOnError, err: ackpolicy.RejectWith(&brokenError{in: "Error"}), want: []string{"0#1", "1#1"},
			reported: []string{"Record rejected", "bug in Error", "offset=0"},
		},
		"a reason whose Error panics, and a letter": {
			mw: nackOnError, err: ackpolicy.RejectWith(&brokenError{in: "Error"}), want: []string{"0#1", "1#1"},
			change: func(cfg *ackpolicy.SubscriberConfig) {
				cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}}
			},
			reported: []string{"Record rejected", "bug in Error", "offset=0"},
		},
		"Backoff panics": {
			mw: nackOnError, err: testkit.ErrBoom, reported: []string{"Backoff", "bug", "offset=0"},
			change: func(cfg *ackpolicy.SubscriberConfig) {
				cfg.Backoff = func(int, error) time.Duration { panic("bug") }
			},
		},
		"Backoff ends the goroutine": {
			mw: nackOnError, err: testkit.ErrBoom, reported: []string{"Backoff", "Goexit", "offset=0"},
			change: func(cfg *ackpolicy.SubscriberConfig) {
				cfg.Backoff = func(int, error) time.Duration { runtime.Goexit(); return 0 }
			},
		},
		"Settled panics": {
			mw: nackOnError, err: testkit.ErrBoom, reported: []string{"Hooks.Settled", "bug", "Offset:0"},
			change: func(cfg *ackpolicy.SubscriberConfig) {
				cfg.Hooks.Settled = func(ackpolicy.SettledEvent) { panic("bug") }
			},
		},
		"Settled ends the goroutine": {
			mw: nackOnError, err: testkit.ErrBoom, reported: []string{"Hooks.Settled", "Goexit", "Offset:0"},
			change: func(cfg *ackpolicy.SubscriberConfig) {
				cfg.Hooks.Settled = func(ackpolicy.SettledEvent) { runtime.Goexit() }
			},
		},
		"Assigned panics": {
			mw: nackOnError, err: testkit.ErrBoom, reported: []string{"Hooks.Assigned", "bug", "Partition:0"},
			change: func(cfg *ackpolicy.SubscriberConfig) {
				cfg.Hooks.Assigned = func(ackpolicy.AssignedEvent) { panic("bug") }
			},
		},
		"Committed and Revoked panic": {
			mw: nackOnError, err: testkit.ErrBoom, reported: []string{"Hooks.Revoked", "bug", "Partition:0"},
			change: func(cfg *ackpolicy.SubscriberConfig) {
				cfg.Hooks.Committed = func(ackpolicy.CommittedEvent) { panic("bug") }
				cfg.Hooks.Revoked = func(ackpolicy.RevokedEvent) { panic("bug") }
			},
		},
		"the logger of the middleware panics": {
			mw:       ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Classify: func(error) (ackpolicy.Policy, bool) { panic("bug") }, Logger: brokenLogger{}},
			err:      testkit.ErrBoom,
			reported: nil,
		},
		"Unmarshal panics": {mw: nackOnError, change: unmarshal(bug), want: []string{"0#2", "1#1"}, reported: []string{"unmarshaler panicked", "bug", "offset=0"}},
		"Unmarshal ends the goroutine": {
			mw: nackOnError, change: unmarshal(runtime.Goexit), want: []string{"0#2", "1#1"}, reported: []string{"Unmarshal", "Goexit", "offset=0"},
		},
		"an interceptor panics": {
			mw: nackOnError, change: intercept(bug), want: []string{"0#1", "1#1"}, reported: []string{"Interceptor", "bug", "offset=0"},
			err: ackpolicy.ErrAck,
		},
		"an interceptor ends the goroutine": {
			mw: nackOnError, change: intercept(runtime.Goexit), want: []string{"0#2", "1#1"}, reported: []string{"Interceptor", "Goexit", "offset=0"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
			cfg := testkit.Config(group)
			if c.change != nil {
				c.change(&cfg)
			}
			s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 0 && d.Attempt() == 1 {
					return c.err
				}
				return nil
			}, c.mw.Middleware)
			want := c.want
			if want == nil {
				want = []string{"0#1", "0#2", "1#1"}
			}
			s.Wait(t, len(want))
			s.Stop()
			s.Want(t, want...)
			testkit.WantCommitted(t, group, topic, 0, 2)
			if c.reported != nil && len(testkit.Containing(s.Log.At("error", "info"), c.reported...)) == 0 {
				t.Errorf("no line with %q in\n%s", c.reported, strings.Join(s.Log.At("error", "info"), "\n"))
			}
		})
	}
}

// intercept adds an interceptor whose first call fails.
func intercept(fail func()) testkit.Option {
	return func(cfg *ackpolicy.SubscriberConfig) {
		cfg.Kafka.OverwriteSaramaConfig.Consumer.Interceptors = []sarama.ConsumerInterceptor{&brokenInterceptor{fail: fail}}
	}
}

type brokenInterceptor struct {
	failed atomic.Bool
	fail   func()
}

func (i *brokenInterceptor) OnConsume(r *sarama.ConsumerMessage) {
	if i.failed.CompareAndSwap(false, true) {
		r.Offset = -1
		i.fail()
	}
}

func unmarshal(fail func()) testkit.Option {
	return func(cfg *ackpolicy.SubscriberConfig) {
		cfg.Kafka.Unmarshaler = brokenUnmarshaler{failed: new(atomic.Bool), fail: fail}
	}
}

// A logger that panics at every line delays nothing.
func TestBrokenLogger(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	sub, err := ackpolicy.NewSubscriber(testkit.Config(group), brokenLogger{})
	testkit.Check(t, err)
	messages, err := sub.Subscribe(t.Context(), topic)
	testkit.Check(t, err)
	for range 3 {
		msg := testkit.Await(t, "a message", messages)
		d, _ := ackpolicy.FromMessage(msg)
		d.Reject(errors.New("logged as an error"))
		msg.Ack()
	}
	testkit.Check(t, sub.Close())
	testkit.WantCommitted(t, group, topic, 0, 3)
}

// Functions of a DeadLetterTopic that panic are Subscribe's error, and a Close does not wait for that Subscribe.
func TestBrokenLetterTopic(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1)
	cfg := testkit.Config(brokertest.Group(t))
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Topic: func(string) string { panic("bug") }}
	sub, err := ackpolicy.NewSubscriber(cfg, testkit.NewLog(t))
	testkit.Check(t, err)
	if _, err = sub.Subscribe(t.Context(), topic); err == nil || !strings.Contains(err.Error(), "bug") {
		t.Errorf("Subscribe: %v", err)
	}
	closed := make(chan error, 1)
	go func() { closed <- sub.Close() }()
	testkit.Check(t, testkit.Await(t, "Close", closed))
}

// IsSignal has no logger: it survives.
func TestIsSignalOfABrokenError(t *testing.T) {
	for _, method := range []string{"Is", "As", "Unwrap"} {
		if ackpolicy.IsSignal(fmt.Errorf("order 7: %w", &brokenError{in: method})) {
			t.Error(method)
		}
	}
	if err := errors.Join(ackpolicy.ErrNack, &brokenError{in: "Unwrap"}); !ackpolicy.IsSignal(err) {
		t.Error("the signal beside it is not seen")
	}
}

// Code of the application that fails for each record does not write a line for each.
func TestBrokenCodeInTheLog(t *testing.T) {
	t.Parallel()
	const records = 100
	topic := testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	cfg := testkit.Config(brokertest.Group(t))
	cfg.Hooks.Settled = func(ackpolicy.SettledEvent) { panic("hook") }
	cfg.Backoff = func(int, error) time.Duration { panic("backoff") }
	cfg.Kafka.NackResendSleep = time.Millisecond
	policy := ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Classify: func(error) (ackpolicy.Policy, bool) { panic("classify") }}
	began := time.Now()
	s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() == 1 {
			return testkit.ErrBoom
		}
		return nil
	}, policy.Middleware)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
	s.Stop()
	most := 1 + int(time.Since(began)/(10*time.Second))
	for _, line := range []string{"A hook failed", "Backoff failed", "Application code failed"} {
		if n := len(testkit.Containing(s.Log.At("error"), line, "attempt=")); n == 0 || n > most {
			t.Errorf("%s: %d lines for %d records, want 1 to %d", line, n, records, most)
		}
	}
}
