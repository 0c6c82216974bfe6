package ackpolicy

import (
	"time"

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
		d.mu.Lock()
		msg := d.msg
		d.mu.Unlock()
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
	if first := d.kafka.First(); first != 0 {
		return first
	}
	if d.sub.maxAge(own) > 0 {
		return d.began.Load()
	}
	return 0
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
