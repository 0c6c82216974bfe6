package consumer

import (
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// suspicion is the search for the partition whose batch cannot be decoded. It fails the
// whole answer of its broker, with all partitions that are led there, and sarama asks for
// the same again and again: without the culprit, the others go on.
type suspicion struct {
	round atomic.Int64  // the latest search
	found atomic.Int64  // the latest one that found a culprit
	began atomic.Int64  // when the latest began
	turn  chan struct{} // held by who fetches: an answer may be large once it is decoded
}

// suspectAfter is how long a search lasts at least: all partitions of the broker fail at once.
const suspectAfter = time.Second

// suspect has all claims look whether the fetch that failed is theirs.
func (s *shared) suspect(err error) {
	if !reread.IsUndecodable(err) {
		return
	}
	now := Now()
	if began := s.suspicion.began.Load(); now-began < int64(suspectAfter) || !s.suspicion.began.CompareAndSwap(began, now) {
		return
	}
	s.suspicion.round.Add(1)
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	for c := range s.claims {
		select {
		case c.suspected <- struct{}{}:
		default:
		}
	}
}

// corrupt is a batch that cannot be decoded, and keeps its partition paused.
type corrupt struct {
	offset int64
	outage outage.Outage
}

// examine looks, in its turn, whether what comes next can be decoded, and pauses the partition if not.
func (c *Claim) examine() {
	round := c.suspicion.round.Load()
	select {
	case c.suspicion.turn <- struct{}{}:
		defer func() { <-c.suspicion.turn }()
	case <-c.draining:
		return
	}
	if c.suspicion.found.Load() >= round || c.gate.has(undecodable) {
		return
	}
	if c.decodes() {
		return
	}
	c.suspicion.found.Store(c.suspicion.round.Load())
	c.gate.mark(undecodable, true)
	if c.cfg.Events.FetchStalled != nil {
		c.cfg.Events.FetchStalled(c.topic, c.partition, FetchStalled{Offset: c.corrupt.offset, End: c.logEnd()})
	}
}

// examineAgain looks whether a batch that could not be decoded has been mended or removed.
func (c *Claim) examineAgain() {
	if !c.decodes() {
		return
	}
	c.gate.mark(undecodable, false)
	if report, reported := c.corrupt.outage.Over(); reported {
		c.logger.Info("Partition continues", report.AddTo(nil))
	}
}

// decodes asks the broker. Where it gives no answer, nothing changes.
func (c *Claim) decodes() bool {
	offset, reason, err := c.reader.Undecodable(c.draining, c.part.Next())
	switch {
	case err != nil:
		return !c.gate.has(undecodable)
	case reason == nil:
		return true
	}
	c.corrupt.offset = offset
	if report, due := c.corrupt.outage.Failed(); due {
		c.logger.Error("Partition paused: one of its batches cannot be decoded, other partitions continue", reason,
			report.AddTo(watermill.LogFields{"kafka_partition_offset": offset}))
	}
	return false
}
