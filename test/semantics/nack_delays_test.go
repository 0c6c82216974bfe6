package semantics_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// DelayOnError works inside our middleware and outside it: each delay is kept, and grows from attempt to attempt, also over
// a restart.
func TestDelayOnError(t *testing.T) {
	t.Parallel()
	grows := middleware.DelayOnError{InitialInterval: 250 * time.Millisecond, MaxInterval: 2 * time.Second, Multiplier: 2}
	policy := ackpolicy.NackOnError.Middleware
	fails := func(*message.Message, *ackpolicy.Delivery) error { return testkit.ErrBoom }
	for name, c := range map[string]struct {
		mw       []message.HandlerMiddleware
		err      func(*message.Message, *ackpolicy.Delivery) error
		restarts bool
	}{
		"outside":                 {mw: []message.HandlerMiddleware{grows.Middleware, policy}},
		"inside":                  {mw: []message.HandlerMiddleware{policy, grows.Middleware}},
		"inside, with a signal":   {mw: []message.HandlerMiddleware{policy, grows.Middleware}, err: func(*message.Message, *ackpolicy.Delivery) error { return ackpolicy.ErrNack }},
		"without a policy":        {mw: []message.HandlerMiddleware{grows.Middleware}},
		"inside, over a restart":  {mw: []message.HandlerMiddleware{policy, grows.Middleware}, restarts: true},
		"outside, over a restart": {mw: []message.HandlerMiddleware{grows.Middleware, policy}, restarts: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a")...)
			if c.err == nil {
				c.err = fails
			}
			var seen times
			handler := func(msg *message.Message, d *ackpolicy.Delivery) error {
				if seen.add(d); d.Attempt() < 5 {
					return c.err(msg, d)
				}
				return nil
			}
			run := func() *testkit.Service {
				return testkit.Consume(t, testkit.Config(group), topic, handler, c.mw...)
			}
			s := run()
			if c.restarts {
				testkit.Eventually(t, "the third attempt", func() bool { return len(seen.of(0)) == 3 })
				s.Stop()
				s = run()
			}
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Stop()
			all := seen.of(0)
			if len(all) != 5 {
				t.Fatalf("%d attempts", len(all))
			}
			for i, want := range []time.Duration{250, 500, 1000, 2000} {
				want *= time.Millisecond
				if took := all[i+1].Sub(all[i]); took < want || took > want+want/2+*delayGrace+slack() {
					t.Errorf("delay %d was %v, want %v", i+1, took, want)
				}
			}
		})
	}
}

// What a message came with says nothing of the delay of a nack, and NackAfter goes before the metadata.
func TestDelayOfANack(t *testing.T) {
	t.Parallel()
	boom := func(*message.Message) error { return testkit.ErrBoom }
	past := time.Now().Add(-time.Second).UTC().Format(time.RFC3339)
	for name, c := range map[string]struct {
		until string
		fail  func(msg *message.Message) error
	}{
		"an error":                       {past, boom},
		"an error, and a delay too long": {"9999-12-31T23:59:59Z", boom},
		"a signal":                       {"9999-12-31T23:59:59Z", func(*message.Message) error { return ackpolicy.ErrNack }},
		"NackAfter": {past, func(msg *message.Message) error {
			delay.Message(msg, delay.For(time.Hour))
			return ackpolicy.NackAfter(10 * time.Millisecond)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group := brokertest.Group(t)
			topic := testkit.NewTopic(t, 1, withMetadata(testkit.Keyed("a")[0], c.until, "1h"))
			short := func(c *ackpolicy.SubscriberConfig) { c.MaxDelay = 300 * time.Millisecond }
			s := testkit.Consume(t, testkit.Config(group, short), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Attempt() == 1 {
					return c.fail(msg)
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Want(t, "0#1", "0#2")
		})
	}
}
