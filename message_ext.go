package ackpolicy

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Status is the fate of a delivery.
type Status uint8

const (
	Pending  Status = iota // not settled
	Acked                  // its offset may be committed
	Nacked                 // it will be delivered again
	Rejected               // it will not be delivered again
	Revoked                // no longer ours: revoked or closed before it was settled
)

var statusNames = [...]string{"pending", "acked", "nacked", "rejected", "revoked"}

// String returns the status in lower case.
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

// Delivery is one handing out of a record to a handler. Its verbs settle the
// record, from any goroutine, during the handler or after it.
//
// The first settlement wins: a second equal one is a no-op that returns true, a
// contradicting one returns false and changes nothing. Verbs settle, they do
// not finish: in a Router the end of the handler does that, in a plain Subscribe
// loop msg.Ack or msg.Nack, which has to be called after a verb too.
//
// On a message of another subscriber a Delivery works on Watermill's own ack.
type Delivery struct {
	kafka   consumer.Delivery // of our subscriber's; filled by its slot
	sub     *subscription     // nil: the subscriber is not ours
	foreign *foreign          // set where sub is nil
	ctx     deliveryContext   // of the message; has a lock of its own

	began atomic.Int64 // where somebody asks, see timed; set before the message is sent

	mu       sync.Mutex       // guards what follows; no other lock is taken under it
	msg      *message.Message // set by Run, read by all
	returned chan struct{}    // closed by the handler's end, or by Cancel: Run waits for that
	plan     plan             // left by the middleware, carried out by Run
	entered  context.Context  // of the handler that ran last: it knows its name
	running  int16            // handlers under our middleware that run now
	depth    int16            // of the nested middleware that left the plan; 0: none did
	first    bool             // acked by AckFirst; set by the middleware
	canceled bool             // set by Cancel
	stage    stage            // of Run, which sets it; read by the drain
}

// plan is what the middleware leaves for the Router's signal: success is known
// only when the Router acks, after it published what the handler produced.
type plan struct {
	onAck, onNack action
	err           error // the handler's, if it failed
}

// FromMessage returns the delivery of a message that a handler received. It is
// false for a message of another subscriber that did not pass the middleware.
func FromMessage(msg *message.Message) (*Delivery, bool) {
	if msg == nil {
		return nil, false
	}
	return FromContext(msg.Context())
}

// FromContext is FromMessage for code that has only the message's context.
func FromContext(ctx context.Context) (*Delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*Delivery)
	return d, ok
}

// Ack acks the record: its offset may be committed. It returns true if the
// delivery is acked, now or before, and false if it was settled otherwise or is
// no longer ours.
func (d *Delivery) Ack() bool {
	if d.sub == nil {
		return d.foreign.settle(d, Acked, nil)
	}
	d.byHand()
	return d.settle(partition.Verdict{Status: partition.Acked})
}

// Nack has the record delivered again, unless MaxDeliveries or MaxAge is reached: then
// it is rejected. The next delivery comes after SubscriberConfig.Backoff or, without
// one, kafka.SubscriberConfig.NackResendSleep.
func (d *Delivery) Nack() bool { return d.nack(noDelay, nil) }

// NackAfter is Nack with the delay before the next delivery, counted from now.
// The next delivery never starts before this one's handler returned.
func (d *Delivery) NackAfter(delay time.Duration) bool { return d.nack(max(0, delay), nil) }

func (d *Delivery) nack(delay time.Duration, err error) bool {
	if d.sub == nil {
		return d.foreign.settle(d, Nacked, err)
	}
	d.byHand()
	return d.settle(d.verdict(doNack, delay, err))
}

// Reject gives the record up: it will not be delivered again. The reason may be
// nil. The record goes to SubscriberConfig.DeadLetter, and its offset may be
// committed once that has stored it; without one the reason is logged at error level.
func (d *Delivery) Reject(reason error) bool {
	if d.sub == nil {
		return d.foreign.settle(d, Rejected, reason)
	}
	d.byHand()
	return d.settle(d.verdict(doReject, noDelay, reason))
}

// AckSync acks the record and returns once the broker stores that: an offset beyond it,
// or its mark beside an earlier offset. It waits for no older record, as long as the
// commit's metadata has room for the mark. Where ctx ends first, the record stays acked
// and ctx's error is returned. Other errors: one that names the status on a nacked or
// rejected delivery; ErrRevoked or ErrClosing where the record is no longer ours, or its
// partition is draining and the commit is refused for good; ErrNoConsumerGroup, after the
// ack, where nothing can be committed; ErrNotKafka, without an ack, on a message of another subscriber.
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

// AckCumulative acks the record and, with it, every earlier record of its
// partition that was delivered and whose handler does not run now. It returns what Ack returns.
func (d *Delivery) AckCumulative() bool {
	if d.sub == nil {
		return false
	}
	d.byHand()
	return d.kafka.AckCumulative() == partition.Acked
}

// Status returns what became of the delivery.
func (d *Delivery) Status() Status {
	if d.sub == nil {
		return d.foreign.state(d)
	}
	return Status(d.kafka.Status())
}

// Attempt counts the deliveries of the record: 1 on the first. It goes on after a
// restart, and where the partition was revoked meanwhile, as far as a commit told of
// it: a crash may forget the last CommitInterval. A member on watermill-kafka that had
// the partition in between forgets all of it. On messages of another subscriber it is
// always 1.
func (d *Delivery) Attempt() int {
	if d.sub == nil {
		return 1
	}
	return d.kafka.Attempt()
}

// Draining is closed when the record's partition begins to drain: at Close, or
// when it is revoked. An application that settles late flushes on it: what it
// settles within DrainTimeout is still committed.
func (d *Delivery) Draining() <-chan struct{} {
	if d.sub == nil {
		return nil // never
	}
	return d.kafka.Draining()
}

// Topic, Partition, Offset, Key and Timestamp are the record's. Where the message
// does not come from Kafka, Partition and Offset are -1. Do not modify the key.
func (d *Delivery) Topic() string {
	if d.sub == nil {
		return d.foreign.topic
	}
	return d.kafka.Topic()
}

// Group is the consumer group of the Subscriber; "" if it has none or is not ours.
func (d *Delivery) Group() string {
	if d.sub == nil {
		return ""
	}
	return d.sub.sub.config.Kafka.ConsumerGroup
}

// Partition is the record's partition.
func (d *Delivery) Partition() int32 {
	if d.sub == nil {
		return d.foreign.partition
	}
	return d.kafka.Partition()
}

// Offset is the record's offset.
func (d *Delivery) Offset() int64 {
	if d.sub == nil {
		return d.foreign.offset
	}
	return d.kafka.Offset()
}

// Key is the record's key; nil means that it has none.
func (d *Delivery) Key() []byte {
	if d.sub == nil {
		return d.foreign.key
	}
	return d.kafka.Key()
}

// Timestamp is the record's timestamp.
func (d *Delivery) Timestamp() time.Time {
	if d.sub == nil {
		return d.foreign.timestamp
	}
	return d.kafka.Timestamp()
}

// byHand settles what msg.Ack or msg.Nack has settled already, unless that was
// the Router: Run would notice it later, and the first settlement wins.
func (d *Delivery) byHand() {
	d.mu.Lock()
	msg := d.msg
	router := d.depth > 0 && d.running == 0
	d.mu.Unlock()
	if msg != nil && !router {
		d.settleAs(msg)
	}
}

// settleAs does what the message's own ack or nack says.
func (d *Delivery) settleAs(msg *message.Message) {
	select { // of one case each, which costs next to nothing
	case <-msg.Acked():
		d.settle(d.verdict(doAck, noDelay, nil))
	default:
	}
	select {
	case <-msg.Nacked():
		d.settle(d.verdict(doNack, noDelay, nil))
	default:
	}
}

// settle carries a verdict out; it reports whether it holds.
func (d *Delivery) settle(v partition.Verdict) bool { return d.kafka.Settle(v) == v.Status }

// fields are what a log line says of the record.
func (d *Delivery) fields() watermill.LogFields {
	fields := watermill.LogFields{
		"topic": d.Topic(), "kafka_partition": d.Partition(), "kafka_partition_offset": d.Offset(), "attempt": d.Attempt(),
	}
	if d.sub == nil {
		fields["message_uuid"] = d.msg.UUID
	}
	return fields
}

// stopped returns ErrRevoked or ErrClosing once the handler's context has ended for
// that, and nil before.
func (d *Delivery) stopped() error {
	if d.sub == nil {
		return nil
	}
	err := d.ctx.Err()
	if _, ok := err.(*consumer.Stop); !ok {
		return nil
	}
	return err
}

// asStopped makes a signal of the error of a handler that was stopped by us. Any
// other error is returned as it is.
func (d *Delivery) asStopped(err error) error {
	cause := d.stopped()
	if cause == nil || err == nil || IsSignal(err) {
		return err
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// position adds to an error which record it is about.
func (d *Delivery) position(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("topic %s, partition %d, offset %d: %w", d.Topic(), d.Partition(), d.Offset(), err)
}

// enter tells that a handler begins, and returns how deep it lies in nested
// middlewares of ours, and whether one around it has acked already. ok is false,
// and nothing is entered, if the delivery is not this message's: one that a handler
// made inherits the delivery with the context.
func (d *Delivery) enter(msg *message.Message, ctx context.Context) (depth int, acked, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.msg != msg {
		return 0, false, false
	}
	if d.sub != nil && d.sub.handler.Load() == nil {
		name := message.HandlerNameFromCtx(ctx)
		d.sub.handler.Store(&name)
	}
	acked = d.first && d.running > 0
	d.entered = ctx
	if d.running++; d.running == 1 {
		d.depth = 0
	}
	return int(d.running), acked, true
}

// handlerName returns the name of the handler that ran last under a middleware of ours.
func (s *subscription) handlerName() string {
	if name := s.handler.Load(); name != nil {
		return *name
	}
	return ""
}

// handler returns the name of the handler that ran last.
func (d *Delivery) handler() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.entered == nil {
		return "" // none under a middleware of ours
	}
	return message.HandlerNameFromCtx(d.entered)
}

// leave tells that the handler returned, and what the Router's signal then
// means. The innermost middleware's plan counts: it reports whether this one does.
func (d *Delivery) leave(depth int, p plan) (counts bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if depth >= int(d.depth) {
		d.depth, d.plan, counts = int16(depth), p, true
	}
	if d.running--; d.running == 0 && d.returned != nil {
		close(d.returned)
		d.returned = nil
	}
	return counts
}
