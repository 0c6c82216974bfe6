// Package outage decides which occurrences of a repeating failure are logged: the first,
// then fewer and fewer, and a last line when it is over.
package outage

import (
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// The pause between two reports of an outage: the first one, its growth, and the longest.
const (
	firstPause  = 10 * time.Second
	pauseGrowth = 3
	mostPause   = 10 * time.Minute
)

// Outage is a failure that repeats until it is over. The zero value is ready to use, and
// reports the first failure at once. It may be used from any goroutine.
type Outage struct {
	// Quiet is how long an outage may last before it is reported.
	Quiet time.Duration

	mu       sync.Mutex
	failures int // 0 if there is no outage
	since    time.Time
	next     time.Time // of the next report
	pause    time.Duration
	reported bool
}

// Report is what a log line says about an outage.
type Report struct {
	Failures int
	For      time.Duration // since the first failure
}

// AddTo adds the report to the fields of a line: attempt and, unless it is about the first failure, failing_for.
func (r Report) AddTo(fields watermill.LogFields) watermill.LogFields {
	fields = fields.Add(watermill.LogFields{"attempt": r.Failures})
	if d := r.For.Round(time.Millisecond); d > 0 {
		fields["failing_for"] = d.String()
	}
	return fields
}

// Failed records a failure and reports whether to log it as an error. Other occurrences
// are logged at debug level.
func (o *Outage) Failed() (Report, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed()
}

func (o *Outage) failed() (Report, bool) {
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

// Lasts is Failed if there is an outage, and does nothing otherwise.
func (o *Outage) Lasts() (Report, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures == 0 {
		return Report{}, false
	}
	return o.failed()
}

// Since returns when the outage began, zero if there is none.
func (o *Outage) Since() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures == 0 {
		return time.Time{}
	}
	return o.since
}

// Over ends the outage, if there is one. It reports whether it was logged, so that its end
// has to be logged too.
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
