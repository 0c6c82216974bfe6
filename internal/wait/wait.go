// Package wait has interruptible pauses, and computes growing ones.
package wait

import (
	"math/rand/v2"
	"time"
)

// For waits for a duration. It returns false if done was closed before.
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

// Backoff returns the pause after an attempt; the first attempt is 1. It doubles from first
// to most.
func Backoff(attempt int, first, most time.Duration) time.Duration {
	return min(first<<min(attempt-1, 10), most)
}

// Jitter returns a pause between half of d and d, so that clients that lost the same broker
// do not come back all at once.
func Jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1)
}
