package semantics_test

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestBackoff(t *testing.T) {
	t.Parallel()
	type asked struct {
		attempt int
		err     error
	}
	var mu sync.Mutex
	var got []asked
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, testkit.Config(group, func(c *ackpolicy.SubscriberConfig) {
		c.Backoff = func(attempt int, err error) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, asked{attempt, err})
			return time.Millisecond
		}
	}), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		switch d.Attempt() {
		case 1, 2:
			return testkit.ErrBoom
		case 3:
			d.Nack()
		case 4:
			return ackpolicy.ErrNack
		case 5:
			return ackpolicy.NackAfter(time.Millisecond)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 1)
	s.Stop()
	s.Want(t, "0#1", "0#2", "0#3", "0#4", "0#5", "0#6")
	if want := []asked{{1, testkit.ErrBoom}, {2, testkit.ErrBoom}, {3, nil}, {4, nil}}; !slices.Equal(got, want) {
		t.Errorf("Backoff was asked for %v, want %v", got, want)
	}
}

func TestExponentialBackoff(t *testing.T) {
	t.Parallel()
	exact := ackpolicy.ExponentialBackoff{Initial: time.Second, Max: 5 * time.Second, Multiplier: 2, NoJitter: true}
	for attempt, want := range map[int]time.Duration{
		-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 4: 5 * time.Second, 1 << 40: 5 * time.Second,
	} {
		if got := exact.Delay(attempt, nil); got != want {
			t.Errorf("attempt %d: %v, want %v", attempt, got, want)
		}
	}
	for attempt, limit := range map[int]time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 50: time.Minute} {
		shortest, longest := limit, time.Duration(0)
		for range 2000 {
			d := ackpolicy.ExponentialBackoff{}.Delay(attempt, nil)
			shortest, longest = min(shortest, d), max(longest, d)
		}
		if shortest < 0 || shortest > limit/10 || longest > limit || longest < limit*9/10 {
			t.Errorf("attempt %d: from %v to %v, want it spread from 0 to %v", attempt, shortest, longest, limit)
		}
	}
	for _, limit := range []time.Duration{math.MaxInt64 - 1, math.MaxInt64} {
		if d := (ackpolicy.ExponentialBackoff{Max: limit}).Delay(1000, nil); d < 0 {
			t.Errorf("up to %v: got %v", limit, d)
		}
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
