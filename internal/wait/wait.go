// Package wait has the pauses between attempts: interruptible, and growing.
package wait

import (
	"math/rand/v2"
	"time"
)

// For waits, and answers false if done was closed before the time was up.
func For(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
		return false
	}
}

// Backoff is the pause after an attempt, 1 being the first: it doubles from
// first to most.
func Backoff(attempt int, first, most time.Duration) time.Duration {
	return min(first<<min(attempt-1, 10), most)
}

// Jitter answers a pause between half of d and d: clients that lost the same
// broker are not to come back all at once.
func Jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1)
}
