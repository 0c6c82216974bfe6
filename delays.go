package ackpolicy

import (
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
)

// defaultMaxDelay is well below the retention of most topics.
const defaultMaxDelay = 24 * time.Hour

// delays reports whether Watermill's delay metadata is honoured.
func (s *subscription) delays() bool { return s.sub.config.MaxDelay > 0 }

// due returns when a record may be delivered for the first time, as its headers say, by
// consumer.Now; 0 for at once.
func (s *subscription) due(r *sarama.ConsumerMessage) int64 {
	until, after := delayHeaders(r)
	if until == "" && after == "" {
		return 0
	}
	fields := func() watermill.LogFields {
		return watermill.LogFields{"kafka_partition": r.Partition, "kafka_partition_offset": r.Offset, "delayed_until": until, "delayed_for": after}
	}
	at, err := dueBy(until, after, r.Timestamp.Add(time.Millisecond)) // which is rounded down
	if err != nil {
		if report, due := s.badDelays.Failed(); due {
			s.logger.Error("Delay metadata cannot be read: the record is delivered at once", err, report.AddTo(fields()))
		}
		return 0
	}
	now := time.Now()
	if !at.After(now) {
		return 0
	}
	latest := now.Add(s.sub.config.MaxDelay)
	if r.Timestamp.After(time.Time{}) && r.Timestamp.Before(now) { // a restart does not extend it
		latest = r.Timestamp.Add(s.sub.config.MaxDelay)
	}
	if at.After(latest) {
		if report, due := s.longDelays.Failed(); due {
			s.logger.Error("Delay metadata asks for more than MaxDelay: the record is delivered after MaxDelay",
				fmt.Errorf("it asks for %v", at.Format(time.RFC3339)), report.AddTo(fields()))
		}
		at = latest
	}
	if !s.delayed.Swap(true) {
		s.logger.Info("Records are delivered later, as their delay metadata says: this is the first one", fields())
	}
	return max(1, s.dueIn(at.Sub(now)))
}

// delayHeaders returns the delay metadata that the producer of a record wrote.
func delayHeaders(r *sarama.ConsumerMessage) (until, after string) {
	for _, h := range r.Headers {
		switch string(h.Key) {
		case delay.DelayedUntilKey:
			until = string(h.Value)
		case delay.DelayedForKey:
			after = string(h.Value)
		}
	}
	return until, after
}

// dueBy returns when a message is due whose delay metadata was written at about a time. The
// metadata has the second in which that is, rounded down, and how long the message is to be
// delayed. Where the two agree, their sum is exact; otherwise, the second counts.
func dueBy(until, after string, written time.Time) (time.Time, error) {
	wait, waitErr := time.ParseDuration(after)
	exact := written.Add(wait)
	if until == "" {
		return exact, waitErr
	}
	at, err := time.Parse(time.RFC3339, until)
	if err != nil || waitErr != nil || at.Nanosecond() != 0 {
		return at, err
	}
	if late := exact.Sub(at); late >= 0 && late < 2*time.Second { // it may have been written up to a second before
		return at.Add(min(late, time.Second)), nil
	}
	return at, nil
}

// asked returns the delay that the metadata of a nacked message asks for: that of
// DelayOnError, or of the handler; noDelay if there is none. What the producer wrote was for
// the first delivery. whole is the delay as it was written, on which DelayOnError builds at the next
// delivery.
func (d *Delivery) asked(msg *message.Message) (left, whole time.Duration) {
	until, after := msg.Metadata[delay.DelayedUntilKey], msg.Metadata[delay.DelayedForKey]
	if until == "" && after == "" || !d.sub.delays() {
		return noDelay, 0
	}
	if r := d.kafka.Held(); r != nil {
		if came, cameAfter := delayHeaders(r); came == until && cameAfter == after {
			return noDelay, 0
		}
	}
	now := time.Now()
	at, err := dueBy(until, after, now)
	if err != nil {
		if report, due := d.sub.badDelays.Failed(); due {
			d.sub.logger.Error("Delay metadata of a nacked message cannot be read: it is delivered again after Backoff", err, report.AddTo(d.fields()))
		}
		return noDelay, 0
	}
	if !at.After(now) {
		return noDelay, 0
	}
	if whole, err = time.ParseDuration(after); err != nil {
		whole = 0
	}
	return at.Sub(now), max(0, whole)
}

// remind gives a message that is delivered again the delay metadata of its last nack, since
// DelayOnError computes the next delay from it.
func (d *Delivery) remind(msg *message.Message) {
	asked := d.kafka.Asked()
	if asked == 0 {
		return
	}
	if msg.Metadata == nil { // an Unmarshaler may leave it so
		msg.Metadata = message.Metadata{}
	}
	msg.Metadata[delay.DelayedForKey] = asked.String()
	msg.Metadata[delay.DelayedUntilKey] = time.Now().UTC().Format(time.RFC3339)
}
