package consumer

import (
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// blockedAfter is how long one record, or a commit, holds a full window before that is told.
const blockedAfter = 2 * time.Second

// Blocked is what keeps a partition paused: the oldest record that is not settled,
// or a commit that is not confirmed.
type Blocked struct {
	Bound   string
	Offset  int64
	Attempt int
	State   string
	Commit  error // why the commit of Offset is not confirmed; nil: it is the record
}

// held is what keeps a paused partition's window full.
type held struct {
	offset int64
	passed uint64 // records that the bound has let pass
	commit bool   // not the record at offset, but the commit of it
	since  time.Time
	told   bool
}

var errUnconfirmed = errors.New("the commit has no answer yet")

// watch tells, once a record or commit, what a bound has kept the partition
// paused behind for blockedAfter.
func (in *intake) watch() {
	if in.gate.has(byHand) {
		in.held = held{} // nothing is settled because nothing is handed out
		return
	}
	load := in.part.Load()
	now := Blocked{}
	switch {
	case load.Blocked:
		now.Bound = "MaxUncommitted"
	case in.portion.Overdrawn():
		now.Bound = "MaxBufferedBytes"
	}
	oldest, ok := in.part.Oldest()
	if now.Bound == "" || !ok || load.Ready >= highMark {
		return
	}
	now.Offset, now.Attempt, now.State = oldest.Offset, oldest.Attempt, oldest.State
	// Half of MaxUncommitted brings a commit at once: one that stays away for so long fails.
	byCommit := load.Blocked && in.source != nil && (load.Uncommitted > 0 || in.source.Failure() != nil)
	if byCommit {
		now.Offset, now.Attempt = in.part.Mark().Offset, 0
		now.State = "settled, but commits fail"
	}
	if in.held.since.IsZero() || in.held.offset != now.Offset || in.held.passed != load.Admitted || in.held.commit != byCommit {
		in.held = held{offset: now.Offset, passed: load.Admitted, commit: byCommit, since: time.Now()}
		return
	}
	if in.held.told || time.Since(in.held.since) <= blockedAfter {
		return
	}
	in.held.told = true
	if !byCommit && in.blockedSince.IsZero() {
		in.blockedSince = in.held.since
	}
	if byCommit {
		if now.Commit = in.source.Failure(); now.Commit == nil {
			now.Commit = errUnconfirmed
		}
		in.health.failed(blocked, in.partition, failure{err: now.Commit, fields: watermill.LogFields{"kafka_partition_offset": now.Offset}})
	}
	if in.cfg.Events.Blocked != nil {
		in.cfg.Events.Blocked(in.topic, in.partition, now)
	}
}

// goesOn tells that a partition is no longer stuck behind a record.
func (in *intake) goesOn() {
	if !in.blockedSince.IsZero() {
		in.logger.Info("Partition continues", watermill.LogFields{"failing_for": time.Since(in.blockedSince).Round(time.Millisecond).String()})
		in.blockedSince = time.Time{}
	}
}
