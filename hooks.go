package ackpolicy

import (
	"time"
)

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
	// Acted is called after Subscriber.Pause, Resume, Retry, Reject or SetLimits; after SetLimits,
	// and after Pause and Resume with several partitions, once for each topic or partition.
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

// PartitionRef says which partition an event is about.
type PartitionRef struct {
	Group     string
	Handler   string // the one under a middleware of ours; "": none has run yet
	Topic     string
	Partition int32
}

// RecordRef says which record an event is about.
type RecordRef struct {
	PartitionRef
	Offset  int64
	Attempt int
	// KeyHash is the 64-bit FNV-1a hash of the record's key, of its first 256 bytes: the same
	// for records with the same key, which it does not reveal. 0 if the record has no key, or the
	// key is not at hand.
	KeyHash uint64
}

// AssignedEvent is passed to Hooks.Assigned.
type AssignedEvent struct {
	PartitionRef
	Start int64 // the offset of the first record to read
}

// SettledEvent is passed to Hooks.Settled.
type SettledEvent struct {
	RecordRef        // for a record that AckCumulative acked along with another one without KeyHash
	Status    Status // Acked, Nacked or Rejected
	Letter    bool   // it is rejected, and its dead letter is stored next: see Hooks.DeadLettered
	Reason    error  // the handler's error, if there was one
	// Duration is the time from the hand-out of the record until it was settled. Under
	// AckFirst that is before the handler runs, and in Manual it may be long after it. 0 if
	// the record was not handed out by this delivery, for example because it was rejected by
	// hand before its turn, or if AckCumulative acked it along with another one.
	Duration time.Duration
}

// CommittedEvent is passed to Hooks.Committed.
type CommittedEvent struct {
	PartitionRef
	Offset   int64         // the next record to read
	Duration time.Duration // how long the request took, which may be about several partitions
}

// CommitFailedEvent is passed to Hooks.CommitFailed.
type CommitFailedEvent struct {
	PartitionRef
	Offset   int64
	Attempt  int // from 1; 0 if the group has continued without this member, and the commit is not tried again
	Err      error
	Duration time.Duration // how long the request took
}

// RevokedEvent is passed to Hooks.Revoked.
type RevokedEvent struct {
	PartitionRef
	Cause     error // ErrRevoked or ErrClosing
	Offset    int64 // the watermark: every record below it is settled
	Err       error // why the last commit is not confirmed; nil if it is stored
	TimedOut  bool  // DrainTimeout ended while handlers or letters were still running
	FirstLeft int64 // the lowest offset that was delivered and not settled; -1 if there is none
	Running   int   // deliveries whose handlers were still running
	Pending   int   // deliveries whose handlers had returned without settling them
	Nacked    int   // records that waited for their next delivery
	Letters   int   // rejected records whose dead letters were not stored
	Unmarked  int   // settled records that come again, since the commit had no room for their marks
}

// BlockedEvent is passed to Hooks.Blocked.
type BlockedEvent struct {
	PartitionRef
	Bound   string // the limit that is reached: MaxUncommitted or MaxBufferedBytes
	Offset  int64  // of the oldest unsettled record; if Err is set, the offset to commit
	Attempt int
	State   string // what the record waits for, in words
	Err     error  // why commits fail; nil if a record holds the partition
}

// FetchStalledEvent is passed to Hooks.FetchStalled.
type FetchStalledEvent struct {
	PartitionRef
	Offset    int64         // the next record to read
	End       int64         // the end of the partition
	For       time.Duration // for how long it has received nothing, in steps of 15 s
	Reconnect bool          // whether the subscription reconnects now
}

// UndecodableEvent is passed to Hooks.Undecodable.
type UndecodableEvent struct {
	RecordRef
	Err error
}

// PositionResetEvent is passed to Hooks.PositionReset.
type PositionResetEvent struct {
	PartitionRef
	Stored int64 // the offset before; -1 if it is not known
	Start  int64 // the offset now, by Consumer.Offsets.Initial, or the beginning of a new topic
}

// DeadLetteredEvent is passed to Hooks.DeadLettered.
type DeadLetteredEvent struct {
	RecordRef
	Reason  error // why the record was rejected
	Err     error // why the letter was not stored; nil if it was
	GivenUp bool  // the letter will not be stored: the record is gone, or OnUnstorable is UnstorableGiveUp
}

// UnconfirmedEvent is passed to Hooks.Unconfirmed.
type UnconfirmedEvent struct {
	RecordRef
	Err error
}

// HandlerSlowEvent is passed to Hooks.HandlerSlow.
type HandlerSlowEvent struct {
	RecordRef // the record whose handler has run longest
	Key       []byte
	For       time.Duration
	Handlers  int // how many slow handlers the partition has
}

// Action names a method of the Subscriber that changes what it does.
type Action string

// The actions.
const (
	ActionPause  Action = "pause"
	ActionResume Action = "resume"
	ActionRetry  Action = "retry"
	ActionReject Action = "reject"
	ActionLimit  Action = "limit"
)

// ActedEvent is passed to Hooks.Acted.
type ActedEvent struct {
	By        string
	Action    Action
	Group     string
	Topic     string
	Partition int32 // -1 for all partitions
	Offset    int64 // -1 if the action is not about one record
	Reason    string
	Limits    Limits // of ActionLimit
}
