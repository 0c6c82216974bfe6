package consumer

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// CloseGrace is what the last commit and the group's leave may take after the handlers.
const CloseGrace = 5 * time.Second

// drainGrace is the part of it that is a drain's.
const drainGrace = CloseGrace - 2*time.Second

// readerPatience is how long a drain offers messages to an application that has
// none in work: it may have stopped to read. So long it lets handlers wait, too,
// for the commit of a record that the application does not begin to handle.
// A drain that goes on for longer says what it waits for.
const readerPatience = time.Second

// drain ends the assignment: nothing more is handed out, handlers in flight
// finish within budget, what is settled is committed, the rest is left to the
// next owner. messages is read to its end, so that sarama is never held up.
func (c *Claim) drain(messages <-chan *sarama.ConsumerMessage, cause error, budget time.Duration) {
	// What the handlers leave of their budget is the last commit's: amid a rebalance
	// the group takes no commit before all its members, also one that is gone, have
	// joined again or were given up.
	deadline := time.Now().Add(budget + drainGrace)
	discarded := discard(messages)
	released := Released{Cause: cause, TimedOut: c.finish(cause, budget)}
	running := c.end(&released)
	c.store(&released, deadline)
	c.leaveCalls(running, deadline)
	c.exit(c)
	c.logger.Debug("Partition released", watermill.LogFields{"cause": cause.Error(), "committed": released.Committed})
	c.tellReleased(&released)
	if c.cfg.Events.Released != nil {
		c.cfg.Events.Released(c.topic, c.partition, released)
	}
	// The other claims need the session until they have drained too: a return ends it.
	<-discarded // closes with the session, or the claim
}

func discard(messages <-chan *sarama.ConsumerMessage) (discarded <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range messages { //nolint:revive // nothing is to be done with them
		}
	}()
	return done
}

// finish hands nothing more out, and lets what was handed out come to its end. It
// reports whether the budget was up before.
func (c *Claim) finish(cause error, budget time.Duration) (timedOut bool) {
	// A nacked record with settled ones behind it is waited for, if that leaves its handler half of the time.
	drained, w := c.part.Stop(Now() + int64(budget/2))
	close(c.draining)
	c.hurryLetters()
	c.do(w)
	timedOut = c.awaitDrained(drained, cause, budget)
	if timedOut && c.source != nil {
		c.source.EndConfirms(0, cause)
	}
	if !timedOut {
		c.passLastGap()
	}
	return timedOut
}

// end closes the partition: nothing settles any more, and the contexts end. It
// returns the deliveries whose slots still have them.
func (c *Claim) end(r *Released) (running []*partition.Delivery[*sarama.ConsumerMessage]) {
	c.ended = r.Cause
	r.Left, running = c.part.Close()
	r.Running = len(running)
	if !c.quitted {
		close(c.quit)
	}
	close(c.spent)
	c.part.Forget()
	c.cancel(r.Cause)
	for _, d := range running {
		d.Owner.(Task).Cancel()
	}
	return running
}

// store commits what is settled.
func (c *Claim) store(r *Released, deadline time.Time) {
	r.Committed = c.part.Mark().Offset
	if c.source == nil {
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	r.Err = c.source.Flush(ctx)
	if mark := c.part.Mark(); c.source.Limit(&mark) {
		// Acked by ConfirmFirst, and never sent: their handlers did not run.
		r.Left.Running += int(c.part.Mark().Seq - mark.Seq)
		r.Left.First, r.Committed = mark.Offset, mark.Offset
	}
	c.source.Close(r.Cause)
	c.source.Told()
	select {
	case <-c.fenced:
		return // which has a line of its own
	default:
	}
	if r.Err != nil {
		c.health.failed(unconfirmed, c.partition, failure{err: r.Err, fields: watermill.LogFields{
			"cause": r.Cause.Error(), "kafka_partition_offset": r.Committed,
		}})
	}
}

// describe says what a drain waits for, or has left.
func describe(l partition.Left) string {
	var parts []string
	for _, kind := range []struct {
		n    int
		what string
	}{
		{l.Running, "neither acked nor nacked yet"},
		{l.Pending, "pending: their handlers returned without settling them"},
		{l.Nacked, "nacked, waiting for their next delivery"},
		{l.Letters, "rejected, their dead letters not stored"},
		{l.Unread, "not taken by the application, which took later ones"},
	} {
		if kind.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", kind.n, kind.what))
		}
	}
	return strings.Join(parts, "; ")
}

// awaitDrained reports whether the budget was up before.
func (c *Claim) awaitDrained(drained <-chan struct{}, cause error, budget time.Duration) (timedOut bool) {
	timer := time.NewTimer(budget)
	defer timer.Stop()
	look := time.NewTicker(readerPatience / 2)
	defer look.Stop()
	redelivery := time.NewTimer(time.Hour)
	defer redelivery.Stop()
	c.arm(redelivery)
	told := time.NewTimer(readerPatience)
	defer told.Stop()
	retries := time.NewTimer(budget / 2) // with thousands of nacked records, too, something is left for the last of them
	defer retries.Stop()
	var idle time.Time // since when nobody reads
	for stuck := 0; ; {
		c.endVainWaits(cause)
		select {
		case <-drained:
			return false
		case <-timer.C:
			return true
		case <-c.kick:
			c.serve(redelivery)
		case <-redelivery.C:
			c.do(c.part.Tick(Now()))
			c.arm(redelivery)
		case <-retries.C:
			c.part.LeaveNacked()
		case <-told.C:
			c.tellWaiting(budget)
		case <-look.C:
			if !c.nobodyReads() {
				idle = time.Time{}
			} else if idle.IsZero() {
				idle = time.Now()
			}
			if !c.quitted && !idle.IsZero() && time.Since(idle) >= readerPatience/2 {
				c.quitted = true
				c.part.GiveUp()
				close(c.quit)
			}
			if stuck++; !c.waitsForLast() {
				stuck = 0
			}
			if stuck == 2 {
				stuck = 0
				c.endWaits(0, cause)
			}
		}
	}
}

// tellWaiting says what keeps a drain.
func (c *Claim) tellWaiting(budget time.Duration) {
	left := c.part.Left()
	if describe(left) != "" {
		c.health.note(c.partition, note{
			text: "Partition draining, it waits for records", left: left, running: left.Running,
			fields: watermill.LogFields{"kafka_partition_offset": left.First, "drain_timeout": budget.String()},
		})
	}
}

// endVainWaits ends the waits for commits that would pass a record which this
// partition leaves: its next owner is the first who can settle it.
func (c *Claim) endVainWaits(cause error) {
	if c.source == nil || !c.source.Waiting() {
		return
	}
	if err := c.source.Hopeless(); err != nil { // no commit comes
		c.endWaits(0, fmt.Errorf("%w: %w", cause, err))
	}
	if seq, ok := c.part.Leaves(); ok {
		c.endWaits(seq, cause)
	}
}

func (c *Claim) endWaits(from uint64, cause error) {
	c.source.EndConfirms(from, cause)
	c.source.EndWaits(from, cause)
}

// waitsForLast tells whether a handler waits for a commit that has to wait for a
// record which is not handled yet. Watermill's Router, once it closes, starts no
// handler before those that run have ended: that handler must end first.
func (c *Claim) waitsForLast() bool {
	load := c.part.Load()
	return c.closingNow() && load.Waiting > 0 && load.Last
}
