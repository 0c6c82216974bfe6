package ackpolicy

import (
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// verdict turns an action into what the partition understands.
func (d *Delivery) verdict(a action, delay time.Duration, err error) partition.Verdict {
	switch a {
	case doAck:
		return partition.Verdict{Status: partition.Acked, Reason: err}
	case doReject:
		return partition.Verdict{Status: partition.Rejected, Hold: d.sub.deadLetter != nil, Reason: err}
	case doNack:
		if d.spent() {
			return d.verdict(doReject, noDelay, err)
		}
		if delay == noDelay {
			delay = d.sub.backoff(d, err)
		}
		return partition.Verdict{Status: partition.Nacked, DueAt: dueIn(delay), First: d.firstBegan(), Reason: err}
	}
	return partition.Verdict{Reason: err}
}

// spent reports whether a nack becomes a reject.
func (d *Delivery) spent() bool {
	c, most := &d.sub.sub.config, d.sub.sub.maxDeliveries.Load()
	return most > 0 && int64(d.Attempt()) >= most ||
		c.MaxAge > 0 && consumer.Now()-d.firstBegan() >= int64(c.MaxAge)
}

// firstBegan is when the record's first delivery began; 0 without MaxAge, where nobody asks.
func (d *Delivery) firstBegan() int64 {
	if first := d.kafka.First(); first != 0 {
		return first
	}
	if d.sub.sub.config.MaxAge > 0 {
		return d.began.Load()
	}
	return 0
}

// timed reports whether somebody asks when deliveries began.
func (s *subscription) timed() bool {
	return s.sub.config.MaxAge > 0 || s.sub.config.Hooks.Settled != nil
}

// dueIn returns when a delay is over; a delay may be longer than time goes on.
func dueIn(delay time.Duration) int64 {
	const century = 100 * 365 * 24 * time.Hour
	return consumer.Now() + int64(min(delay, century))
}
