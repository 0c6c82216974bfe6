package consumer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// snapshot returns what is to be stored of the partition, and the ledger that says so.
func (c *Claim) snapshot(room int) (*partition.Snapshot, string) {
	s := c.part.Snapshot()
	l := &ledger.Ledger{TopicID: c.topicID, Cluster: c.cluster, Blocks: s.Blocks}
	wall, now := time.Now(), Now()
	for i, o := range s.Open {
		open := ledger.Open{Offset: o.Offset, Attempts: o.Attempts, InFlight: o.InFlight, Alone: o.Alone, Check: o.Check}
		if o.DueAt > now {
			// Rounded up to what a ledger stores: a record never comes early.
			open.Due = wall.Add(min(time.Duration(o.DueAt-now), mostDelay) + time.Millisecond - 1)
		}
		if o.First != 0 {
			open.First = wall.Add(-max(0, time.Duration(now-o.First)))
		}
		open.Delay = min(time.Duration(o.Asked), mostDelay)
		if i < mostErrs && o.Err != nil {
			open.Err = textOf(o.Err)
		}
		if errors.Is(o.Rejected, ErrByHand) {
			open.Rejected = textOf(o.Rejected)
		}
		l.Open = append(l.Open, open)
	}
	if c.cfg.MaxDeliveries > 0 {
		c.crashes.write(l, c.careful.Load(), s.Last)
	}
	text, kept := ledger.Encode(c.ledgerPlace(s.Offset), l, room)
	if c.careful.Load() && kept.Open < len(l.Open) { // what is in flight first
		l.Open = slices.DeleteFunc(l.Open, func(o ledger.Open) bool { return !o.InFlight })
		text, kept = ledger.Encode(c.ledgerPlace(s.Offset), l, room)
	}
	s.Keep(kept.Blocks)
	c.unmarked.Store(int64(s.Left()))
	return s, text
}

func (c *Claim) ledgerPlace(offset int64) ledger.Place {
	return ledger.Place{Topic: c.topic, Partition: c.partition, Offset: offset}
}

// inherited reads what an earlier owner stored with the offset from which the claim
// starts. What cannot be trusted is logged. It is as if nothing were stored, by a member that left cleanly.
func (c *Claim) inherited(offset int64, text string) *ledger.Ledger {
	l, err := ledger.Decode(c.ledgerPlace(offset), text)
	var unknown sarama.Uuid
	switch {
	case err == nil && l.Kind != ledger.Consumer:
		err = ledger.ErrForeign
	case err == nil && l.TopicID != c.topicID && l.TopicID != unknown && c.topicID != unknown:
		err = errOtherTopic
	}
	if err != nil {
		if text != "" {
			c.logger.Info("The metadata of the committed offset is not used: records that were settled behind it are delivered again, and others start with attempt 1 and without their delays",
				watermill.LogFields{"err": err.Error(), "kafka_partition_offset": offset})
		}
		return &ledger.Ledger{Clean: true}
	}
	return l
}

// opens returns the open records of a ledger by the partition's clock.
func opens(l *ledger.Ledger) []partition.Open {
	wall, now := time.Now(), Now()
	open := make([]partition.Open, 0, len(l.Open))
	// Only a careful owner names all that it has in flight, and such an owner writes its deaths.
	suspects := !l.Clean && l.Crashes >= carefulAfter
	for _, o := range l.Open {
		p := partition.Open{Offset: o.Offset, Attempts: o.Attempts, InFlight: o.InFlight && suspects, Alone: o.Alone, Check: o.Check}
		if wait := o.Due.Sub(wall); wait > 0 {
			p.DueAt = now + int64(min(wait, mostDelay))
		}
		p.Asked = int64(o.Delay)
		if o.Err != "" {
			p.Err = errors.New(o.Err)
		}
		if o.Rejected != "" {
			p.Rejected = storedReason(o.Rejected)
		}
		if !o.First.IsZero() {
			p.First = now - int64(max(0, wall.Sub(o.First)))
		}
		open = append(open, p)
	}
	return open
}

// tellDoubted says, once for an assignment, that marks of an earlier owner did not hold.
func (c *Claim) tellDoubted(doubted []ledger.Run) {
	c.doubted.Do(func() {
		c.logger.Info("Records that an earlier owner settled are delivered again, from this offset on: the log no longer has the same records, or does not deliver them",
			watermill.LogFields{"kafka_partition_offset": doubted[0].From})
	})
}

var errOtherTopic = errors.New("it was stored for another topic of this name, in another cluster")

// The errors of the first open records are stored, up to a number of bytes each: they are
// for people who look at the group from outside.
const (
	mostErrs   = 4
	mostErrLen = 120
)

// textOf returns the beginning of an error's text. Package fmt survives a panic in it.
func textOf(err error) string {
	text := fmt.Sprint(err)
	if len(text) > mostErrLen {
		text = strings.ToValidUTF8(text[:mostErrLen], "") + "…"
	}
	return text
}

// mostDelay is the longest delay that is stored.
const mostDelay = 50 * 365 * 24 * time.Hour

// fingerprint is a number by which a record is known again. Headers are left out where a
// tracer writes into them before they come here.
func (s *base) fingerprint(r *sarama.ConsumerMessage) uint32 {
	var h ledger.Hash
	if s.cfg.Tracer == nil {
		for _, header := range r.Headers {
			h.Bytes(header.Key)
			h.Bytes(header.Value)
		}
	}
	return h.Fingerprint(r.Offset, r.Timestamp, r.Key, r.Value)
}
