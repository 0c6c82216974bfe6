package ackpolicy

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

// Batch is what a message of a BatchSubscriber stands for. Each of its messages has a Delivery
// of its own, whose verbs settle it. What the handler has not settled is settled by the policy
// when it has returned, or without one as Watermill does: acked with the batch, or nacked
// with it.
type Batch struct {
	sub      *subscription
	all      []*Delivery
	messages []*message.Message
	carrier  *message.Message // the message that stands for it
	ctx      batchContext

	wrapped atomic.Bool // a middleware of ours has it, or had it

	mu       sync.Mutex // guards what follows; no other lock is taken under it
	results  []result   // by index; nil if none has one
	plan     batchPlan
	entered  context.Context // of the handler that ran last
	returned chan struct{}   // closed by the handler's end, or by cancel
	running  int16           // running handlers under our middleware
	depth    int16           // of the nested middleware that left the plan; 0 if none did
	first    bool            // acked by AckFirst
	gone     int             // deliveries whose assignment has ended
	stage    stage
}

// result is what the handler said about a message.
type result struct {
	err     error
	left    bool // it was not handled
	decided bool // by a middleware, with what follows
	act     action
	delay   time.Duration
	reason  error
}

// batchPlan is the plan for the messages without a result.
type batchPlan struct {
	plan
	delay time.Duration
}

// batchContext is the context of the message that stands for a batch. It ends when the batch
// is finished, or when the assignments of all its partitions have ended.
type batchContext struct {
	ending
	b *Batch
}

var _ context.Context = (*batchContext)(nil)

// Value returns the batch, and the values of the context that was passed to Subscribe.
func (c *batchContext) Value(key any) any {
	if key == (deliveryKey{}) {
		return c.b
	}
	return c.b.all[0].kafka.Context().Value(key)
}

// BatchFromMessage returns the batch that a message stands for, or false if it is a single one.
func BatchFromMessage(msg *message.Message) (*Batch, bool) {
	if msg == nil {
		return nil, false
	}
	b, ok := msg.Context().Value(deliveryKey{}).(*Batch)
	return b, ok && b.carrier == msg
}

// Messages returns the messages: those of a partition in the order of their offsets. The caller
// must not change the slice.
func (b *Batch) Messages() []*message.Message { return b.messages }

// Fail says that the handler has failed for the message with this index of Messages: the policy
// decides what becomes of its record, whatever becomes of the others. A signal is carried out.
func (b *Batch) Fail(index int, err error) { b.set(index, result{err: orNoReason(err)}) }

// Leave says that the handler has not handled a message: its record is handed out again. This
// delivery does not count.
func (b *Batch) Leave(index int) { b.set(index, result{left: true}) }

func (b *Batch) set(index int, r result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.results == nil {
		b.results = make([]result, len(b.messages))
	}
	b.results[index] = r
}

// setBatches makes a subscription hand out batches.
func (s *subscription) setBatches(cfg *consumer.Config, c *BatchConfig) {
	s.inBatches = min(c.Size, math.MaxInt32/c.Concurrency) * c.Concurrency
	cfg.MaxInFlight = s.inBatches
	cfg.Batches = &consumer.Batches{
		Size: c.Size, Bytes: c.Bytes, Wait: max(0, c.Wait), Concurrency: c.Concurrency, OnePartition: c.OnePartition,
		New: s.newDeliveries, Task: batchTask{s},
	}
}

// batchTask is what the consumer calls for batches.
type batchTask struct{ sub *subscription }

// inBatch is a delivery with its message. The message has no channels: Ack and Nack work
// without, and nobody waits for a single message of a batch.
type inBatch struct {
	delivery Delivery
	message  message.Message
}

// deliveriesAtOnce are in one allocation: an application that keeps one keeps them all.
const deliveriesAtOnce = 16

func (s *subscription) newDeliveries(n int) []*consumer.Delivery {
	all := make([]*consumer.Delivery, 0, n)
	var some []inBatch
	for range n {
		if len(some) == 0 {
			some = make([]inBatch, min(n-len(all), deliveriesAtOnce))
		}
		x := &some[0]
		some = some[1:]
		s.initDelivery(&x.delivery)
		x.delivery.msg = &x.message
		all = append(all, &x.delivery.kafka)
	}
	return all
}

// Decode implements consumer.BatchTask.
func (batchTask) Decode(k *consumer.Delivery, copies *record.Copies) (v *partition.Verdict, ok bool) {
	d := (*Delivery)(k.Handle.(*task))
	if !d.sub.defaultMarshaler || len(d.sub.interceptors.all) > 0 {
		d.at(decoding)
	}
	var msg *message.Message
	var err error
	if d.sub.defaultMarshaler && len(d.sub.interceptors.all) == 0 {
		msg = d.msg // made with the delivery, and not given to anybody yet
		r := k.Record()
		msg.Metadata, msg.Payload = message.Metadata{}, copies.Bytes(r.Value)
		addHeaders(msg, r)
	} else {
		msg, err = d.sub.decode(k.Record(), copies)
	}
	if err == nil {
		err = (*deliveryContext)(d).adopt(msg)
	}
	d.ending.mu.Lock()
	d.msg, d.stage = msg, nowhere
	canceled := d.canceled
	if err != nil && !canceled {
		d.stage = refused
	}
	d.ending.mu.Unlock()
	switch {
	case canceled:
		return nil, false
	case err != nil:
		v = d.sub.undecodable(d, err)
		d.at(nowhere)
		return v, false
	case d.sub.undecoded.some.Load():
		d.sub.decoded(d)
	}
	d.remind(msg)
	return nil, true
}

// Run implements consumer.BatchTask.
func (t batchTask) Run(batch []consumer.BatchEnd, stop func() (<-chan struct{}, func())) (sent bool) {
	b := t.sub.newBatch(batch)
	b.mu.Lock()
	ended := b.gone == len(b.all) // the output may be closed by now
	if !ended {
		b.stage = offering
	}
	b.mu.Unlock()
	if ended {
		return true
	}
	sent = b.offer(stop)
	b.at(nowhere)
	if !sent {
		b.ctx.end(context.Canceled)
		return false
	}
	for i, d := range b.all {
		if i == 0 || d.Partition() != b.all[i-1].Partition() || d.Topic() != b.all[i-1].Topic() {
			d.kafka.Taken() // the partition has one handler
		}
	}
	if t.sub.sub.config.acksFirst() {
		b.ackTaken()
	}
	select {
	case <-b.carrier.Acked():
		b.finish(true, batch)
	case <-b.carrier.Nacked():
		b.finish(false, batch)
	}
	b.ctx.end(context.Canceled)
	return true
}

func (s *subscription) newBatch(batch []consumer.BatchEnd) *Batch {
	b := &Batch{sub: s, all: make([]*Delivery, len(batch)), messages: make([]*message.Message, len(batch)), carrier: message.NewMessage("", nil)}
	b.ctx.b = b
	b.carrier.SetContext(&b.ctx)
	began := int64(0)
	if s.timed() {
		began = consumer.Now()
	}
	for i, e := range batch {
		d := (*Delivery)(e.Delivery.Handle.(*task))
		b.all[i] = d
		d.began.Store(began)
		d.ending.mu.Lock()
		b.messages[i], d.batch = d.msg, b
		canceled := d.canceled
		d.ending.mu.Unlock()
		if canceled {
			b.mu.Lock()
			b.gone++
			b.mu.Unlock()
		}
	}
	b.carrier.UUID = b.messages[0].UUID
	return b
}

// offer sends the batch, unless a partition of it drains and nobody takes it.
func (b *Batch) offer(stop func() (<-chan struct{}, func())) (sent bool) {
	select {
	case b.sub.output <- b.carrier:
		return true
	default:
	}
	stopped, done := stop()
	defer done()
	select {
	case b.sub.output <- b.carrier:
		return true
	case <-stopped:
		return false
	}
}

func (b *Batch) at(s stage) {
	b.mu.Lock()
	b.stage = s
	b.mu.Unlock()
}

// cancel is called when the assignment of a delivery has ended.
func (b *Batch) cancel(cause error) {
	b.mu.Lock()
	b.gone++
	all := b.gone == len(b.all)
	if all && b.returned != nil {
		close(b.returned)
		b.returned = nil
	}
	b.mu.Unlock()
	if all {
		b.ctx.end(cause)
		b.carrier.Nack() // wakes Run
	}
}

// finish sets the verdicts of the deliveries.
func (b *Batch) finish(acked bool, ends []consumer.BatchEnd) {
	b.mu.Lock()
	b.stage = settling
	ended, early := b.gone == len(b.all), b.running > 0
	if early && !ended {
		b.returned = make(chan struct{})
	}
	returned := b.returned
	results, p, entered := slices.Clone(b.results), b.plan, b.entered
	if b.depth == 0 || early {
		p = batchPlan{b.contract(), noDelay}
		if acked {
			p.err = nil
		}
	} else if !acked && p.err == nil {
		p.err = errNacked
	}
	b.mu.Unlock()
	if ended {
		return
	}
	common := p.onNack
	if acked {
		common = p.onAck
	}
	contract := b.contract()
	first, failed := -1, 0 // those that failed
	for i, d := range b.all {
		d.settleAs(d.msg, contract) // no msg.Ack: verbs, which any goroutine may call, look at the message's channels
		r := result{act: common, delay: p.delay, reason: p.err}
		if results != nil {
			r = results[i].or(r, contract)
		}
		if r.err != nil {
			if failed++; first < 0 {
				first = i
			}
		}
		ends[i].Verdict = b.end(d, r, entered)
	}
	if failed > 0 {
		b.tellFailed(b.all[first], results[first].err, failed)
	}
	if early { // acked or nacked by the handler itself: that settles, but does not finish
		for i := range ends {
			if v := ends[i].Verdict; v != nil && v != consumer.Return {
				b.all[i].settle(*v)
				ends[i].Verdict = nil
			}
		}
		<-returned
	}
}

// or returns a result that says what to do: r, or that of the messages without one. A message
// that failed where no middleware decides is nacked, as far as that goes by the contract.
func (r result) or(common result, contract plan) result {
	switch {
	case r.left, r.decided:
		return r
	case r.err != nil:
		return result{err: r.err, act: contract.onNack, delay: noDelay, reason: r.err}
	}
	return common
}

// contract is Delivery.contract for a batch.
func (b *Batch) contract() plan {
	if b.wrapped.Load() {
		return watermills
	}
	return b.sub.sub.contract
}

// end carries out a result, or leaves it to the end of the delivery.
func (b *Batch) end(d *Delivery, r result, entered context.Context) *partition.Verdict {
	if r.left {
		return consumer.Return
	}
	if r.act == doAck && b.sub.quiet(partition.Acked) {
		return plainAck
	}
	var v partition.Verdict
	if r.act == doNack && r.delay == noDelay {
		msg := d.msg
		if _, asked := b.carrier.Metadata[delay.DelayedForKey]; asked { // by a DelayOnError around the handler
			msg = b.carrier
		}
		v = d.verdictOn(msg, r.act, r.reason)
	} else {
		v = d.verdict(r.act, r.delay, r.reason)
	}
	if v.Status == partition.Pending {
		d.ending.mu.Lock()
		d.msg, d.entered = nil, entered // it may stay pending for long: do not keep its payload in memory
		d.ending.mu.Unlock()
	} else if !b.sub.quiet(v.Status) {
		d.settle(v)
		return nil
	}
	left := v
	return &left
}
