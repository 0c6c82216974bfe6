package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// BatchConfig says how large batches are. The zero value is ready to use.
type BatchConfig struct {
	// Size is the most messages of a batch. 0 means 500.
	Size int
	// Bytes is the most bytes of a batch, counted like SubscriberConfig.MaxBufferedBytes. A
	// larger record has a batch of its own. 0 means 4 MiB.
	Bytes int
	// Wait is how long the first record of a batch waits for others. 0 means 100 ms. With
	// NoWait a batch has what is there.
	Wait time.Duration
	// Concurrency is how many batches of a subscription are with handlers at once. 0 means 1.
	// Records that are handled one after the other, as Ordering says, are never in two of them.
	Concurrency int
	// OnePartition makes each batch have records of one partition only.
	OnePartition bool
}

// NoWait is a BatchConfig.Wait of no time.
const NoWait time.Duration = -1

const (
	defaultBatchSize  = 500
	defaultBatchBytes = 4 << 20
	defaultBatchWait  = 100 * time.Millisecond
)

// Validate returns one error that joins every problem of the configuration.
func (c BatchConfig) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Size < 0 {
		bad("Size: %d: want 0 (500) or a positive number", c.Size)
	}
	if c.Bytes < 0 {
		bad("Bytes: %d: want 0 (4 MiB) or a positive number", c.Bytes)
	}
	if c.Wait < 0 && c.Wait != NoWait {
		bad("Wait: %v: want 0 (100ms), a positive duration or NoWait", c.Wait)
	}
	if c.Concurrency < 0 {
		bad("Concurrency: %d: want 0 (1) or a positive number", c.Concurrency)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("ackpolicy: bad BatchConfig: %w", errors.Join(errs...))
}

func (c *BatchConfig) setDefaults() {
	if c.Size == 0 {
		c.Size = defaultBatchSize
	}
	if c.Bytes == 0 {
		c.Bytes = defaultBatchBytes
	}
	if c.Wait == 0 {
		c.Wait = defaultBatchWait
	}
	if c.Concurrency == 0 {
		c.Concurrency = 1
	}
}

// BatchSubscriber is a Subscriber whose messages are batches. See Subscriber.Batches.
type BatchSubscriber struct {
	*Subscriber
	config BatchConfig
}

var (
	_ message.Subscriber           = (*BatchSubscriber)(nil)
	_ message.SubscribeInitializer = (*BatchSubscriber)(nil)
)

// Batches returns a subscriber for handlers of batches:
//
//	router.AddConsumerHandler("orders", "orders", subscriber.Batches(ackpolicy.BatchConfig{Size: 500}),
//		ackpolicy.HandleBatch(func(ctx context.Context, orders []*message.Message) error { … }))
//
// Each message that it subscribes to is a batch: see BatchFromMessage. Each record in a batch has
// its own fate, by the same policy, order and limits as without batches. MaxInFlight and
// MaxInFlightTotal do not apply: BatchConfig says how many records are in flight. ConfirmFirst
// does not work with batches.
//
// Closing it closes s.
func (s *Subscriber) Batches(config BatchConfig) *BatchSubscriber {
	return &BatchSubscriber{s, config}
}

// Subscribe is Subscriber.Subscribe for batches. It returns an error if BatchConfig is invalid.
func (s *BatchSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	config := s.config
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if s.Subscriber.config.Transactions != nil {
		return nil, errors.New("ackpolicy: batches are not supported with SubscriberConfig.Transactions: subscribe without Batches, or leave Transactions nil")
	}
	config.setDefaults()
	return s.subscribe(ctx, topic, &config)
}

// BatchError says which messages of a batch failed, by index, and why. A handler returns it to
// HandleBatch. The other messages have succeeded.
type BatchError map[int]error

func (e BatchError) Error() string {
	first := -1
	for i := range e {
		if first < 0 || i < first {
			first = i
		}
	}
	if first < 0 {
		return "no message of the batch failed"
	}
	return fmt.Sprintf("%d messages of the batch failed, first the one with index %d: %s", len(e), first, textOf(e[first]))
}

// FailedAt returns an error by which a handler tells HandleBatch that it stopped: the message
// with this index failed, those before it have succeeded, and those behind it were not
// handled. These are handed out again; that delivery does not count.
func FailedAt(index int, err error) error { return &failedAt{index, orNoReason(err)} }

type failedAt struct {
	index int
	err   error
}

func (e *failedAt) Error() string {
	return fmt.Sprintf("the message with index %d failed: %s", e.index, textOf(e.err))
}

func (e *failedAt) Unwrap() error { return e.err }

// handleBatch is handle for a batch: the policy applies to each of its records.
func (m *guarded) handleBatch(b *Batch, msg *message.Message, ctx context.Context) ([]*message.Message, error) {
	depth, void := b.enter(ctx, m)
	policy := m.Policy
	if !m.chosen || len(m.Handlers) > 0 {
		policy = m.policyFor(b.all[0], ctx)
	}
	if !m.begun.Load() {
		m.begin(b.all[0], policy, message.HandlerNameFromCtx(ctx))
	}
	switch {
	case policy == AckFirst:
		if err := m.ackFirstAll(b); err != nil {
			b.leave(0, batchPlan{})
			return nil, err
		}
	case void:
		m.warnVoid(b.all[0], policy)
	}
	return m.runBatch(b, depth, policy, msg)
}

// ackFirstAll acks the records of a batch before its handler runs.
func (m *guarded) ackFirstAll(b *Batch) error {
	b.mu.Lock()
	b.first = true
	b.mu.Unlock()
	if m.ConfirmFirst {
		return errors.New("ackpolicy: ConfirmFirst does not work with batches, nothing was acked: use Subscriber.Subscribe")
	}
	return b.ackAll()
}

// ackAll acks all records of the batch, unless the partition of one was released.
func (b *Batch) ackAll() error {
	for _, d := range b.all {
		if d.Status() == Revoked { // the others are handed out again
			for i := range b.all {
				b.Leave(i)
			}
			return d.position(errors.New("ackpolicy: ack_first: the handler does not run, its partition was released"))
		}
	}
	for _, d := range b.all {
		d.Ack()
	}
	return nil
}

// ackTaken is Delivery.ackTaken for a batch.
func (b *Batch) ackTaken() {
	if !b.sub.noMiddleware(b.carrier) {
		return
	}
	b.mu.Lock()
	wrapped := b.sub.handler.Load() != nil
	b.first = b.first || !wrapped
	b.mu.Unlock()
	if wrapped {
		return
	}
	for _, d := range b.all {
		d.settle(partition.Verdict{Status: partition.Acked})
	}
}

// enter is Delivery.enter for a batch.
func (b *Batch) enter(ctx context.Context, m *guarded) (depth int, acked bool) {
	if b.sub.handler.Load() == nil {
		name := message.HandlerNameFromCtx(ctx)
		b.sub.handler.Store(&name)
	}
	b.mu.Lock()
	acked = b.first
	b.entered = ctx
	b.wrapped.Store(true)
	if b.running++; b.running == 1 {
		b.depth = 0
	}
	depth = int(b.running)
	b.mu.Unlock()
	if m != nil && m.settings {
		for _, d := range b.all {
			d.ending.mu.Lock()
			d.own = b.sub.settingsOf(m, d.own)
			d.ending.mu.Unlock()
			if m.MaxAge > 0 {
				d.began.CompareAndSwap(0, consumer.Now())
			}
		}
	}
	return depth, acked
}

// leave is Delivery.leave for a batch.
func (b *Batch) leave(depth int, p batchPlan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if depth >= int(b.depth) {
		b.depth, b.plan = int16(depth), p
	}
	if b.running--; b.running == 0 && b.returned != nil {
		close(b.returned)
		b.returned = nil
	}
}

// runBatch is run for a batch.
func (m *guarded) runBatch(b *Batch, depth int, policy Policy, msg *message.Message) (produced []*message.Message, err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		r := recover()
		failure := panicError(r)
		sig, _ := findSignal(failure)
		produced, err = m.endBatch(b, depth, policy, nil, failure)
		switch {
		case sig != nil:
		case r == nil:
			msg.Nack() // runtime.Goexit: nobody else acks or nacks
		default:
			panic(r)
		}
	}()
	produced, err = m.next(msg)
	returned = true
	return m.endBatch(b, depth, policy, produced, err)
}

// endBatch decides what becomes of the records of a batch, and leaves that for the Router's ack
// or nack.
func (m *guarded) endBatch(b *Batch, depth int, policy Policy, produced []*message.Message, err error) ([]*message.Message, error) {
	p := batchPlan{plan{onAck: decide(policy, succeeded), onNack: decide(policy, failed), err: err}, noDelay}
	left := false
	defer func() {
		if !left { // Classify or a method of an error called runtime.Goexit
			m.tellBroken(b.all[0], fmt.Errorf("Middleware.Classify, or a method of the handler's error: %w", errGoexit))
			b.leave(depth, p)
			b.carrier.Nack()
		}
	}()
	if stopped := b.ctx.asStopped(err); err != nil && b.ctx.stopped() != nil {
		p.err, err = stopped, stopped
	} else if err != nil {
		r := m.judge(b.all[0], policy, err)
		if p.onNack, p.delay, p.err = r.act, r.delay, r.reason; r.signal {
			p.onAck, err = r.act, nil
			produced = nil
		}
	}
	b.mu.Lock()
	results := b.results
	b.mu.Unlock()
	for i, r := range results {
		if r.err != nil && !r.decided {
			judged := m.judge(b.all[i], policy, r.err)
			judged.err, judged.decided = r.err, true
			if judged.signal {
				judged.err = nil // it is no failure
			}
			b.set(i, judged.result)
		}
	}
	left = true
	b.leave(depth, p)
	return produced, err
}

// judged is what a policy makes of an error.
type judged struct {
	result
	signal bool
}

// judge returns what becomes of a record whose handler returned an error.
func (m *guarded) judge(d *Delivery, policy Policy, err error) judged {
	sig, broken := findSignal(err)
	if broken != nil {
		m.tellBroken(d, broken)
	}
	if sig != nil {
		return judged{result{act: decide(policy, sig.kind), delay: sig.delay, reason: sig.reason}, true}
	}
	if policy != AckFirst && m.Classify != nil {
		if other, ok := m.classify(d, err); ok && other != AckFirst && other.valid() {
			policy = other
		}
	}
	return judged{result{act: decide(policy, failed), delay: noDelay, reason: err}, false}
}

// tellFailed logs, once for a batch, that messages of it failed: the Router does not know.
func (b *Batch) tellFailed(first *Delivery, err error, n int) {
	fields := first.fields()
	fields["handler_name"], fields["failed"], fields["batch"] = b.handlerName(), n, len(b.all)
	b.sub.logger.Error("Messages of a batch failed, and the others did not", err, fields)
}

func (b *Batch) handlerName() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.entered == nil {
		return "" // no handler ran under our middleware
	}
	return message.HandlerNameFromCtx(b.entered)
}
