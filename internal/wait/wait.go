// Package wait has what goroutines wait with: interruptible pauses, growing ones, and calls to look again.
package wait

import (
	"math/rand/v2"
	"sync/atomic"
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

// Unless returns pauses, as sarama asks for them, of which there are none once over returns true:
// sarama cannot be interrupted while it pauses, and its retries may take many seconds.
func Unless(over func() bool, pause func(retries, most int) time.Duration) func(retries, most int) time.Duration {
	return func(retries, most int) time.Duration {
		if over() {
			return 0
		}
		return pause(retries, most)
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

// Wake puts a token into a channel that has room for one, unless it has one. Whoever takes it
// looks for what there is to do.
func Wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Changes lets goroutines wait for a change of what they look at. The zero value is ready to use.
type Changes struct {
	next atomic.Pointer[chan struct{}] // nil if nobody has asked since the last change
}

// Next returns a channel that is closed at the next change. Call it before you look.
func (c *Changes) Next() <-chan struct{} {
	for {
		if next := c.next.Load(); next != nil {
			return *next
		}
		next := make(chan struct{})
		c.next.CompareAndSwap(nil, &next)
	}
}

// Tell is called after a change.
func (c *Changes) Tell() {
	if next := c.next.Swap(nil); next != nil {
		close(*next)
	}
}
