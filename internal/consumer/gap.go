package consumer

import (
	"context"
	"time"
)

// The offsets after the last record of a partition may have no record for us: control records
// of transactions, aborted records, what compaction removed. A commit that stays below them
// would be lag forever, and below the log's start once retention has removed them. sarama does
// not report that it has passed them. So the broker is asked, if everything is settled and
// fetches have reported a higher end.

// gapLook is how often a claim checks for that, and how long it waits after the first request
// without a result: an open transaction may be in the way for long.
const gapLook = time.Second

// gapPatience is how long that request may take at the end of an assignment.
const gapPatience = time.Second

// doubtAfter is how long a paused partition with nothing to hand out waits for room before the
// marks that it waits for are given up.
const doubtAfter = 10 * time.Second

// gapLooks has what a claim knows about the offsets after its last record.
type gapLooks struct {
	next  int64     // at the last look
	since time.Time // since when next has been that
	pause time.Duration
	due   time.Time // when to ask next
}

// passGap moves the watermark past offsets without a record.
func (c *Claim) passGap(g *gapLooks, most time.Duration) {
	next := c.part.Next()
	c.doubt(g, next)
	if next != g.next {
		*g = gapLooks{next: next, since: time.Now(), pause: gapLook}
		return // it receives something
	}
	if time.Now().Before(g.due) || !c.mayPass(next) {
		return
	}
	tail, err := c.reader.Tail(c.draining, next)
	if err == nil && c.skip(next, tail.Next) {
		return
	}
	g.due = time.Now().Add(g.pause)
	g.pause = min(2*g.pause, max(most, gapLook))
}

// doubt gives up marks whose records do not come: the log ends before them, or the partition
// is paused, perhaps because of what waits behind them.
func (c *Claim) doubt(g *gapLooks, next int64) {
	end := c.part.Inherits()
	switch log := c.logEnd(); {
	case end < 0:
		return
	case log > 0 && log < end: // the log had them once
	case next != g.next:
		return
	case c.gate.has(byHand):
		return // they come once somebody resumes it
	case c.gate.closed():
		if load := c.part.Load(); load.Ready+load.Running > 0 || !c.portion.Overdrawn() && time.Since(g.since) < doubtAfter {
			return // there will be room
		}
	case log > next:
		if tail, err := c.reader.Tail(c.draining, next); err != nil || tail.Waiting {
			return
		}
	}
	c.do(c.part.Doubt())
}

// passLastGap is passGap for the last commit of an assignment.
func (c *Claim) passLastGap() {
	next := c.part.Next()
	if !c.mayPass(next) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), gapPatience)
	defer cancel()
	if tail, err := c.reader.Tail(ctx.Done(), next); err == nil {
		c.skip(next, tail.Next)
	}
}

// mayPass reports whether to ask the broker. A paused partition has not received what comes
// next, and the response would bring it, beyond MaxBufferedBytes.
func (c *Claim) mayPass(next int64) bool {
	return !c.gate.closed() && c.logEnd() > next && c.part.Load().Unsettled == 0
}

func (c *Claim) skip(from, to int64) bool {
	w, ok := c.part.Skip(from, to)
	c.do(w)
	return ok
}
