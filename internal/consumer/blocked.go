package consumer

import (
	"cmp"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// blockedAfter is how long one record, or a commit, must hold a full window to be reported.
const blockedAfter = 2 * time.Second

// Blocked says what keeps a partition paused: the oldest unsettled record, or a commit that
// is not confirmed.
type Blocked struct {
	Bound   string
	Offset  int64
	Attempt int
	State   string
	Commit  error // why the commit of Offset is not confirmed; nil if the record holds the partition
}

// blocker describes what keeps the window of a paused partition full.
type blocker struct {
	offset   int64
	passed   uint64 // records that the limit has let pass
	commit   bool   // the commit of offset holds it, not the record
	since    time.Time
	reported bool
}

var errUnconfirmed = errors.New("the commit has no response yet")

// watch reports, once per record or commit, what has kept the partition paused for
// blockedAfter.
func (in *intake) watch() {
	if in.gate.has(byHand) {
		in.blocker = blocker{} // nothing is settled because nothing is handed out
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
	oldest := in.part.Overview().Oldest
	if now.Bound == "" || oldest == nil || load.Ready >= highMark {
		return
	}
	now.Offset, now.Attempt, now.State = oldest.Offset, oldest.Attempt, oldest.State.String()
	// At half of MaxUncommitted a commit is sent at once. If it is missing for so long, it fails.
	byCommit := load.Blocked && in.source != nil && (load.Unconfirmed > 0 || in.source.Stored().Err != nil)
	if byCommit {
		now.Offset, now.Attempt = in.part.Mark().Offset, 0
		now.State = "settled, but commits fail"
	}
	if in.blocker.since.IsZero() || in.blocker.offset != now.Offset || in.blocker.passed != load.Admitted || in.blocker.commit != byCommit {
		in.blocker = blocker{offset: now.Offset, passed: load.Admitted, commit: byCommit, since: time.Now()}
		return
	}
	if in.blocker.reported || time.Since(in.blocker.since) <= blockedAfter {
		return
	}
	in.blocker.reported = true
	if !byCommit && in.blockedSince.IsZero() {
		in.blockedSince = in.blocker.since
	}
	if byCommit {
		now.Commit = cmp.Or(in.source.Stored().Err, errUnconfirmed)
		in.health.failed(blocked, in.place, failure{err: now.Commit, fields: watermill.LogFields{"kafka_partition_offset": now.Offset}})
	}
	in.cfg.Events.Blocked(in.topic, in.partition, now)
}

// continues reports that a partition is no longer blocked by a record.
func (in *intake) continues() {
	if !in.blockedSince.IsZero() {
		in.logger.Info("Partition continues", watermill.LogFields{"failing_for": time.Since(in.blockedSince).Round(time.Millisecond).String()})
		in.blockedSince = time.Time{}
	}
}
