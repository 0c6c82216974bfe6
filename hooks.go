package ackpolicy

import (
	"errors"
	"time"
)

// Hooks tell an application what happens to its records. Each may be nil. More may be added.
//
// Those of one subscription are called one at a time, in the order of the events, from
// a goroutine that does nothing else. So a hook runs shortly after its event, may block,
// settle records, and call Close; those of several subscriptions run at the same time. What
// a slow hook holds up is the hooks behind it, and beyond that:
//
//   - Settled: a thousand events may wait; then a record waits for its own one's turn.
//   - Committed and CommitFailed: of a partition's events only the latest wait.
//   - DeadLettered: the record's offset is not committed before it has returned.
//   - The end of the subscription waits a second for the hooks that are due.
//
// No record waits for a hook that has not returned for five seconds, nor does
// any while the subscription ends. Beyond 4,096 events that wait, more are dropped, which is
// logged as an error with the hook's name. A hook that panics is logged with its event.
type Hooks struct {
	// Assigned: a partition is ours from now on.
	Assigned func(AssignedEvent)
	// Settled: a delivery was acked, nacked or rejected. AckCumulative tells of each
	// record that it acks. Under ConfirmFirst it is told once the commit is confirmed.
	Settled func(SettledEvent)
	// Committed: Kafka has stored an offset, or more beside the same one.
	Committed func(CommittedEvent)
	// CommitFailed: a commit was refused or got no answer. It is tried again
	// until the partition is no longer ours.
	CommitFailed func(CommitFailedEvent)
	// Revoked: a partition is no longer ours, after its drain. It tells of Close too.
	Revoked func(RevokedEvent)
	// Blocked: a bound has kept the partition paused for some seconds behind one
	// record that is not settled, or because commits fail. Told once a record.
	Blocked func(BlockedEvent)
	// FetchStalled: a partition that is not paused has got nothing for half a minute
	// though the broker has records for it. Told once more when the
	// subscription reconnects for it, half a minute later. And at once where a batch
	// cannot be decoded, with the offset at which that begins.
	FetchStalled func(FetchStalledEvent)
	// Undecodable: the Unmarshaler refused a record. It is tried again with backoff.
	Undecodable func(UndecodableEvent)
	// PositionReset: the offset to go on from, the group's stored one or the one
	// reached, lay outside the log. With Start above Stored the records between them are lost.
	// Or the topic was deleted and created again: then Start is its beginning.
	PositionReset func(PositionResetEvent)
	// DeadLettered: a dead letter was stored, or not: then it is tried again, unless the record is given up.
	DeadLettered func(DeadLetteredEvent)
	// Unconfirmed: under ConfirmFirst a record's commit was sent, and the
	// partition lost before its outcome was known. Its handler does not run.
	Unconfirmed func(UnconfirmedEvent)
	// HandlerSlow: handlers of a partition have run for longer than SubscriberConfig.HandlerSlow.
	// Called when that begins, and then ever more rarely.
	HandlerSlow func(HandlerSlowEvent)
	// Acted: somebody paused, resumed, retried or rejected something.
	Acted func(ActedEvent)
}

// AssignedEvent is told by Hooks.Assigned.
type AssignedEvent struct {
	Topic     string
	Partition int32
	Start     int64 // the offset of the first record to be read
}

// SettledEvent is told by Hooks.Settled.
type SettledEvent struct {
	Topic     string
	Partition int32
	Offset    int64
	Attempt   int
	Status    Status // Acked, Nacked or Rejected
	Reason    error  // the handler's error, if there was one
}

// CommittedEvent is told by Hooks.Committed.
type CommittedEvent struct {
	Topic     string
	Partition int32
	Offset    int64 // the next record to be read
}

// CommitFailedEvent is told by Hooks.CommitFailed.
type CommitFailedEvent struct {
	Topic     string
	Partition int32
	Offset    int64
	Attempt   int // 0: the group has gone on without us, it is not tried again
	Err       error
}

// RevokedEvent is told by Hooks.Revoked.
type RevokedEvent struct {
	Topic     string
	Partition int32
	Cause     error // ErrRevoked or ErrClosing
	Offset    int64 // the watermark: every record below it is settled
	Err       error // why the last commit is not confirmed; nil: it is stored
	TimedOut  bool  // DrainTimeout ran out: handlers or letters outlived it
	FirstLeft int64 // the lowest offset that was delivered and not settled; -1: none
	Running   int   // deliveries left while their handlers still ran
	Pending   int   // deliveries left unsettled by handlers that had returned
	Nacked    int   // records left that waited for their next delivery
	Letters   int   // rejected records left whose dead letters were not stored
	Unmarked  int   // settled records that come again: the commit had no room for their marks
}

// BlockedEvent is told by Hooks.Blocked.
type BlockedEvent struct {
	Topic     string
	Partition int32
	Bound     string // MaxUncommitted or MaxBufferedBytes
	Offset    int64  // of the oldest unsettled record; with Err, the one to be committed
	Attempt   int
	State     string // what it waits for, in words
	Err       error  // why the commit fails; nil: it is the record that holds the partition
}

// FetchStalledEvent is told by Hooks.FetchStalled.
type FetchStalledEvent struct {
	Topic     string
	Partition int32
	Offset    int64         // the next to be read
	End       int64         // of the partition
	For       time.Duration // since it got something; in steps of 15 s
	Reconnect bool          // the subscription reconnects
}

// UndecodableEvent is told by Hooks.Undecodable.
type UndecodableEvent struct {
	Topic     string
	Partition int32
	Offset    int64
	Attempt   int
	Err       error
}

// PositionResetEvent is told by Hooks.PositionReset.
type PositionResetEvent struct {
	Topic     string
	Partition int32
	Stored    int64 // the offset before; -1: not known
	Start     int64 // the one it goes on from, by Consumer.Offsets.Initial; or a new topic's beginning
}

// DeadLetteredEvent is told by Hooks.DeadLettered.
type DeadLetteredEvent struct {
	Topic     string
	Partition int32
	Offset    int64
	Reason    error // why the record was rejected
	Err       error // why the letter was not stored; nil: it is
	GivenUp   bool  // it will not be: the record is gone, or OnUnstorable is UnstorableGiveUp
}

// UnconfirmedEvent is told by Hooks.Unconfirmed.
type UnconfirmedEvent struct {
	Topic     string
	Partition int32
	Offset    int64
	Err       error
}

// HandlerSlowEvent is told by Hooks.HandlerSlow.
type HandlerSlowEvent struct {
	Topic     string
	Partition int32
	Offset    int64 // of the record whose handler has run for longest
	Key       []byte
	Attempt   int
	Handler   string
	For       time.Duration
	Handlers  int // how many of the partition are slow
}

// Action is what somebody did by a method of the Subscriber.
type Action string

// The actions.
const (
	ActionPause  Action = "pause"
	ActionResume Action = "resume"
	ActionRetry  Action = "retry"
	ActionReject Action = "reject"
)

// ActedEvent is told by Hooks.Acted.
type ActedEvent struct {
	By        string
	Action    Action
	Topic     string
	Partition int32 // -1: all
	Offset    int64 // -1: not one record
	Reason    string
}

var errNoReason = errors.New("no reason given")

func orNoReason(err error) error {
	if err == nil {
		return errNoReason
	}
	return err
}
