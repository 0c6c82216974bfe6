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

// task is the side of a Delivery that only the consumer calls: decode the record, send the
// message, wait for the Router, return what the plan says.
type task Delivery

// stage says how far Run is, so that a drain knows what it may leave behind.
type stage uint8

const (
	nowhere stage = iota // or decoding with our own code
	decoding
	offering // or with the application
	refused  // deciding what happens to a record that cannot be decoded
	settling // carrying out the plan
)

// calls has the names of the application code that Run waits for at each stage.
var calls = [...]string{
	decoding: "Kafka.Unmarshaler or a Consumer.Interceptor", refused: "Backoff", settling: "Backoff",
}

func (s *subscription) newDelivery() *consumer.Delivery {
	d := &Delivery{}
	s.initDelivery(d)
	return &d.kafka
}

func (s *subscription) initDelivery(d *Delivery) {
	d.sub = s
	d.kafka.Handle = (*task)(d)
}

// Run implements consumer.Task.
func (t *task) Run(stop <-chan struct{}, copies *record.Copies) (v *partition.Verdict, sent bool) {
	d := (*Delivery)(t)
	if !d.sub.defaultMarshaler || len(d.sub.interceptors.all) > 0 {
		d.at(decoding)
	}
	msg, err := d.sub.decode(d.kafka.Record(), copies)
	if err == nil {
		err = (*deliveryContext)(d).adopt(msg)
	}
	d.ending.mu.Lock()
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
	d.ending.mu.Unlock()
	switch {
	case canceled:
		return nil, true
	case err != nil:
		return d.sub.undecodable(d, err), true
	case d.sub.undecoded.some.Load():
		d.sub.decoded(d)
	}
	if d.sub.timed() {
		d.began.Store(consumer.Now())
	}
	d.remind(msg)
	select { // if somebody waits for a message already: a select of one case is the cheapest
	case d.sub.output <- msg:
	default:
		if !d.offer(msg, stop) {
			d.at(nowhere)
			d.ending.end(context.Canceled)
			return nil, d.kafka.Withdrawn() // then it is settled, and finished
		}
	}
	d.kafka.Taken()
	if d.sub.sub.config.acksFirst() {
		d.ackTaken(msg)
	}
	select { // a third case, for the drain, would cost a tenth of the throughput; Cancel nacks the message instead
	case <-msg.Acked():
		return d.finish(true), true
	case <-msg.Nacked():
		return d.finish(false), true
	}
}

// offer sends the message, unless stop is closed, or the record is rejected by hand before.
func (d *Delivery) offer(msg *message.Message, stop <-chan struct{}) (sent bool) {
	for {
		interrupted := d.kafka.Interrupted()
		select {
		case <-stop:
			return false
		default:
		}
		if d.kafka.Withdrawn() {
			return false
		}
		select {
		case d.sub.output <- msg:
			return true
		case <-interrupted:
		}
	}
}

// Delivery implements consumer.Task.
func (t *task) Delivery() *consumer.Delivery { return &t.kafka }

// Gone implements consumer.Task: the record is no longer in Kafka, so it is given up.
func (t *task) Gone(err error) {
	d := (*Delivery)(t)
	d.sub.undecoded.over(d.Topic(), d.Partition(), d.Offset())
	d.settle(partition.Verdict{Status: partition.Rejected, Reason: err}) // there is no content for a letter
}

// GiveUp implements consumer.Task.
func (t *task) GiveUp(reason error) {
	d := (*Delivery)(t)
	d.sub.undecoded.over(d.Topic(), d.Partition(), d.Offset())
	v := d.verdict(doReject, noDelay, reason)
	v.ByHand = true
	d.settle(v)
}

// plainAck is the verdict of most records. It is shared, so nobody may change it.
var plainAck = &partition.Verdict{Status: partition.Acked}

// finish settles the record as the Router's ack or nack says, or returns the verdict that does,
// see consumer.Task.
func (d *Delivery) finish(acked bool) *partition.Verdict {
	d.ending.mu.Lock()
	d.stage = settling
	if d.canceled {
		d.ending.mu.Unlock()
		return nil // nothing can be settled any more
	}
	p := d.contract()
	if acked {
		p.err = nil
	}
	early := d.running > 0
	var returned <-chan struct{}
	if early {
		// Acked or nacked by the handler itself, or by InstantAck. That settles the record,
		// but the delivery is not finished before the handler has returned.
		few := d.ending.rare()
		few.returned = make(chan struct{})
		returned = few.returned
	} else if d.depth > 0 {
		p = d.plan()
		if !acked && p.err == nil {
			p.err = errNacked
		}
	}
	msg := d.msg
	d.ending.mu.Unlock()
	a := p.onNack
	if acked {
		a = p.onAck
	}
	if a == doAck && !early && d.sub.quiet(partition.Acked) {
		return plainAck
	}
	var v partition.Verdict
	if early { // the handler may be writing the metadata
		v = d.verdict(a, noDelay, p.err)
	} else {
		v = d.verdictOn(msg, a, p.err)
	}
	if v.Status == partition.Pending {
		d.ending.mu.Lock()
		d.msg = nil // it may stay pending for long: do not keep its payload in memory
		d.ending.mu.Unlock()
		return &v
	}
	if !early && d.sub.quiet(v.Status) {
		return &v
	}
	d.settle(v)
	if early {
		<-returned
	}
	return nil
}

// errNacked is the reason of a nack if the handler returned no error.
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
func (t *task) Finished() {
	t.ending.end(context.Canceled)
	if t.sub.inBatches > 0 { // a delivery that the application keeps keeps no batch
		t.ending.mu.Lock()
		t.batch = nil
		t.ending.mu.Unlock()
	}
}

// Cancel implements consumer.Task.
func (t *task) Cancel() {
	t.ending.mu.Lock()
	t.canceled = true
	msg, b := t.msg, t.batch
	(*Delivery)(t).release()
	t.ending.mu.Unlock()
	t.ending.end(t.kafka.Ended())
	switch {
	case b != nil:
		b.cancel(t.kafka.Ended())
	case msg != nil:
		msg.Nack() // wakes Run; it settles nothing, since the partition is closed
	}
}

func (d *Delivery) at(s stage) {
	d.ending.mu.Lock()
	d.stage = s
	d.ending.mu.Unlock()
}

// UnderWay implements consumer.Task.
func (t *task) UnderWay() (call string, offers bool) {
	t.ending.mu.Lock()
	b, at := t.batch, t.stage
	t.ending.mu.Unlock()
	if b != nil {
		b.mu.Lock()
		at = b.stage
		b.mu.Unlock()
	}
	return calls[at], at == offering
}

// decode returns a new message for a delivery, decoded from the record as it is in Kafka,
// with its own copy of the bytes.
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
	topic, partition, offset := r.Topic, r.Partition, r.Offset
	if broken := guard("the unmarshaler", func() {
		msg, err = s.sub.config.Kafka.Unmarshaler.Unmarshal(r)
	}, func(err error) {
		s.loggerOf(topic).Error("Unmarshal failed: the record is tried again", err, watermill.LogFields{
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

// decodeDefault is kafka.DefaultMarshaler's Unmarshal with one map fewer.
func decodeDefault(record *sarama.ConsumerMessage, payload []byte) *message.Message {
	msg := message.NewMessage("", payload)
	addHeaders(msg, record)
	return msg
}

func addHeaders(msg *message.Message, record *sarama.ConsumerMessage) {
	for _, h := range record.Headers {
		if string(h.Key) == kafka.UUIDHeaderKey {
			msg.UUID = string(h.Value)
		} else {
			msg.Metadata.Set(string(h.Key), string(h.Value))
		}
	}
}
