package ackpolicy

// Hooks are functions that are called when something happens to the application's records
// and partitions. Each may be nil. More hooks may be added to the type.
//
// The hooks of a subscription are called one at a time, in the order of the events,
// from a separate goroutine. So a hook runs shortly after its event, and it may
// block, settle records and call Close. Hooks of different subscriptions may run at
// the same time.
//
// A slow hook delays the hooks behind it, and also:
//
//   - Settled: a thousand events may wait; beyond that, records wait until there is
//     room for theirs.
//   - Committed and CommitFailed: only the latest events of each partition are kept.
//   - DeadLettered: the record's offset is not committed before the hook has returned.
//   - The end of the subscription waits for up to a second for hooks that are due.
//
// A record waits for a hook for at most five seconds, and not while the subscription
// ends. When 4,096 events wait, further ones are dropped, which is
// logged as an error with the name of the hook. A panic in a hook is logged with its
// event. JoinHooks combines the hooks of several observers.
type Hooks struct {
	// Assigned is called when a partition is assigned.
	Assigned func(AssignedEvent)
	// Settled is called when a delivery is acked, nacked or rejected. For
	// AckCumulative it is called once for each record. Under ConfirmFirst it is called
	// after the commit is confirmed.
	Settled func(SettledEvent)
	// Committed is called when Kafka has stored an offset, or marks at the same offset. For the
	// last records that a commit covers, it may be called before Settled.
	Committed func(CommittedEvent)
	// CommitFailed is called when a commit is refused or gets no response. The commit is
	// tried again until it succeeds or the partition is released.
	CommitFailed func(CommitFailedEvent)
	// Revoked is called when a partition is released, after its drain: on a
	// revocation and on Close.
	Revoked func(RevokedEvent)
	// Blocked is called when a limit has kept a partition paused for some seconds,
	// because one record is not settled or because commits fail. It is called once for
	// each time a record or a commit blocks it.
	Blocked func(BlockedEvent)
	// FetchStalled is called when a partition that is not paused has received nothing
	// for half a minute although the broker has records for it, and again half a
	// minute later when the subscription reconnects because of it. It is called at
	// once for a batch that cannot be decoded, with the offset where the batch begins.
	FetchStalled func(FetchStalledEvent)
	// Undecodable is called when the Unmarshaler cannot decode a record.
	// SubscriberConfig.OnUndecodable says what happens to it.
	Undecodable func(UndecodableEvent)
	// PositionReset is called when the offset to continue from (the group's stored
	// one, or the one reached) is outside the log. If Stored is known and Start
	// is greater, the records between them are lost. It is also called when the topic was deleted
	// and created again; Start is then its beginning.
	PositionReset func(PositionResetEvent)
	// DeadLettered is called after each attempt to store a dead letter. A letter that
	// was not stored is sent again, unless the record is given up.
	DeadLettered func(DeadLetteredEvent)
	// Unconfirmed is called under ConfirmFirst when a record's commit was sent and the
	// partition was lost before the outcome was known. The record's handler does not run.
	Unconfirmed func(UnconfirmedEvent)
	// HandlerSlow is called when a handler of a partition has run for longer than
	// SubscriberConfig.HandlerSlow, and again at growing intervals while it runs.
	HandlerSlow func(HandlerSlowEvent)
	// Acted is called after Subscriber.Pause, Resume, Retry, Reject or SetLimits.
	Acted func(ActedEvent)
}

// JoinHooks returns hooks that call those of each observer, in the order given: the
// application's own and, for instance, those of ackpolicyprom and ackpolicyotel. A hook that
// panics does not keep the following ones from being called.
func JoinHooks(observers ...Hooks) (joined Hooks) {
	for _, o := range observers {
		joined.Assigned = both(joined.Assigned, o.Assigned)
		joined.Settled = both(joined.Settled, o.Settled)
		joined.Committed = both(joined.Committed, o.Committed)
		joined.CommitFailed = both(joined.CommitFailed, o.CommitFailed)
		joined.Revoked = both(joined.Revoked, o.Revoked)
		joined.Blocked = both(joined.Blocked, o.Blocked)
		joined.FetchStalled = both(joined.FetchStalled, o.FetchStalled)
		joined.Undecodable = both(joined.Undecodable, o.Undecodable)
		joined.PositionReset = both(joined.PositionReset, o.PositionReset)
		joined.DeadLettered = both(joined.DeadLettered, o.DeadLettered)
		joined.Unconfirmed = both(joined.Unconfirmed, o.Unconfirmed)
		joined.HandlerSlow = both(joined.HandlerSlow, o.HandlerSlow)
		joined.Acted = both(joined.Acted, o.Acted)
	}
	return joined
}

// both returns a hook that calls two, or nil if both are nil.
func both[E any](first, second func(E)) func(E) {
	switch {
	case first == nil:
		return second
	case second == nil:
		return first
	}
	return func(event E) {
		defer second(event) // also after a panic, which is then logged
		first(event)
	}
}
