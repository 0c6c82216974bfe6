package ackpolicy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// verdict returns the partition's verdict for an action: it decides the delay of a nack, and
// whether it becomes a reject.
func (d *Delivery) verdict(a action, delay time.Duration, err error) partition.Verdict {
	switch a {
	case doAck:
		return partition.Verdict{Status: partition.Acked, Reason: err}
	case doReject:
		return partition.Verdict{Status: partition.Rejected, Hold: d.sub.destination(d.settings()) != nil, Reason: err}
	case doNack:
		own := d.settings()
		if d.spent(own) {
			return d.verdict(doReject, noDelay, err)
		}
		if delay == noDelay {
			delay = d.sub.backoff(d, own, err)
		}
		return partition.Verdict{Status: partition.Nacked, DueAt: d.sub.dueIn(delay), First: d.firstBegan(own), Reason: err}
	}
	return partition.Verdict{Reason: err}
}

// verdictOn is verdict for a message that nobody changes any more: its metadata may ask for a delay.
func (d *Delivery) verdictOn(msg *message.Message, a action, err error) partition.Verdict {
	if a != doNack {
		return d.verdict(a, noDelay, err)
	}
	left, whole := d.asked(msg)
	v := d.verdict(a, left, err)
	if v.Status == partition.Nacked && whole > 0 {
		d.kafka.Ask(whole)
	}
	return v
}

// backoff returns the delay of a record that was nacked without one.
func (s *subscription) backoff(d *Delivery, own *handlerSettings, err error) time.Duration {
	delay := s.sub.config.Kafka.NackResendSleep // NoSleep is negative
	b, of := s.sub.config.Backoff, "SubscriberConfig.Backoff"
	if own != nil && own.backoff != nil {
		b, of = own.backoff, "Middleware.Backoff"
	}
	if b == nil {
		return max(0, delay)
	}
	chosen := delay
	failed := func(err error) {
		if report, due := s.brokenBackoff.Failed(); due {
			s.logger.Error("Backoff failed, Kafka.NackResendSleep is used instead", err, report.AddTo(nil).Add(d.fields()))
		}
	}
	if broken := guard(of, func() { chosen = b(d.Attempt(), err) }, failed); broken != nil {
		failed(broken)
		chosen = delay
	}
	return max(0, chosen)
}

// obey settles as a signal says. It does nothing under AckFirst, which has acked already.
func (d *Delivery) obey(sig *signal) {
	switch sig.kind {
	case signalledAck:
		d.Ack()
	case signalledNack:
		d.ending.mu.Lock()
		msg := d.msg
		d.ending.mu.Unlock()
		if d.sub == nil || sig.delay != noDelay || msg == nil {
			d.nack(sig.delay, nil)
		} else {
			d.byHand()
			d.settle(d.verdictOn(msg, doNack, nil))
		}
	case signalledReject:
		d.Reject(sig.reason)
	}
}

// spent reports whether a nack becomes a reject.
func (d *Delivery) spent(own *handlerSettings) bool {
	if most := d.sub.maxDeliveries(own); most > 0 && d.Attempt() >= most {
		return true
	}
	age, first := d.sub.maxAge(own), d.firstBegan(own)
	return age > 0 && first != 0 && consumer.Now()-first >= int64(age)
}

// firstBegan returns when the record's first delivery began; 0 if nobody needs it, see timed.
func (d *Delivery) firstBegan(own *handlerSettings) int64 {
	if d.sub.maxAge(own) <= 0 {
		return 0
	}
	if first := d.kafka.First(); first != 0 {
		return first
	}
	return d.began.Load()
}

// timed reports whether the beginning of deliveries is recorded. The first ones of a handler
// with a MaxAge of its own begin when they reach its middleware.
func (s *subscription) timed() bool {
	return s.sub.config.MaxAge > 0 || s.sub.config.Hooks.Settled != nil || s.maxAge(s.handlerSettings()) > 0
}

// dueIn returns when a delay is over. A delay may be too long to be added to a time.
func (s *subscription) dueIn(delay time.Duration) int64 {
	const century = 100 * 365 * 24 * time.Hour
	due := consumer.Now() + int64(min(delay, century))
	if w := s.sub.watcher; w != nil {
		w.Delays(due, delay)
	}
	return due
}

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
			s.loggerOf(r.Topic).Error("Delay metadata cannot be read: the record is delivered at once", err, report.AddTo(fields()))
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
			s.loggerOf(r.Topic).Error("Delay metadata asks for more than MaxDelay: the record is delivered after MaxDelay",
				fmt.Errorf("it asks for %v", at.Format(time.RFC3339)), report.AddTo(fields()))
		}
		at = latest
	}
	if !s.delayed.Swap(true) {
		s.loggerOf(r.Topic).Info("Records are delivered later, as their delay metadata says: this is the first one", fields())
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

// ExponentialBackoff computes delays that grow from attempt to attempt, for
// SubscriberConfig.Backoff:
//
//	Backoff: ackpolicy.ExponentialBackoff{}.Delay,
//
// Each delay is drawn at random between zero and its limit ("full jitter"), so that
// records that failed together do not come back together; on average it is half the
// limit. The zero value is ready to use. With it, 5 deliveries take 0.75 s on average, 10
// take 26 s, 15 take 3 minutes and 20 take 5. To survive an outage, limit the age of a
// record (SubscriberConfig.MaxAge), not its deliveries.
type ExponentialBackoff struct {
	// Initial is the limit of the first delay. 0 means 100 ms.
	Initial time.Duration
	// Max is the highest limit. 0 means one minute.
	Max time.Duration
	// Multiplier is the factor by which the limit grows with each attempt. Any value
	// below 1, such as 0, means 2.
	Multiplier float64
	// NoJitter makes each delay exactly its limit.
	NoJitter bool
}

// Delay returns the delay after a failed attempt. The first attempt is 1.
func (b ExponentialBackoff) Delay(attempt int, _ error) time.Duration {
	if b.Initial <= 0 {
		b.Initial = 100 * time.Millisecond
	}
	if b.Max <= 0 {
		b.Max = time.Minute
	}
	if b.Multiplier < 1 {
		b.Multiplier = 2
	}
	limit := b.Max
	if grown := float64(b.Initial) * math.Pow(b.Multiplier, float64(max(0, attempt-1))); grown < float64(b.Max) {
		limit = time.Duration(grown)
	}
	if b.NoJitter {
		return limit
	}
	return rand.N(min(limit, math.MaxInt64-1) + 1)
}
