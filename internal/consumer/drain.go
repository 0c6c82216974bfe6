package consumer

import (
	"context"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
)

// commitGrace is what the last commit and the group's leave may take after the handlers.
const commitGrace = 5 * time.Second

// readerPatience is how long a drain offers messages to an application that has
// none in work: it may have stopped to read. So long it lets handlers wait, too,
// for the commit of a record that the application does not begin to handle.
const readerPatience = time.Second

// drain ends the assignment: nothing more is handed out, handlers in flight
// finish within budget, what is settled is committed, the rest is left to the
// next owner. messages is read to its end, so that sarama is never held up.
func (c *Claim) drain(messages <-chan *sarama.ConsumerMessage, cause error, budget time.Duration) {
	// What the handlers leave of their budget is the last commit's: amid a rebalance
	// the group takes no commit before all its members, also one that is gone, have
	// joined again or were given up.
	deadline := time.Now().Add(budget + commitGrace - 2*time.Second)
	discarded := make(chan struct{})
	go func() {
		defer close(discarded)
		for range messages { //nolint:revive // nothing is to be done with them
		}
	}()
	// A nacked record with settled ones behind it is waited for, if that leaves its handler half of the time.
	drained, w := c.part.Stop(Now() + int64(budget/2))
	close(c.draining)
	c.do(w)
	timedOut := c.awaitDrained(drained, cause, budget)
	if timedOut && c.source != nil {
		c.source.EndConfirms(0, cause)
	}
	c.ended = cause
	left, running := c.part.Close()
	if !c.quitted {
		close(c.quit)
	}
	close(c.spent)
	c.part.Forget()
	c.cancel(cause)
	for _, d := range running {
		d.Owner.(Task).Cancel()
	}
	released := Released{Cause: cause, TimedOut: timedOut, Left: left, Committed: c.part.Mark().Offset}
	if c.source != nil {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		released.Err = c.source.Flush(ctx)
		cancel()
		if mark := c.part.Mark(); c.source.Limit(&mark) {
			// Acked by ConfirmFirst, and never sent: their handlers did not run.
			released.Left.Running += int(c.part.Mark().Seq - mark.Seq)
			released.Left.First, released.Committed = mark.Offset, mark.Offset
		}
		c.source.Close(cause)
	}
	if released.Err != nil {
		c.health.failed(unconfirmed, c.partition, failure{err: released.Err, fields: watermill.LogFields{
			"cause": cause.Error(), "kafka_partition_offset": released.Committed,
		}})
	}
	c.slots.Wait()
	c.letters.close()
	c.reader = nil // and what it has read ahead: a delivery that the application keeps keeps the claim
	c.exit(c)
	c.logger.Debug("Partition released", watermill.LogFields{"cause": cause.Error(), "committed": released.Committed})
	if c.cfg.Events.Released != nil {
		c.cfg.Events.Released(c.topic, c.partition, released)
	}
	// The other claims need the session until they have drained too: a return ends it.
	<-discarded // closes with the session, or the claim
}

// awaitDrained answers whether the budget was up before.
func (c *Claim) awaitDrained(drained <-chan struct{}, cause error, budget time.Duration) (timedOut bool) {
	timer := time.NewTimer(budget)
	defer timer.Stop()
	look := time.NewTicker(readerPatience / 2)
	defer look.Stop()
	redelivery := time.NewTimer(time.Hour)
	defer redelivery.Stop()
	c.arm(redelivery)
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

// endVainWaits ends the waits for commits that would pass a record which this
// partition leaves: its next owner is the first who can settle it.
func (c *Claim) endVainWaits(cause error) {
	if c.source == nil || !c.source.Waiting() {
		return
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
