package ackpolicy

import (
	"math"
	"math/rand/v2"
	"time"
)

// ExponentialBackoff computes delays that grow from attempt to attempt, for
// SubscriberConfig.Backoff:
//
//	Backoff: ackpolicy.ExponentialBackoff{}.Delay,
//
// Each delay is drawn at random between zero and its limit ("full jitter"), so that
// records that failed together do not come back together; on average it is half the
// limit. The zero value is ready to use. With it, 5 deliveries take 0.75 s on average, 10
// take 26 s, 15 take 3 minutes and 20 take 5. To survive an outage, limit the age of a
// record (SubscriberConfig.MaxAge), not its deliveries.
type ExponentialBackoff struct {
	// Initial is the limit of the first delay. 0 means 100 ms.
	Initial time.Duration
	// Max is the highest limit. 0 means one minute.
	Max time.Duration
	// Multiplier is the factor by which the limit grows with each attempt. Any value
	// below 1, such as 0, means 2.
	Multiplier float64
	// NoJitter makes each delay exactly its limit.
	NoJitter bool
}

// Delay returns the delay after a failed attempt. The first attempt is 1.
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
