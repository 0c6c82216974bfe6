package ackpolicy

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Delivery is one handing out of a record to a handler. Its verbs Ack, Nack, NackAfter,
// Reject, AckSync and AckCumulative settle the record. They may be called from any
// goroutine, while the handler runs or after it has returned.
//
// The first settlement counts: a second equal one does nothing and returns true, a
// different one does nothing and returns false. A verb settles a delivery; it does not
// finish it. In a Router the delivery is finished when the handler has returned. In a plain
// Subscribe loop it is finished by msg.Ack or msg.Nack, which must be called also after a
// verb.
//
// On a message of another subscriber, a Delivery uses Watermill's own ack and nack.
//
// There is one per record: its size matters, see few.
type Delivery struct {
	kafka consumer.Delivery // of our subscriber's; filled by its slot
	sub   *subscription     // nil for a message of another subscriber
	began atomic.Int64      // where somebody asks, see timed; set before the message is sent

	ending   ending           // of the message's context; its lock guards what follows
	msg      *message.Message // set by Run, read by all
	batch    *Batch           // that the application has it in; nil: none
	entered  context.Context  // of the handler that ran last: it knows its name
	onAck    action           // of the plan, which the middleware leaves, and Run carries out
	onNack   action
	running  int8  // running handlers under our middleware
	depth    int8  // of the nested middleware that left the plan; 0 if none did
	first    bool  // acked by AckFirst; set by the middleware
	canceled bool  // set by Cancel
	stage    stage // of Run, which sets it; read by the drain
	own      uint8 // the number of its handler's settings, see handlerSettings
}

// plan says what to do when the Router acks or nacks. The middleware leaves it, since the
// handler has succeeded only once the Router has published what it produced.
type plan struct {
	onAck, onNack action
	err           error // the handler's, if it failed
}

// FromMessage returns the delivery of a message that a handler received. It returns false
// for a message of another subscriber that did not pass the middleware.
func FromMessage(msg *message.Message) (*Delivery, bool) {
	if msg == nil {
		return nil, false
	}
	return FromContext(msg.Context())
}

// FromContext is FromMessage for code that only has the context of the message.
func FromContext(ctx context.Context) (*Delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*Delivery)
	return d, ok
}

// foreign is not nil if sub is.
func (d *Delivery) foreign() *foreign { return d.ending.few.foreign }

// Ack acks the record: its offset may be committed. It returns true if the delivery is
// acked, now or before, and false if it was settled otherwise or its partition was released.
func (d *Delivery) Ack() bool {
	if d.sub == nil {
		return d.foreign().settle(d, Acked, nil)
	}
	d.byHand()
	return d.settle(partition.Verdict{Status: partition.Acked})
}

// Nack nacks the record: it is delivered again after Backoff (of the Middleware or the
// Subscriber) or, without one, kafka.SubscriberConfig.NackResendSleep. If MaxDeliveries or
// MaxAge is reached, the record is rejected instead. Nack returns true if the delivery is
// nacked or rejected for that reason, and false if it was settled otherwise or its partition
// was released.
func (d *Delivery) Nack() bool { return d.nack(noDelay, nil) }

// NackAfter is Nack with a delay, which starts now. The next delivery never starts before
// the handler of this one has returned.
func (d *Delivery) NackAfter(delay time.Duration) bool { return d.nack(max(0, delay), nil) }

func (d *Delivery) nack(delay time.Duration, err error) bool {
	if d.sub == nil {
		return d.foreign().settle(d, Nacked, err)
	}
	d.byHand()
	return d.settle(d.verdict(doNack, delay, err))
}

// Reject gives the record up: it is not delivered again. The record goes to the DeadLetter of
// the Middleware or the Subscriber, and its offset may be committed once that has stored it.
// Without a DeadLetter, the reason is logged as an error. The reason may be nil.
func (d *Delivery) Reject(reason error) bool {
	if d.sub == nil {
		return d.foreign().settle(d, Rejected, reason)
	}
	d.byHand()
	return d.settle(d.verdict(doReject, noDelay, reason))
}

// AckSync acks the record and returns nil once the broker stores that: an offset beyond the
// record, or its mark beside an earlier offset. It does not wait for older records, as long
// as the metadata of the commit has room for the mark.
//
// If ctx ends first, the record stays acked and AckSync returns the error of ctx. It returns
// ErrRevoked or ErrClosing if the partition was released, or is draining and its commit is
// refused for good; ErrNoConsumerGroup, after the ack, if nothing can be committed;
// ErrNotKafka, without an ack, on a message of another subscriber; and an error that names
// the status if the delivery was nacked or rejected.
func (d *Delivery) AckSync(ctx context.Context) error {
	if d.sub == nil {
		return ErrNotKafka
	}
	d.Ack()
	switch d.Status() {
	case Acked:
	case Revoked:
		return d.position(d.kafka.Ended())
	default:
		return d.position(fmt.Errorf("cannot ack: the delivery is %s already", d.Status()))
	}
	if err := d.kafka.WaitStored(ctx); err != nil {
		return d.position(err)
	}
	return nil
}

// AckCumulative acks the record, and every earlier one of its partition that is pending or
// waits after a nack. It returns what Ack returns.
func (d *Delivery) AckCumulative() bool {
	if d.sub == nil {
		return false
	}
	d.byHand()
	return d.kafka.AckCumulative() == partition.Acked
}

// Status returns the status of the delivery.
func (d *Delivery) Status() Status {
	if d.sub == nil {
		return d.foreign().state(d)
	}
	if d.sub.sub.config.acksFirst() {
		d.ackUnwrapped()
	}
	return Status(d.kafka.Status())
}

// Attempt returns the number of this delivery of the record; the first one is 1. The count
// continues after a restart and a revocation, as far as a commit recorded it: a crash may
// lose the last CommitInterval. It starts again if a member on watermill-kafka had the
// partition in between. On messages of another subscriber it is always 1.
func (d *Delivery) Attempt() int {
	if d.sub == nil {
		return 1
	}
	return d.kafka.Attempt()
}

// Draining returns a channel that is closed when the partition of the record begins to
// drain: on Close, or when it is revoked. An application that settles late should flush
// then: what it settles within DrainTimeout is still committed.
func (d *Delivery) Draining() <-chan struct{} {
	if d.sub == nil {
		return nil // never
	}
	return d.kafka.Draining()
}

// Topic returns the topic of the record.
func (d *Delivery) Topic() string {
	if d.sub == nil {
		return d.foreign().topic
	}
	return d.kafka.Topic()
}

// Group returns the consumer group of the Subscriber, or "" if it has none or the message is
// of another subscriber.
func (d *Delivery) Group() string {
	if d.sub == nil {
		return ""
	}
	return d.sub.sub.config.Kafka.ConsumerGroup
}

// Partition returns the partition of the record, or -1 for a message that is not from Kafka.
func (d *Delivery) Partition() int32 {
	if d.sub == nil {
		return d.foreign().partition
	}
	return d.kafka.Partition()
}

// Offset returns the offset of the record, or -1 for a message that is not from Kafka.
func (d *Delivery) Offset() int64 {
	if d.sub == nil {
		return d.foreign().offset
	}
	return d.kafka.Offset()
}

// Key returns the key of the record, nil if it has none. The caller must not modify it.
func (d *Delivery) Key() []byte {
	if d.sub == nil {
		return d.foreign().key
	}
	return d.kafka.Key()
}

// Timestamp returns the timestamp of the record.
func (d *Delivery) Timestamp() time.Time {
	if d.sub == nil {
		return d.foreign().timestamp
	}
	return d.kafka.Timestamp()
}

// byHand carries out an earlier msg.Ack or msg.Nack of the handler, not of the Router. Run
// would notice it only later, and the first settlement counts.
func (d *Delivery) byHand() {
	d.ending.mu.Lock()
	msg, p := d.msg, d.contract()
	router := d.depth > 0 && d.running == 0
	d.ending.mu.Unlock()
	if msg != nil && !router {
		d.settleAs(msg, p)
	}
	if d.sub.sub.config.acksFirst() {
		d.ackUnwrapped()
	}
}

// settleAs carries a plan out if msg.Ack or msg.Nack was called.
func (d *Delivery) settleAs(msg *message.Message, p plan) {
	select { // two selects of one case each are cheaper than one of two
	case <-msg.Acked():
		if p.onAck != doNothing {
			d.settle(d.verdict(p.onAck, noDelay, nil))
		}
	default:
	}
	select {
	case <-msg.Nacked():
		if p.onNack != doNothing {
			d.settle(d.verdict(p.onNack, noDelay, p.err))
		}
	default:
	}
}

// settle carries a verdict out. It reports whether the delivery is settled that way.
func (d *Delivery) settle(v partition.Verdict) bool { return d.kafka.Settle(v) == v.Status }

// fields returns the fields of a log line about the record.
func (d *Delivery) fields() watermill.LogFields {
	fields := watermill.LogFields{
		"topic": d.Topic(), "kafka_partition": d.Partition(), "kafka_partition_offset": d.Offset(), "attempt": d.Attempt(),
	}
	if d.sub == nil {
		fields["message_uuid"] = d.msg.UUID
	}
	return fields
}

// position adds the record's position to an error.
func (d *Delivery) position(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("topic %s, partition %d, offset %d: %w", d.Topic(), d.Partition(), d.Offset(), err)
}

// enter is called when a handler begins. It returns how deep the handler is nested in our
// middlewares, and whether the record was acked before it. ok is false, and nothing is
// recorded, if the delivery belongs to another message: one that a handler created inherits
// the delivery with the context.
func (d *Delivery) enter(msg *message.Message, ctx context.Context, m *guarded) (depth int, acked, ok bool) {
	var first *string
	if d.sub != nil && d.sub.handler.Load() == nil {
		name := message.HandlerNameFromCtx(ctx)
		first = &name
	}
	d.ending.mu.Lock()
	defer d.ending.mu.Unlock()
	if d.msg != msg {
		return 0, false, false
	}
	if first != nil {
		d.sub.handler.Store(first)
	}
	acked = d.first
	d.entered = ctx
	if d.running++; d.running == 1 {
		d.depth, d.own = 0, noSettings
	}
	if m != nil && m.settings && d.sub != nil {
		d.own = d.sub.settingsOf(m, d.own)
		if m.MaxAge > 0 {
			d.began.CompareAndSwap(0, consumer.Now())
		}
	}
	return int(d.running), acked, true
}

// handler returns the name of the last handler that had the delivery.
func (d *Delivery) handler() string {
	d.ending.mu.Lock()
	b, entered := d.batch, d.entered
	d.ending.mu.Unlock()
	if b != nil {
		return b.handlerName()
	}
	if entered == nil {
		return "" // no handler ran under our middleware
	}
	return message.HandlerNameFromCtx(entered)
}

// leave is called when the handler has returned, with the plan for the Router's ack or nack.
// The plan of the innermost middleware counts: leave reports whether this one does.
func (d *Delivery) leave(depth int, p plan) (counts bool) {
	d.ending.mu.Lock()
	defer d.ending.mu.Unlock()
	if depth >= int(d.depth) {
		d.depth, counts = int8(depth), true
		d.onAck, d.onNack = p.onAck, p.onNack
		if d.ending.few != nil || p.err != nil {
			d.ending.rare().err = p.err
		}
	}
	if d.running--; d.running == 0 {
		d.release()
	}
	return counts
}

// plan returns the plan that the middleware left. The caller holds mu.
func (d *Delivery) plan() plan {
	p := plan{onAck: d.onAck, onNack: d.onNack}
	if few := d.ending.few; few != nil {
		p.err = few.err
	}
	return p
}

// release ends Run's wait for the handler's end, if it waits. The caller holds mu.
func (d *Delivery) release() {
	if few := d.ending.few; few != nil && few.returned != nil {
		close(few.returned)
		few.returned = nil
	}
}
