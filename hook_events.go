package ackpolicy

import "time"

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
