package semantics_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A record is rejected by the first nack after MaxAge, not before, however many deliveries that takes; one whose outage is
// shorter is not, nor one that waits behind it.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	const maxAge = time.Second
	for name, wait := range map[string]func(d *ackpolicy.Delivery) error{
		"error":      func(*ackpolicy.Delivery) error { return testkit.ErrBoom },
		"a delay":    func(*ackpolicy.Delivery) error { return ackpolicy.NackAfter(20 * time.Millisecond) },
		"by a verb":  func(d *ackpolicy.Delivery) error { d.Nack(); return nil },
		"by a panic": func(*ackpolicy.Delivery) error { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
			rejected := make(chan ackpolicy.SettledEvent, 3)
			cfg := testkit.Config(group)
			cfg.MaxAge = maxAge
			cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
				if e.Status == ackpolicy.Rejected {
					rejected <- e
				}
			}
			var first, last time.Time // of record 0
			var outage time.Time      // of record 1
			s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				switch {
				case d.Offset() == 0:
					if last = time.Now(); d.Attempt() == 1 {
						first = last
					}
					return wait(d)
				case d.Offset() == 1 && d.Attempt() == 1:
					outage = time.Now()
					return testkit.ErrBoom
				case d.Offset() == 1 && time.Since(outage) < maxAge/4:
					return testkit.ErrBoom
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			e := testkit.Await(t, "the reject", rejected)
			testkit.WaitCommitted(t, group, topic, 0, 3)
			s.Stop()
			if e.Offset != 0 || len(rejected) > 0 {
				t.Errorf("rejected: %+v and %d more", e, len(rejected))
			}
			if age := last.Sub(first); age < maxAge-50*time.Millisecond || e.Attempt < 3 { // the age is older than the handler's clock
				t.Errorf("given up after %v and %d deliveries", age, e.Attempt)
			}
		})
	}
}

// Of MaxAge and MaxDeliveries the limit that is reached first counts.
func TestMaxAgeAndMaxDeliveries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		maxAge        time.Duration
		maxDeliveries int
		attempts      int
	}{
		"the count first": {time.Hour, 2, 2},
		"the age first":   {time.Nanosecond, 100, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			cfg := testkit.Config(group)
			cfg.MaxAge, cfg.MaxDeliveries = c.maxAge, c.maxDeliveries
			s := testkit.Consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return testkit.ErrBoom }, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Stop()
			if n := len(s.All()); n != c.attempts {
				t.Errorf("%d deliveries", n)
			}
		})
	}
}

// The age of a record continues over a restart: at its second delivery it is too old to be nacked.
func TestMaxAgeOverRestart(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a")...)
	dead, seen := &letterBox{}, &attempts{}
	settings := func(c *ackpolicy.SubscriberConfig) { c.MaxAge, c.DeadLetter = time.Second, dead }
	handler := func(_ *message.Message, d *ackpolicy.Delivery) error {
		seen.add(d)
		return ackpolicy.NackAfter(1500 * time.Millisecond)
	}
	s := testkit.Consume(t, testkit.Config(group, settings), topic, handler, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "the nack", func() bool { return seen.count(0) == 1 })
	s.Stop()
	s = testkit.Consume(t, testkit.Config(group, settings), topic, handler, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 1)
	s.Stop()
	if got := seen.of(0); got != "[1 2]" || len(dead.all()) != 1 {
		t.Errorf("attempts %s, %d letters", got, len(dead.all()))
	}
}
