package ackpolicy

import (
	"context"
	"errors"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

// task is the side of a Delivery that is the consumer's to call, and nobody else's: decode
// the record, send the message, wait for the Router, return what the plan says.
type task Delivery

// stage is where a Run is, so that a drain knows what it may leave behind.
type stage uint8

const (
	nowhere stage = iota // or decoding by code of our own
	decoding
	offering // or with the application
	refused  // what is to become of it is being decided
	settling // the Router's signal is being carried out
)

// calls names the application code that Run waits for at each stage.
var calls = [...]string{
	decoding: "Kafka.Unmarshaler or a Consumer.Interceptor", refused: "Backoff", settling: "Backoff",
}

func (s *subscription) newDelivery() *consumer.Delivery {
	d := &Delivery{sub: s}
	d.ctx.d, d.kafka.Task = d, (*task)(d)
	return &d.kafka
}

// Run implements consumer.Task.
func (t *task) Run(stop <-chan struct{}, copies *record.Copies) (v partition.Verdict, sent bool) {
	d := (*Delivery)(t)
	if !d.sub.defaultMarshaler || len(d.sub.interceptors.all) > 0 {
		d.at(decoding)
	}
	msg, err := d.sub.decode(d.kafka.Record(), copies)
	d.mu.Lock()
	d.msg = msg
	canceled := d.canceled
	switch {
	case canceled: // the output may be closed by now
		d.stage = nowhere
	case err != nil:
		d.stage = refused
	default:
		d.stage = offering
	}
	d.mu.Unlock()
	switch {
	case canceled:
		return partition.Verdict{}, true
	case err != nil:
		return d.sub.undecodable(d, err), true
	case d.sub.undecoded.some.Load():
		d.sub.decoded(d)
	}
	if d.sub.timed() {
		d.began.Store(consumer.Now())
	}
	msg.SetContext(&d.ctx)
	select { // to whoever waits for a message already: a select of one case is the cheapest
	case d.sub.output <- msg:
	default:
		select {
		case d.sub.output <- msg:
		case <-stop:
			d.at(nowhere)
			d.ctx.end(context.Canceled)
			return partition.Verdict{}, false
		}
	}
	d.kafka.Taken()
	select { // a third case, for the drain, would cost a tenth of the speed: Cancel nacks the message instead
	case <-msg.Acked():
		return d.finish(true), true
	case <-msg.Nacked():
		return d.finish(false), true
	}
}

// Gone implements consumer.Task: the record cannot be had any more, so it is given up.
func (t *task) Gone(err error) {
	d := (*Delivery)(t)
	d.sub.undecoded.over(d.Partition(), d.Offset())
	d.settle(partition.Verdict{Status: partition.Rejected, Reason: err}) // there is nothing to put into a letter
}

// GiveUp implements consumer.Task.
func (t *task) GiveUp(reason error) {
	d := (*Delivery)(t)
	d.sub.undecoded.over(d.Partition(), d.Offset())
	v := d.verdict(doReject, noDelay, reason)
	v.ByHand = true
	d.settle(v)
}

// finish returns what the Router's ack or nack means.
func (d *Delivery) finish(acked bool) partition.Verdict {
	d.mu.Lock()
	d.stage = settling
	if d.canceled {
		d.mu.Unlock()
		return partition.Verdict{} // nothing settles any more
	}
	p := plan{onAck: doAck, onNack: doNack} // Watermill's own contract
	early := d.running > 0
	if early {
		// Acked or nacked by hand inside the handler, or by InstantAck: that
		// settles, but the delivery is not finished before the handler returned.
		d.returned = make(chan struct{})
	} else if d.depth > 0 {
		p = d.plan
		if !acked && p.err == nil {
			p.err = errNacked
		}
	}
	returned := d.returned
	d.mu.Unlock()
	a := p.onNack
	if acked {
		a = p.onAck
	}
	v := d.verdict(a, noDelay, p.err)
	if v.Status == partition.Pending {
		d.mu.Lock()
		d.msg = nil // it may stay pending for long: its payload must not stay with it
		d.mu.Unlock()
		return v
	}
	if early {
		d.settle(v)
		<-returned
		return partition.Verdict{}
	}
	if d.sub.quiet(v.Status) {
		return v
	}
	d.settle(v)
	return partition.Verdict{}
}

// errNacked is the reason where the handler itself reported none.
var errNacked = errors.New("nacked: what the handler produced could not be published, or an outer middleware failed")

// Settled implements consumer.Task.
func (t *task) Settled(offset int64, attempt int, v partition.Verdict) {
	d := (*Delivery)(t)
	d.sub.settled(d, offset, attempt, v)
	if v.Hold {
		d.sub.sendLetter(d, v.Reason)
	}
}

// Finished implements consumer.Task.
func (t *task) Finished() { t.ctx.end(context.Canceled) }

// Cancel implements consumer.Task.
func (t *task) Cancel() {
	t.mu.Lock()
	t.canceled = true
	msg := t.msg
	if t.returned != nil {
		close(t.returned)
		t.returned = nil
	}
	t.mu.Unlock()
	t.ctx.end(t.kafka.Ended())
	if msg != nil {
		msg.Nack() // wakes Run; settles nothing, the partition is closed
	}
}

func (d *Delivery) at(s stage) {
	d.mu.Lock()
	d.stage = s
	d.mu.Unlock()
}

// UnderWay implements consumer.Task.
func (t *task) UnderWay() (call string, offers bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return calls[t.stage], t.stage == offering
}

// decode makes a message of a record, for each delivery from the record as it came and
// with memory of its own.
func (s *subscription) decode(r *sarama.ConsumerMessage, copies *record.Copies) (msg *message.Message, err error) {
	if len(s.interceptors.all) > 0 {
		r = copies.Record(r)
		s.interceptors.intercept(r, s.logger)
		if s.defaultMarshaler {
			return decodeDefault(r, r.Value), nil
		}
	} else if s.defaultMarshaler {
		return decodeDefault(r, copies.Bytes(r.Value)), nil
	} else {
		r = copies.Record(r)
	}
	partition, offset := r.Partition, r.Offset
	if broken := guard("the unmarshaler", func() {
		msg, err = s.sub.config.Kafka.Unmarshaler.Unmarshal(r)
	}, func(err error) {
		s.logger.Error("Unmarshal failed: the record is tried again", err, watermill.LogFields{
			"kafka_partition": partition, "kafka_partition_offset": offset,
		})
	}); broken != nil {
		return nil, broken
	}
	if err == nil && msg == nil {
		err = errors.New("the unmarshaler returned neither a message nor an error")
	}
	return msg, err
}

// decodeDefault is kafka.DefaultMarshaler's Unmarshal with one map less.
func decodeDefault(record *sarama.ConsumerMessage, payload []byte) *message.Message {
	msg := message.NewMessage("", payload)
	for _, h := range record.Headers {
		if string(h.Key) == kafka.UUIDHeaderKey {
			msg.UUID = string(h.Value)
		} else {
			msg.Metadata.Set(string(h.Key), string(h.Value))
		}
	}
	return msg
}
