package ackpolicy

import "time"

// LookEvery shortens the time between two looks of the watchdog.
func (s *Subscriber) LookEvery(d time.Duration) { s.look = d }

// InstanceID is how static member ids are made.
var InstanceID = instanceID
