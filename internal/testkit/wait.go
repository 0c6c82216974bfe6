package testkit

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Patience is how long a test waits for what has to happen.
const Patience = 30 * time.Second

// ErrBoom is how tests' handlers fail.
var ErrBoom = errors.New("boom")

// Check ends the test at an error.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Poll waits until the condition holds, and reports whether it does.
func Poll(holds func() bool) bool { return PollFor(Patience, holds) }

// PollFor is Poll with its own time.
func PollFor(d time.Duration, holds func() bool) bool {
	for deadline := time.Now().Add(d); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Eventually ends the test unless the condition comes to hold.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	if !Poll(holds) {
		t.Fatalf("gave up after %v, waiting for: %s", Patience, what)
	}
}

// Await waits for a value, or for the channel's end.
func Await[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(Patience):
		t.Fatalf("gave up after %v, waiting for: %s", Patience, what)
		panic("unreachable")
	}
}

// Until is Await for a handler: it ends with the handler's context.
func Until[T any](ctx context.Context, ch <-chan T) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// AnHourAgo is a record's own timestamp, not so old that the broker's retention, which
// goes by timestamps, deletes the record in mid-test.
func AnHourAgo() time.Time { return time.Now().Add(-time.Hour).Truncate(time.Millisecond) }

// LongestPause returns the longest time without any of the times, which are in order, up to the last of them.
func LongestPause(from time.Time, times []time.Time) (longest time.Duration, last time.Time) {
	last = from
	for _, at := range times {
		if at.After(from) {
			longest, last = max(longest, at.Sub(last)), at
		}
	}
	return longest, last
}
