// Package seam lets tests in other packages than the root's reach what the root does not export. The root sets it.
package seam

import "time"

var (
	// LookEvery sets the time between two looks of a *Subscriber's watchdog.
	LookEvery func(subscriber any, d time.Duration)

	// InstanceID returns the static member id of a topic's n-th subscription.
	InstanceID func(id, topic string, n int) string
)
