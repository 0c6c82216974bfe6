package consumer

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// ledgerText is what is stored with a mark: how far the open records have come.
func (c *Claim) ledgerText(mark partition.Mark, room int) string {
	unsettled := c.part.Unsettled()
	if len(unsettled) == 0 {
		return ""
	}
	slices.SortFunc(unsettled, func(a, b partition.Open) int { return cmp.Compare(a.Offset, b.Offset) })
	l := &ledger.Ledger{TopicID: c.topicID}
	wall, now := time.Now(), Now()
	for _, o := range unsettled {
		if o.Offset < mark.Offset {
			continue // settled since
		}
		open := ledger.Open{Offset: o.Offset, Attempts: o.Attempts, Check: o.Check}
		if o.DueAt > now {
			// Rounded up to what a ledger stores: a record never comes early.
			open.Due = wall.Add(min(time.Duration(o.DueAt-now), mostDelay) + time.Millisecond - 1)
		}
		if o.First != 0 {
			open.First = wall.Add(-max(0, time.Duration(now-o.First)))
		}
		l.Open = append(l.Open, open)
	}
	text, _ := ledger.Encode(c.place(mark.Offset), l, room)
	return text
}

func (c *Claim) place(offset int64) ledger.Place {
	return ledger.Place{Topic: c.topic, Partition: c.partition, Offset: offset}
}

// inherited reads what an earlier owner stored with the offset from which the claim
// starts. What cannot be trusted is told, and is as if it had not been stored.
func (c *Claim) inherited(offset int64, text string) []partition.Open {
	var unknown sarama.Uuid
	l, err := ledger.Decode(c.place(offset), text)
	switch {
	case err == nil && l.Kind != ledger.Consumer:
		err = ledger.ErrForeign
	case err == nil && l.TopicID != c.topicID && l.TopicID != unknown && c.topicID != unknown:
		err = errOtherTopic
	}
	if err != nil {
		if text != "" {
			c.logger.Info("What is stored with the committed offset is not used: records that were delivered before begin with attempt 1, and without their delays",
				watermill.LogFields{"err": err.Error(), "kafka_partition_offset": offset})
		}
		return nil
	}
	wall, now := time.Now(), Now()
	open := make([]partition.Open, 0, len(l.Open))
	for _, o := range l.Open {
		p := partition.Open{Offset: o.Offset, Attempts: o.Attempts, Check: o.Check}
		if wait := o.Due.Sub(wall); wait > 0 {
			p.DueAt = now + int64(min(wait, mostDelay))
		}
		if !o.First.IsZero() {
			p.First = now - int64(max(0, wall.Sub(o.First)))
		}
		open = append(open, p)
	}
	return open
}

// mostDelay is the longest delay that is stored.
const mostDelay = 50 * 365 * 24 * time.Hour

var errOtherTopic = errors.New("it was stored for an earlier topic of this name")

// check returns a number by which a delivery's record is known again, 0 where that is not stored.
func (c *Claim) check(d *partition.Delivery[*sarama.ConsumerMessage]) uint16 {
	if c.source == nil {
		return 0
	}
	if r, ok := c.part.Record(d); ok && c.part.Status(d) != partition.Acked {
		return c.checkOf(r)
	}
	return 0 // or the partition knows it since before the record was pushed out
}

// checkOf is a number by which a record is known again. Headers are left out where a
// tracer writes into them before they come here.
func (s *shared) checkOf(r *sarama.ConsumerMessage) uint16 {
	var h ledger.Hash
	if s.cfg.Tracer == nil {
		for _, header := range r.Headers {
			h.Bytes(header.Key)
			h.Bytes(header.Value)
		}
	}
	return uint16(h.Fingerprint(r.Offset, r.Timestamp, r.Key, r.Value))
}
