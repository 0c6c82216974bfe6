package consumer

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// CloseGrace is how long the last commit and leaving the group may take after the handlers.
const CloseGrace = 5 * time.Second

// drainGrace is the part of it that is a drain's.
const drainGrace = CloseGrace - 2*time.Second

// drainPatience is how long a drain lasts before it logs what it waits for.
const drainPatience = time.Second

// drain ends the assignment: nothing more is handed out, running handlers may finish within
// budget, what is settled is committed, the rest is left to the next owner. messages is read
// to its end, so that sarama never waits.
func (c *Claim) drain(messages <-chan *sarama.ConsumerMessage, budget time.Duration) {
	// The last commit gets what the handlers leave of their budget: during a rebalance the
	// group accepts no commit before all members, also one that is gone, have joined again
	// or were given up.
	now, cause := time.Now(), ErrRevoked
	if c.closingNow() {
		// A cooperative member may get a partition while it closes: Close's time is the claim's, too.
		cause, budget = ErrClosing, c.closeBegan.Add(c.cfg.DrainTimeout).Sub(now)
	}
	deadline := now.Add(budget + drainGrace)
	discarded := discard(messages)
	r := Released{Cause: cause}
	drained := c.stop(cause)
	switch r.TimedOut = !c.await(drained, budget); {
	case !r.TimedOut:
		c.passLastGap()
	case c.source != nil: // leaves records whose handlers wait for a commit that was not sent
		c.source.EndConfirms(cause)
	}
	running := c.close(&r)
	c.store(&r, deadline)
	c.part.Drop()
	c.leaveCalls(running, deadline)
	c.exit(c)
	c.tellReleased(&r)
	// The other claims need the session until they have drained too; returning ends it.
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

// stop makes the partition hand out nothing more. The channel that it returns is closed once
// everything that was handed out is finished.
func (c *Claim) stop(cause error) (drained <-chan struct{}) {
	drained, w := c.part.Stop()
	close(c.draining)
	c.offers.Tell()
	wait.Wake(c.batching.more) // a batch with records of this partition waits for no others
	c.letters.Hurry()
	c.do(w)
	if c.source != nil {
		c.source.Drain(cause)
	}
	return drained
}

// await waits until the partition is drained. It returns false if the budget is used up
// before. It logs once what it waits for.
func (c *Claim) await(drained <-chan struct{}, budget time.Duration) bool {
	if wait.For(min(budget, drainPatience), drained) && budget > drainPatience {
		c.tellWaiting(budget)
		wait.For(budget-drainPatience, drained)
	}
	select {
	case <-drained: // at once, and the budget may be none
		return true
	default:
		return false
	}
}

// close closes the partition: nothing settles any more, and the contexts end. It returns the
// deliveries that slots still have.
func (c *Claim) close(r *Released) (running []*Delivery) {
	c.ended = r.Cause
	left, unfinished := c.part.Close()
	for _, d := range unfinished {
		running = append(running, d.Handle.Delivery())
	}
	r.Left, r.Running = left, len(running)
	close(c.spent)
	c.cancel(r.Cause)
	for _, d := range running {
		d.Handle.Cancel()
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
	if c.cfg.MaxDeliveries > 0 {
		c.part.Touch() // the commit says that this is a clean end
	}
	r.Err = c.source.Flush(ctx)
	r.Left.Unmarked = int(c.unmarked.Load())
	c.source.Close(r.Cause)
	select {
	case <-c.fenced:
		return // that is logged elsewhere
	default:
	}
	if r.Err != nil {
		c.health.failed(unconfirmed, c.place, failure{err: r.Err, fields: watermill.LogFields{
			"cause": r.Cause.Error(), "kafka_partition_offset": r.Committed,
		}})
	}
}

// describe returns in words what a drain waits for, or has left.
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
		{l.Unmarked, "settled, but the commit had no room to say so"},
	} {
		if kind.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", kind.n, kind.what))
		}
	}
	return strings.Join(parts, "; ")
}

// tellWaiting logs what a drain waits for.
func (c *Claim) tellWaiting(budget time.Duration) {
	left := c.part.Left()
	if describe(left) != "" {
		c.health.note(c.place, note{
			text: "Partition draining, waiting for records", left: left, running: left.Running,
			fields: watermill.LogFields{"kafka_partition_offset": left.First, "drain_timeout": budget.String()},
		})
	}
}
