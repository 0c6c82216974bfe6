package ackpolicyweb_test

import (
	"errors"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
)

// What is reported to the hooks is on the page. What happens to many partitions at the same time is one line.
func TestTimeline(t *testing.T) {
	line := &ackpolicyweb.Timeline{}
	hooks := line.Hooks()
	in := func(p int32) ackpolicy.PartitionRef { return ackpolicy.PartitionRef{Topic: "orders", Partition: p} }
	record := func(p int32, offset int64) ackpolicy.RecordRef {
		return ackpolicy.RecordRef{PartitionRef: in(p), Offset: offset}
	}
	f := newFake("orders", 3)
	h := pageOf(f, func(o *ackpolicyweb.Options) { o.Timeline = line })
	wantNone(t, get(t, h, "/"), "What happened lately")
	for p := range int32(3) {
		hooks.Assigned(ackpolicy.AssignedEvent{PartitionRef: in(p), Start: 17})
	}
	hooks.DeadLettered(ackpolicy.DeadLetteredEvent{RecordRef: record(1, 21), Reason: errors.New("<b>no such order")})
	hooks.DeadLettered(ackpolicy.DeadLetteredEvent{RecordRef: record(1, 22), Err: errors.New("no leader")})
	hooks.Acted(ackpolicy.ActedEvent{By: "ada", Action: ackpolicy.ActionPause, Topic: "orders", Partition: -1, Offset: -1})
	hooks.Acted(ackpolicy.ActedEvent{By: "ada", Action: ackpolicy.ActionLimit, Topic: "orders", Partition: -1, Offset: -1, Limits: ackpolicy.Limits{MaxInFlight: 8, MaxDeliveries: -1}})
	hooks.Revoked(ackpolicy.RevokedEvent{PartitionRef: in(2), Cause: ackpolicy.ErrRevoked, FirstLeft: 30, Running: 1})
	hooks.CommitFailed(ackpolicy.CommitFailedEvent{PartitionRef: in(2), Err: errors.New("not coordinator")})
	hooks.HandlerSlow(ackpolicy.HandlerSlowEvent{RecordRef: record(0, 19), For: time.Minute})
	hooks.Blocked(ackpolicy.BlockedEvent{PartitionRef: in(0), Bound: "MaxUncommitted", Offset: 19, State: "pending"})
	hooks.FetchStalled(ackpolicy.FetchStalledEvent{PartitionRef: in(0), Offset: 40})
	hooks.Undecodable(ackpolicy.UndecodableEvent{RecordRef: record(0, 41), Err: errors.New("no JSON")})
	hooks.PositionReset(ackpolicy.PositionResetEvent{PartitionRef: in(0), Stored: 5, Start: 7})
	hooks.Unconfirmed(ackpolicy.UnconfirmedEvent{RecordRef: record(0, 42)})
	time.Sleep(10 * time.Millisecond) // a page is as old as Options.Refresh
	page := get(t, h, "/")
	want(t, page, "assignedorders/0–23 times, the last: from orders/2@17 on", "letter storedorders/1orders/1@21, reason: <b>no such order", "letter not storedorders/1orders/1@22, no leader",
		"pauseordersby ada", "limitordersby ada, in flight: 8, deliveries: -1", "revokedorders/2left from orders/2@30 on: 1 running", "commit failedorders/2not coordinator", "slow handlerorders/0orders/0@19, for 1 min",
		"MaxUncommitted reachedorders/0before orders/0@19, pending", "fetch stalledorders/0at orders/0@40", "not decodedorders/0orders/0@41, no JSON",
		"position resetorders/0from 5 to orders/0@7", "not confirmedorders/0orders/0@42")
	wantNone(t, page, "<b>no such")
	partition := get(t, h, "/partition?topic=orders&partition=1")
	want(t, partition, "assigned", "letter stored", "by ada")
	wantNone(t, partition, "revoked", "commit failed")
}
