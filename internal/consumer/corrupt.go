package consumer

import (
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// suspicion is the search for a partition with a batch that cannot be decoded. Such a batch
// makes the whole response of its broker fail, for all partitions that the broker leads, and
// sarama requests the same again and again. Without the culprit, the others continue.
type suspicion struct {
	began atomic.Int64  // when the latest search began, by Now
	found atomic.Int64  // when one was last successful
	turn  chan struct{} // held by the goroutine that fetches: a decoded response may be large
}

// suspectAfter is how long a search lasts at least, since all partitions of the broker fail at once.
const suspectAfter = time.Second

// suspect makes all claims look whether their partition made a fetch fail.
func (s *base) suspect(err error) {
	if !reread.IsUndecodable(err) {
		return
	}
	now := Now()
	if began := s.suspicion.began.Load(); now-began < int64(suspectAfter) || !s.suspicion.began.CompareAndSwap(began, now) {
		return
	}
	for _, c := range s.assigned() {
		wait.Wake(c.suspected)
	}
}

// corrupt describes a batch that cannot be decoded and keeps its partition paused.
type corrupt struct {
	offset int64
	outage outage.Outage
}

// examine pauses the partition if what comes next cannot be decoded. Claims take turns.
func (c *Claim) examine() {
	select {
	case c.suspicion.turn <- struct{}{}:
		defer func() { <-c.suspicion.turn }()
	case <-c.draining:
		return
	}
	if c.suspicion.found.Load() > c.suspicion.began.Load() || c.gate.has(undecodable) || c.decodes() {
		return
	}
	c.suspicion.found.Store(Now())
	c.gate.mark(undecodable, true)
	c.cfg.Events.FetchStalled(c.topic, c.partition, FetchStalled{Offset: c.corrupt.offset, End: c.logEnd()})
}

// examineAgain looks whether an undecodable batch has been repaired or removed.
func (c *Claim) examineAgain() {
	if !c.decodes() {
		return
	}
	c.gate.mark(undecodable, false)
	if report, reported := c.corrupt.outage.Over(); reported {
		c.logger.Info("Partition continues", report.AddTo(nil))
	}
}

// decodes reports whether what comes next can be decoded. If the broker does not respond, nothing changes.
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
