// Package outage decides which occurrences of a repeating failure are worth a log
// line: the first, then ever fewer, and a last one that says that it is over.
package outage

import (
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// The pause between two reports of one outage: the first, what it grows by, and the longest.
const (
	firstPause  = 10 * time.Second
	pauseGrowth = 3
	mostPause   = 10 * time.Minute
)

// Outage is one failure that repeats until it is over. The zero value is ready,
// and reports the first failure at once. It may be used from any goroutine.
type Outage struct {
	// Quiet is how long it may last before it is reported.
	Quiet time.Duration

	mu       sync.Mutex
	failures int // 0: there is no outage
	since    time.Time
	next     time.Time // of the next report
	pause    time.Duration
	reported bool
}

// Report is what a log line says of an outage.
type Report struct {
	Failures int
	For      time.Duration // since the first failure
}

// AddTo adds the report to a line's fields: attempt and failing_for.
func (r Report) AddTo(fields watermill.LogFields) watermill.LogFields {
	return fields.Add(watermill.LogFields{"attempt": r.Failures, "failing_for": r.For.Round(time.Millisecond).String()})
}

// Failed records a failure and reports whether it is to be logged as an error.
// The others are for the debug level.
func (o *Outage) Failed() (Report, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.failures == 0 {
		o.since, o.next, o.pause = now, now.Add(o.Quiet), firstPause
	}
	o.failures++
	report := Report{Failures: o.failures, For: now.Sub(o.since)}
	if now.Before(o.next) {
		return report, false
	}
	o.reported = true
	o.next = now.Add(o.pause)
	o.pause = min(pauseGrowth*o.pause, mostPause)
	return report, true
}

// Over ends the outage, if there is one. It reports whether an earlier line told of it,
// so that one more has to tell that it is over.
func (o *Outage) Over() (Report, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures == 0 {
		return Report{}, false
	}
	report, reported := Report{Failures: o.failures, For: time.Since(o.since)}, o.reported
	o.failures, o.reported = 0, false
	return report, reported
}
