package semantics_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// atOnce is a Backoff without a delay.
func atOnce(int, error) time.Duration { return 0 }

// Handlers of one Subscriber have settings of their own; what a middleware leaves at zero is its outer middleware's, or
// the Subscriber's.
func TestSettingsPerHandler(t *testing.T) {
	t.Parallel()
	mw := func(m ackpolicy.Middleware) message.HandlerMiddleware {
		m.Policy = ackpolicy.NackOnError
		return m.Middleware
	}
	ofSubscriber, own, inner := &letterBox{}, &letterBox{}, &letterBox{}
	for name, c := range map[string]struct {
		mw       []message.HandlerMiddleware
		attempts int // until the record is rejected
		letters  *letterBox
	}{
		"none":                 {[]message.HandlerMiddleware{mw(ackpolicy.Middleware{})}, 2, ofSubscriber},
		"MaxDeliveries":        {[]message.HandlerMiddleware{mw(ackpolicy.Middleware{MaxDeliveries: 4})}, 4, ofSubscriber},
		"DeadLetter":           {[]message.HandlerMiddleware{mw(ackpolicy.Middleware{DeadLetter: own})}, 2, own},
		"both":                 {[]message.HandlerMiddleware{mw(ackpolicy.Middleware{MaxDeliveries: 3, DeadLetter: own})}, 3, own},
		"no limit, then ours":  {[]message.HandlerMiddleware{mw(ackpolicy.Middleware{MaxDeliveries: ackpolicy.Unlimited})}, 7, ofSubscriber},
		"in two middlewares":   {[]message.HandlerMiddleware{mw(ackpolicy.Middleware{MaxDeliveries: 3, DeadLetter: own}), mw(ackpolicy.Middleware{DeadLetter: inner})}, 3, inner},
		"only in an outer one": {[]message.HandlerMiddleware{mw(ackpolicy.Middleware{MaxDeliveries: 3}), mw(ackpolicy.Middleware{})}, 3, ofSubscriber},
		"only in an inner one": {[]message.HandlerMiddleware{mw(ackpolicy.Middleware{}), mw(ackpolicy.Middleware{MaxDeliveries: 3})}, 3, ofSubscriber},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
			s := testkit.Consume(t, testkit.Config(group, func(cfg *ackpolicy.SubscriberConfig) {
				cfg.MaxDeliveries, cfg.Backoff, cfg.DeadLetter = 2, atOnce, ofSubscriber
			}), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				switch {
				case d.Offset() == 1:
					return nil
				case d.Attempt() == 7:
					return ackpolicy.RejectWith(testkit.ErrBoom)
				}
				return testkit.ErrBoom
			}, c.mw...)
			testkit.WaitCommitted(t, group, topic, 0, 2)
			s.Stop()
			if n := len(s.All()) - 1; n != c.attempts {
				t.Errorf("%d attempts, want %d", n, c.attempts)
			}
			for _, box := range []*letterBox{ofSubscriber, own, inner} {
				n := 0
				for _, l := range box.all() {
					if l.Topic == topic && errors.Is(l.Reason, testkit.ErrBoom) {
						n++
					}
				}
				if want := box == c.letters; (n == 1) != want {
					t.Errorf("%d letters, want one: %v", n, want)
				}
			}
		})
	}
}

// The settings hold for what does not come back through the middleware: a verb after the handler returned, a delivery
// that an outer middleware refused, a record that somebody rejects by hand, the attempts before a restart.
func TestSettingsOutsideTheHandler(t *testing.T) {
	t.Parallel()
	three := func(policy ackpolicy.Policy, dead ackpolicy.DeadLetter) message.HandlerMiddleware {
		return ackpolicy.Middleware{Policy: policy, MaxDeliveries: 3, Backoff: atOnce, DeadLetter: dead}.Middleware
	}
	never := func(cfg *ackpolicy.SubscriberConfig) { // but for the handler's
		cfg.Backoff = func(int, error) time.Duration { return time.Hour }
	}
	wantThree := func(t *testing.T, dead *letterBox) {
		t.Helper()
		testkit.Eventually(t, "the letter", func() bool { return len(dead.all()) == 1 })
		if l := dead.all()[0]; l.Attempts != 3 {
			t.Errorf("letter: %+v", l)
		}
	}
	t.Run("a verb after the handler", func(t *testing.T) {
		t.Parallel()
		topic, dead := testkit.NewTopic(t, 1, testkit.Numbered(1)...), &letterBox{}
		s := testkit.Consume(t, testkit.Config(brokertest.Group(t), never), topic, testkit.Succeed, three(ackpolicy.Manual, dead))
		for n := 1; n <= 3; n++ {
			d := s.Wait(t, n)
			testkit.Eventually(t, "the handler has returned", func() bool { return d.Status() == ackpolicy.Pending })
			d.Nack()
		}
		wantThree(t, dead)
		s.Stop()
	})
	t.Run("an outer middleware", func(t *testing.T) {
		t.Parallel()
		topic, dead := testkit.NewTopic(t, 1, testkit.Numbered(2)...), &letterBox{}
		open := func(h message.HandlerFunc) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				if d, _ := ackpolicy.FromMessage(msg); d.Offset() == 1 {
					return nil, testkit.ErrBoom
				}
				return h(msg)
			}
		}
		s := testkit.Consume(t, testkit.Config(brokertest.Group(t), never), topic, testkit.Succeed, open, three(ackpolicy.NackOnError, dead))
		wantThree(t, dead)
		s.Stop()
	})
	t.Run("by hand", func(t *testing.T) {
		t.Parallel()
		topic, dead := testkit.NewTopic(t, 1, testkit.Numbered(2)...), &letterBox{}
		release := make(chan struct{})
		s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
			return testkit.Until(msg.Context(), release)
		}, three(ackpolicy.NackOnError, dead))
		s.Wait(t, 1)
		testkit.Eventually(t, "record 1 is fetched", func() bool { return s.Sub.Reject("alice", topic, 0, 1, "a test") == nil })
		close(release)
		testkit.Eventually(t, "the letter", func() bool { return len(dead.all()) == 1 })
		s.Stop()
	})
	t.Run("restarts", func(t *testing.T) {
		t.Parallel()
		group, topic, dead := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...), &letterBox{}
		for attempt := 1; attempt <= 3; attempt++ {
			s := testkit.Consume(t, testkit.Config(group, never), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Attempt() != attempt {
					return nil
				}
				return testkit.ErrBoom
			}, ackpolicy.Middleware{
				Policy: ackpolicy.NackOnError, MaxDeliveries: 3, DeadLetter: dead,
				Backoff: func(int, error) time.Duration { return 300 * time.Millisecond },
			}.Middleware)
			testkit.Eventually(t, "the settlement", func() bool { return len(s.All()) == 1 && s.All()[0].Status() != ackpolicy.Pending })
			s.Stop()
		}
		wantThree(t, dead)
		testkit.WantCommitted(t, group, topic, 0, 1)
	})
}

// MaxAge may be a handler's own, also of a record that has waited over a restart.
func TestMaxAgePerHandler(t *testing.T) {
	t.Parallel()
	const maxAge = 500 * time.Millisecond
	group, topic, dead := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...), &letterBox{}
	var first atomic.Int64
	run := func() *testkit.Service {
		return testkit.Consume(t, testkit.Config(group), topic, func(*message.Message, *ackpolicy.Delivery) error {
			first.CompareAndSwap(0, time.Now().UnixNano())
			return testkit.ErrBoom
		}, ackpolicy.Middleware{Policy: ackpolicy.NackOnError, MaxAge: maxAge, DeadLetter: dead}.Middleware)
	}
	s := run()
	s.Wait(t, 2)
	s.Stop()
	s = run()
	testkit.Eventually(t, "the letter", func() bool { return len(dead.all()) == 1 })
	if age := time.Since(time.Unix(0, first.Load())); age < maxAge-50*time.Millisecond {
		t.Errorf("given up after %v", age)
	}
	s.Stop()
}

// A dead letter topic that is a handler's own and cannot be opened keeps its records, and says so.
func TestDeadLetterTopicPerHandler(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	graveyard := brokertest.Topic(t) + ".graveyard"
	s := testkit.Consume(t, testkit.Config(group), topic, testkit.RejectAll,
		ackpolicy.Middleware{Policy: ackpolicy.NackOnError, DeadLetter: ackpolicy.DeadLetterTopic{Topic: func(string) string { return graveyard }}}.Middleware)
	testkit.Eventually(t, "the error line", func() bool {
		return len(testkit.Containing(s.Log.At("error"), "cannot open Middleware.DeadLetter", graveyard)) > 0
	})
	testkit.WantCommitted(t, group, topic, 0, 0)
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), graveyard, 1))
	testkit.WaitCommitted(t, group, topic, 0, 3)
	s.Stop()
	testkit.Letters(t, graveyard, 0, 3)
}

// What no handler can have goes to the Subscriber's DeadLetter.
func TestUndecodableIsNoHandlers(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, brokertest.Values("good", "bad", "good")...)
	ofSubscriber, own := &letterBox{}, &letterBox{}
	s := testkit.Consume(t, testkit.Config(group, func(cfg *ackpolicy.SubscriberConfig) {
		cfg.Kafka.Unmarshaler, cfg.DeadLetter = testkit.BadValues{}, ofSubscriber
	}), topic, testkit.RejectAll, ackpolicy.Middleware{Policy: ackpolicy.NackOnError, DeadLetter: own}.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 3)
	s.Stop()
	if len(own.all()) != 2 || len(ofSubscriber.all()) != 1 {
		t.Errorf("%d letters of the handler, %d others", len(own.all()), len(ofSubscriber.all()))
	}
}

// On another package's subscriber the settings do nothing, and the log says so.
func TestSettingsOnOtherSubscribers(t *testing.T) {
	t.Parallel()
	log, pubSub := testkit.NewLog(t), gochannel.NewGoChannel(gochannel.Config{}, nil)
	router, err := message.NewRouter(message.RouterConfig{}, log)
	testkit.Check(t, err)
	router.AddMiddleware(ackpolicy.Middleware{Policy: ackpolicy.NackOnError, MaxDeliveries: 3, DeadLetter: &letterBox{}, Logger: log}.Middleware)
	router.AddConsumerHandler("handler", "topic", pubSub, func(*message.Message) error { return nil })
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	<-router.Running()
	testkit.Check(t, pubSub.Publish("topic", message.NewMessage("1", nil)))
	testkit.Eventually(t, "the line", func() bool {
		return len(testkit.Containing(log.At("error"), "DeadLetter, MaxDeliveries", "NewSubscriber", "handler_name=handler")) == 1
	})
	testkit.Check(t, router.Close())
	testkit.Check(t, testkit.Await(t, "the end", ended))
	testkit.Check(t, pubSub.Close())
}

// SetLimits takes precedence over both.
func TestSetLimitsOverHandlers(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, testkit.Config(group), topic, func(*message.Message, *ackpolicy.Delivery) error { return testkit.ErrBoom },
		ackpolicy.Middleware{Policy: ackpolicy.NackOnError, MaxDeliveries: 1_000_000, Backoff: atOnce}.Middleware)
	sub := s.Sub
	s.Wait(t, 2)
	if n := sub.State().Subscriptions[0].MaxDeliveries; n != 1_000_000 {
		t.Errorf("State.MaxDeliveries: %d", n)
	}
	testkit.Check(t, sub.SetLimits("alice", ackpolicy.Limits{MaxDeliveries: 3}))
	testkit.WaitCommitted(t, group, topic, 0, 1)
	s.Stop()
}

// A broken Backoff of a handler costs its delay only.
func TestBrokenBackoffPerHandler(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() == 1 {
			return testkit.ErrBoom
		}
		return nil
	}, ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Backoff: func(int, error) time.Duration { panic("bug") }}.Middleware)
	s.Wait(t, 2)
	s.Stop()
	if lines := testkit.Containing(s.Log.At("error"), "Backoff failed", "Middleware.Backoff"); len(lines) != 1 || strings.Contains(lines[0], "SubscriberConfig") {
		t.Errorf("got %v", lines)
	}
}
