package consumer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/letters"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// Delivery is one handing out of a record. It is a part of the application's handle, and
// partition.Delivery is a part of it. The application calls its methods, from any goroutine;
// its slot fills it and runs its Task.
type Delivery struct {
	partition.Delivery[*sarama.ConsumerMessage, Task]
	claim     *Claim
	key       []byte
	timestamp stamp
	fate      atomic.Pointer[fate] // nil if a slot has taken it and not described it yet
}

// fate says whether a slot hands a delivery to the application, or somebody rejected it
// before; and, then, whether a verb has settled it, which is set after that.
type fate struct{ reject error }

var handedOut, settledByVerb = &fate{}, &fate{}

func (d *Delivery) isSettled() bool { return d.fate.Load() == settledByVerb }

// decided reports whether somebody has rejected the record, or it was handed out.
func (d *Delivery) decided() bool { return d.fate.Load() != nil }

// handOut gives the delivery to the application and returns nil, or returns why the record is
// rejected instead.
func (d *Delivery) handOut() error {
	if d.fate.CompareAndSwap(nil, handedOut) {
		return nil
	}
	return d.fate.Load().reject
}

// reject gives the record up: at once if the slot has handed it out, otherwise through the
// slot. It reports whether this call rejects the record.
func (d *Delivery) reject(reason error) bool {
	if d.fate.CompareAndSwap(nil, &fate{reject: reason}) {
		d.claim.pace.changed.Tell()
		return true
	}
	if f := d.fate.Load(); f != handedOut && f != settledByVerb {
		return true // another caller was faster
	}
	d.Handle.GiveUp(reason)
	d.claim.offers.Tell()
	return d.Status() == partition.Rejected
}

// Interrupted returns a channel that is closed when the drain begins, and when the record may
// have been Withdrawn: rejected, though nobody has taken its message.
func (d *Delivery) Interrupted() <-chan struct{} { return d.claim.offers.Next() }
func (d *Delivery) Withdrawn() bool              { return d.isSettled() }

// Taken takes note that the application has taken the message.
func (d *Delivery) Taken() { d.Begin(d.claim.clock.Load()) }

// Settle settles the delivery unless it is settled, see partition.Settle, and reports it to the Task.
func (d *Delivery) Settle(v partition.Verdict) partition.Status {
	c := d.claim
	now := int64(0)
	if v.Status == partition.Nacked { // nothing else waits for a time
		now = Now()
	}
	status, first, w := c.part.Settle(&d.Delivery, v, now)
	if status != partition.Pending {
		d.fate.Store(settledByVerb)
	}
	c.do(w)
	if first {
		d.tell(v)
	}
	return status
}

func (d *Delivery) tell(v partition.Verdict) { d.Handle.Settled(d.Offset(), d.Attempt(), v) }

// AckCumulative acks the record and every earlier one that no handler has.
func (d *Delivery) AckCumulative() partition.Status {
	c := d.claim
	v := partition.Verdict{Status: partition.Acked}
	status, first, others, w := c.part.AckCumulative(&d.Delivery)
	d.fate.Store(settledByVerb)
	c.do(w)
	for _, o := range others {
		d.Handle.Settled(o.Offset, o.Attempt, v)
	}
	if first {
		d.tell(v)
	}
	return status
}

// Status returns what became of the delivery.
func (d *Delivery) Status() partition.Status { return d.claim.part.Status(&d.Delivery) }

// Draining returns a channel that is closed when the drain of the partition begins. Whoever
// calls it may settle late, and a drain waits for that.
func (d *Delivery) Draining() <-chan struct{} {
	d.claim.base.late.Store(true)
	return d.claim.draining
}

// Held returns the record, at any time; nil if it is not in memory, or nobody needs it any more.
func (d *Delivery) Held() *sarama.ConsumerMessage {
	r, _ := d.claim.part.Record(&d.Delivery)
	return r
}

// Ask keeps, for the next deliveries of the record, which is about to be nacked, the delay that
// its message asks for. Asked returns it, or 0.
func (d *Delivery) Ask(delay time.Duration) { d.claim.part.Ask(&d.Delivery, int64(delay)) }
func (d *Delivery) Asked() time.Duration    { return time.Duration(d.claim.part.Asked(&d.Delivery)) }

// First returns when the record's first delivery began, as far as that is known, or 0.
func (d *Delivery) First() int64 { return d.claim.part.First(&d.Delivery) }

// Ended returns why the assignment ended, once the status is Revoked.
func (d *Delivery) Ended() error { return d.claim.ended }

// Context is cancelled, with ErrRevoked or ErrClosing as its cause, when the assignment ends.
func (d *Delivery) Context() context.Context { return d.claim.ctx }

// HasGroup reports whether offsets are committed.
func (d *Delivery) HasGroup() bool { return d.claim.source != nil || d.claim.detached }

// WaitStored returns once the broker stores that the record, which is settled, is.
func (d *Delivery) WaitStored(ctx context.Context) error {
	c := d.claim
	switch {
	case c.detached:
		return nil
	case c.source == nil:
		return ErrNoConsumerGroup
	}
	c.part.Want(&d.Delivery)
	return c.cause(c.source.Wait(ctx, d.Seq()))
}

// Confirm acks a record whose handler has not run, unless it is settled otherwise, and
// returns once that is stored, or when the assignment ends. sent reports, with an error,
// whether a commit that covers the record was sent. If not, the record is unsettled, and
// left to the next owner.
func (d *Delivery) Confirm() (sent bool, err error) {
	c := d.claim
	if c.detached {
		d.Settle(partition.Verdict{Status: partition.Acked})
		return false, nil
	}
	v := partition.Verdict{Status: partition.Acked, Confirm: true}
	first := false
	err = c.source.Confirm(d.Seq(), func() (bool, func()) {
		var w partition.Work
		var status partition.Status
		status, first, w = c.part.Settle(&d.Delivery, v, Now())
		if !first {
			c.part.Want(&d.Delivery)
		}
		return status == partition.Acked, func() { c.do(w) }
	}, func() { c.part.Unconfirm(d.Seq()) })
	var not *commit.NotStored
	sent = errors.As(err, &not) && not.Sent
	if first && (err == nil || sent) {
		d.fate.Store(settledByVerb)
		d.tell(v)
	}
	return sent, c.cause(err)
}

// cause returns the cause of the assignment's end if a wait ended because of it.
func (c *Claim) cause(err error) error {
	var not *commit.NotStored
	if !errors.As(err, &not) || errors.Is(err, ErrRevoked) || errors.Is(err, ErrClosing) {
		return err
	}
	return errors.Join(ErrRevoked, err) // fenced: the group has continued without us
}

// Letter starts to store the dead letter of a rejected delivery, whose verdict must have
// held it, and then releases it. send stores it, see letters.Letter. tell is called after
// each attempt.
func (d *Delivery) Letter(send func(ctx context.Context) error, tell func(err error, givenUp bool)) {
	key := d.key
	if d.claim.cfg.Key != nil {
		key = d.claim.part.OrderKey(&d.Delivery)
	}
	d.claim.letters.Add(letters.Letter{
		Key: key, Offset: d.Offset(), Send: send, Tell: tell,
		Release:  d.release,
		SetAside: func() { d.claim.part.SetAside(&d.Delivery) },
	})
}

// release settles a rejected record whose dead letter is stored or given up.
func (d *Delivery) release() {
	_, w := d.claim.part.Release(&d.Delivery)
	d.claim.do(w)
}

// LogAppendTime reports whether the broker gives the topic's records their timestamps.
func (d *Delivery) LogAppendTime() bool {
	if known, ok := d.claim.stamps.Load(d.claim.topic); ok {
		return known == "LogAppendTime"
	}
	stamps, err := d.claim.reader.Setting("message.timestamp.type")
	if err == nil && stamps == "" {
		stamps = "CreateTime" // the default, and by far the most common
	}
	if err == nil || errors.As(err, new(sarama.KError)) { // or we may not read it
		d.claim.stamps.Store(d.claim.topic, stamps)
	}
	return stamps == "LogAppendTime"
}

// Topic, Partition, Key and Timestamp return those of the record, at any time.
func (d *Delivery) Topic() string        { return d.claim.topic }
func (d *Delivery) Partition() int32     { return d.claim.partition }
func (d *Delivery) Key() []byte          { return d.key }
func (d *Delivery) Timestamp() time.Time { return d.timestamp.time() }

// describe copies what the delivery needs of its record, for as long as the application keeps
// the delivery.
func (d *Delivery) describe(c *record.Copies) {
	r := d.Record()
	d.key, d.timestamp = c.Bytes(r.Key), stampOf(r.Timestamp)
}

// stamp is a Kafka timestamp, in milliseconds: a third of a time.Time. sarama's zero time,
// where the producer wrote none, stays one.
type stamp int64

func stampOf(t time.Time) stamp { return stamp(t.UnixMilli()) }

func (s stamp) time() time.Time {
	t := time.UnixMilli(int64(s))
	if t.IsZero() {
		return time.Time{}
	}
	return t
}

// Original returns a copy of the record as it is in Kafka. With traced it comes from
// the broker, since a tracer writes into the headers of the one in memory, and so does
// one that memory holds no longer. The error may be reread.ErrGone.
func (d *Delivery) Original(ctx context.Context, traced bool) (*sarama.ConsumerMessage, error) {
	held, whole := d.claim.part.Record(&d.Delivery)
	if whole && !traced {
		return record.Detached(held), nil
	}
	read, err := d.claim.reader.Read(ctx.Done(), d.Offset())
	switch {
	case err == nil:
		return record.Detached(read), nil
	case whole && errors.Is(err, reread.ErrGone):
		return record.Detached(held), nil
	}
	return nil, err
}
