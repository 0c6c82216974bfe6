package consumer

import (
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// stuckAfter is how long one record, or a commit, holds a full window before that is told.
const stuckAfter = 2 * time.Second

// Stuck is what keeps a partition paused: the oldest record that is not settled,
// or a commit that is not confirmed.
type Stuck struct {
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
// paused behind for stuckAfter.
func (c *Claim) watch() {
	load := c.part.Load()
	now := Stuck{}
	switch {
	case load.Blocked:
		now.Bound = "MaxUncommitted"
	case c.portion.Overdrawn():
		now.Bound = "MaxBufferedBytes"
	}
	oldest, ok := c.part.Oldest()
	if now.Bound == "" || !ok || load.Ready >= highMark {
		return
	}
	now.Offset, now.Attempt, now.State = oldest.Offset, oldest.Attempt, oldest.State
	// Half of MaxUncommitted brings a commit at once: one that stays away for so long fails.
	byCommit := load.Blocked && c.source != nil && (load.Uncommitted > 0 || c.source.Failure() != nil)
	if byCommit {
		now.Offset, now.Attempt = c.part.Mark().Offset, 0
		now.State = "settled, but commits fail"
	}
	if c.held.since.IsZero() || c.held.offset != now.Offset || c.held.passed != load.Admitted || c.held.commit != byCommit {
		c.held = held{offset: now.Offset, passed: load.Admitted, commit: byCommit, since: time.Now()}
		return
	}
	if c.held.told || time.Since(c.held.since) <= stuckAfter {
		return
	}
	c.held.told = true
	if !byCommit && c.stuck.IsZero() {
		c.stuck = c.held.since
	}
	if byCommit {
		if now.Commit = c.source.Failure(); now.Commit == nil {
			now.Commit = errUnconfirmed
		}
		c.health.failed(blocked, c.partition, failure{err: now.Commit, fields: watermill.LogFields{"kafka_partition_offset": now.Offset}})
	}
	if c.cfg.Events.Stuck != nil {
		c.cfg.Events.Stuck(c.topic, c.partition, now)
	}
}

// goesOn tells that a partition is no longer stuck behind a record.
func (c *Claim) goesOn() {
	if !c.stuck.IsZero() {
		c.logger.Info("Partition goes on", watermill.LogFields{"failing_for": time.Since(c.stuck).Round(time.Millisecond).String()})
		c.stuck = time.Time{}
	}
}
