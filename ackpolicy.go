package ackpolicy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Policy says what happens to a record when its handler ends. The zero value is AckFirst.
//
// The policies are those of FastStream (its page "Consuming Acknowledgements").
// docs/semantics.md has the complete table, and says where the two differ.
type Policy uint8

const (
	// AckFirst acks before the handler runs. What fails afterwards is lost.
	AckFirst Policy = iota
	// Ack acks when the handler has ended, whether it succeeded or failed.
	Ack
	// RejectOnError acks on success, and rejects on an error: the record is given up.
	RejectOnError
	// NackOnError acks on success, and nacks on an error: the record is delivered again.
	NackOnError
	// Manual does nothing: the handler settles the record through its Delivery.
	Manual
)

var policyNames = [...]string{"ack_first", "ack", "reject_on_error", "nack_on_error", "manual"}

func (p Policy) valid() bool { return int(p) < len(policyNames) }

// String returns the name of the policy, such as "nack_on_error".
func (p Policy) String() string { return nameOf("Policy", policyNames[:], p) }

// action is what to do with a record.
type action uint8

const (
	doNothing action = iota
	doAck
	doNack
	doReject
)

// outcome is how a handler ended.
type outcome uint8

const (
	succeeded       outcome = iota // it returned nil, and what it produced was published
	failed                         // it returned an error or panicked, or what it produced could not be published
	signalledAck                   // ErrAck, returned or panicked
	signalledNack                  // ErrNack, NackAfter
	signalledReject                // ErrReject, RejectWith
)

// decide is the table of policies and outcomes. An earlier settlement takes precedence
// over it, and so does the end of the assignment.
func decide(p Policy, o outcome) action {
	if p == AckFirst {
		return doNothing // it was acked before the handler ran
	}
	switch o {
	case signalledAck:
		return doAck
	case signalledNack:
		return doNack
	case signalledReject:
		return doReject
	}
	switch {
	case p == Manual:
		return doNothing
	case o == succeeded, p == Ack:
		return doAck
	case p == RejectOnError:
		return doReject
	}
	return doNack
}

// Status is the fate of a delivery.
type Status uint8

const (
	Pending  Status = iota // not settled
	Acked                  // its offset may be committed
	Nacked                 // it will be delivered again
	Rejected               // it will not be delivered again
	Revoked                // the partition was revoked, or the subscriber closed, before it was settled
)

var statusNames = [...]string{"pending", "acked", "nacked", "rejected", "revoked"}

// String returns the status in lower case.
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

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

// ackTaken acks a record whose message was taken, if SubscriberConfig.Policy is AckFirst.
func (d *Delivery) ackTaken(msg *message.Message) {
	if d.sub.noMiddleware(msg) {
		d.ackUnwrapped()
	}
}

// noMiddleware reports whether a message that was taken has no Middleware of ours, which would
// take precedence. That is not known before a message has reached one. So it waits for the end of
// the handlers that start in the first second, or the end of that second.
func (s *subscription) noMiddleware(taken *message.Message) bool {
	if s.handler.Load() != nil {
		return false
	}
	now := consumer.Now()
	s.firstTaken.CompareAndSwap(0, now)
	if wait := undecided - time.Duration(now-s.firstTaken.Load()); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-taken.Acked():
			return false
		case <-taken.Nacked():
			return false
		}
	}
	return true
}

// ackUnwrapped acks the record unless a Middleware decides.
func (d *Delivery) ackUnwrapped() {
	d.ending.mu.Lock()
	wrapped := d.entered != nil || d.sub.handler.Load() != nil
	if !wrapped {
		d.first = true
	}
	d.ending.mu.Unlock()
	if !wrapped {
		d.settle(partition.Verdict{Status: partition.Acked})
	}
}

// Guarantees returns a text that says what this configuration guarantees.
func (s *Subscriber) Guarantees() string {
	c := &s.config
	parts := []string{"under every policy but AckFirst: at least once"}
	if c.Transactions != nil {
		parts = []string{
			"what handlers publish through Subscriber.Publisher appears exactly once, to readers with read_committed, in one transaction with offsets and dead letters, if all members of the group have Transactions",
			"handlers run at least once",
		}
		if slices.ContainsFunc(s.live(), func(of *subscription) bool { return !of.running.Mixed().IsZero() }) {
			parts = append(parts, "NOW the consumer group has a member without Transactions: output may appear twice")
		}
	}
	if c.Policy != nil {
		parts = append(parts, "the policy of handlers without a middleware is "+c.Policy.String())
	}
	switch c.Ordering {
	case OrderByKey:
		parts = append(parts, "order per key")
	case Unordered:
		parts = append(parts, "no order")
	default:
		parts = append(parts, "order per partition")
	}
	group := c.Kafka.ConsumerGroup != ""
	switch {
	case !group:
		parts = append(parts, "no consumer group: nothing is committed, a restart begins at the configured position")
	case c.MaxUncommitted == Unlimited:
		parts = append(parts, "any number of records per partition replayed after a crash")
	default:
		parts = append(parts, fmt.Sprintf("at most %d records per partition replayed after a crash", c.MaxUncommitted))
	}
	if group && c.Transactions != nil {
		parts = append(parts, fmt.Sprintf("a process that dies may delay readers and its partitions for %v and up to 10s more", c.Transactions.Timeout), "AckFirst is refused")
	} else if group {
		parts = append(parts,
			fmt.Sprintf("none replayed after Close, a revocation or a restart whose handlers finish within %v, as far as the metadata of a commit has room", c.DrainTimeout),
			"under AckFirst: at most once, except for acks that a crash leaves uncommitted; with ConfirmFirst: at most once")
	} else {
		parts = append(parts, "under AckFirst: at most once per subscription")
	}
	return strings.Join(parts, "; ")
}
