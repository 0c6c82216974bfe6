package ackpolicy_test

import (
	"math"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A record is rejected by the first nack after MaxAge, not before, however many deliveries that takes; one whose outage is
// shorter is not, nor one that waits behind it.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	const maxAge = time.Second
	for name, wait := range map[string]func(d *ackpolicy.Delivery) error{
		"error":      func(*ackpolicy.Delivery) error { return errBoom },
		"a delay":    func(*ackpolicy.Delivery) error { return ackpolicy.NackAfter(20 * time.Millisecond) },
		"by a verb":  func(d *ackpolicy.Delivery) error { d.Nack(); return nil },
		"by a panic": func(*ackpolicy.Delivery) error { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(3)...)
			rejected := make(chan ackpolicy.SettledEvent, 3)
			cfg := config(group)
			cfg.MaxAge = maxAge
			cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
				if e.Status == ackpolicy.Rejected {
					rejected <- e
				}
			}
			var first, last time.Time // of record 0
			var outage time.Time      // of record 1
			s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				switch {
				case d.Offset() == 0:
					if last = time.Now(); d.Attempt() == 1 {
						first = last
					}
					return wait(d)
				case d.Offset() == 1 && d.Attempt() == 1:
					outage = time.Now()
					return errBoom
				case d.Offset() == 1 && time.Since(outage) < maxAge/4:
					return errBoom
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			e := await(t, "the reject", rejected)
			waitCommitted(t, group, topic, 0, 3)
			s.stop()
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
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
			cfg := config(group)
			cfg.MaxAge, cfg.MaxDeliveries = c.maxAge, c.maxDeliveries
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return errBoom }, ackpolicy.NackOnError.Middleware)
			waitCommitted(t, group, topic, 0, 1)
			s.stop()
			if n := len(s.journal.all()); n != c.attempts {
				t.Errorf("%d deliveries", n)
			}
		})
	}
}

// What the documentation says of how long a number of deliveries lasts on average.
func TestExponentialBackoffLasts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		backoff    ackpolicy.ExponentialBackoff
		deliveries int
		want       time.Duration
	}{
		{ackpolicy.ExponentialBackoff{}, 5, 750 * time.Millisecond},
		{ackpolicy.ExponentialBackoff{}, 10, 25550 * time.Millisecond},
		{ackpolicy.ExponentialBackoff{}, 15, 171150 * time.Millisecond},
		{ackpolicy.ExponentialBackoff{}, 20, 321150 * time.Millisecond},
		{ackpolicy.ExponentialBackoff{Max: 30 * time.Second}, 5, 750 * time.Millisecond},
		{ackpolicy.ExponentialBackoff{Max: 30 * time.Second}, 10, 25550 * time.Millisecond},
		{ackpolicy.ExponentialBackoff{Max: 30 * time.Second}, 68, 895550 * time.Millisecond},
	} {
		exact := c.backoff
		exact.NoJitter = true
		var most time.Duration
		for attempt := 1; attempt < c.deliveries; attempt++ {
			most += exact.Delay(attempt, nil)
		}
		if got := most / 2; math.Abs(float64(got-c.want)) > float64(c.want)/100 {
			t.Errorf("%+v, %d deliveries: %v on average", c.backoff, c.deliveries, got)
		}
	}
}
