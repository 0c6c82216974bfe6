package ackpolicy

import (
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// errUnexplained is the reason if SubscriberConfig.Policy says what becomes of a nacked message.
var errUnexplained = errors.New("nacked: the handler failed, or what it produced could not be published (only the middleware knows the error)")

// watermills is Watermill's own contract.
var watermills = plan{onAck: doAck, onNack: doNack}

// contract returns what msg.Ack and msg.Nack mean where no middleware decides.
func (c *SubscriberConfig) contract() plan {
	switch {
	case c.Policy == nil, *c.Policy == NackOnError:
		return watermills
	case c.acksFirst(): // at the latest; see ackTaken
		return plan{onAck: doAck, onNack: doAck, err: errUnexplained}
	}
	return plan{onAck: decide(*c.Policy, succeeded), onNack: decide(*c.Policy, failed), err: errUnexplained}
}

func (c *SubscriberConfig) acksFirst() bool { return c.Policy != nil && *c.Policy == AckFirst }

// contract returns what msg.Ack and msg.Nack mean now, unless the middleware left a plan. The
// caller holds mu.
func (d *Delivery) contract() plan {
	if d.entered != nil || d.batch != nil && d.batch.wrapped.Load() {
		return watermills
	}
	return d.sub.sub.contract
}

// undecided is how long a subscription waits for the first message to reach a Middleware.
const undecided = time.Second

// ackTaken acks a record whose message was taken, if SubscriberConfig.Policy is AckFirst. A
// Middleware takes precedence, and whether there is one is not known before a message has reached
// it. So the acks of the first second wait for the handler's end, or the end of the second.
func (d *Delivery) ackTaken(msg *message.Message) {
	if d.sub.handler.Load() != nil {
		return
	}
	now := consumer.Now()
	d.sub.firstTaken.CompareAndSwap(0, now)
	if wait := undecided - time.Duration(now-d.sub.firstTaken.Load()); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-msg.Acked():
			return
		case <-msg.Nacked():
			return
		}
	}
	d.ackUnwrapped()
}

// ackUnwrapped acks the record unless a Middleware decides.
func (d *Delivery) ackUnwrapped() {
	d.mu.Lock()
	wrapped := d.entered != nil || d.sub.handler.Load() != nil
	if !wrapped {
		d.first = true
	}
	d.mu.Unlock()
	if !wrapped {
		d.settle(partition.Verdict{Status: partition.Acked})
	}
}
