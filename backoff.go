package ackpolicy

import (
	"math"
	"math/rand/v2"
	"time"
)

// ExponentialBackoff makes delays that grow from attempt to attempt, for
// SubscriberConfig.Backoff:
//
//	Backoff: ackpolicy.ExponentialBackoff{}.Delay,
//
// A delay is chosen at random between nothing and its limit ("full jitter"), so
// that records that failed together do not come back together. So it is half of the limit
// on average. With the zero value, which works, 5 deliveries are over after 0.75 s on average,
// 10 after 26 s, 15 after 3 minutes, 20 after 5: to bear an outage, limit the
// record's age (SubscriberConfig.MaxAge), not its deliveries.
type ExponentialBackoff struct {
	// Initial is the limit of the first delay; 0 is 100 ms.
	Initial time.Duration
	// Max is the highest limit; 0 is one minute.
	Max time.Duration
	// Multiplier is what the limit grows by with each attempt; below 1, as 0 is, it is 2.
	Multiplier float64
	// NoJitter makes each delay as long as its limit.
	NoJitter bool
}

// Delay returns the delay after an attempt that failed, 1 being the first.
func (b ExponentialBackoff) Delay(attempt int, _ error) time.Duration {
	if b.Initial <= 0 {
		b.Initial = 100 * time.Millisecond
	}
	if b.Max <= 0 {
		b.Max = time.Minute
	}
	if b.Multiplier < 1 {
		b.Multiplier = 2
	}
	limit := b.Max
	if grown := float64(b.Initial) * math.Pow(b.Multiplier, float64(max(0, attempt-1))); grown < float64(b.Max) {
		limit = time.Duration(grown)
	}
	if b.NoJitter {
		return limit
	}
	return rand.N(limit + 1)
}
