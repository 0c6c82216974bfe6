package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
)

// Middleware returns a handler that follows the policy:
//
//	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
func (p Policy) Middleware(h message.HandlerFunc) message.HandlerFunc {
	return Middleware{Policy: p}.wrap(h, true)
}

// Middleware decides what happens to a record when its handler ends. Added to a Router
// it applies to all handlers; added to a handler, to that one. If both are present, the
// inner one decides. An outer AckFirst leaves the inner one nothing to decide, which is
// logged as an error: use Handlers instead.
//
// The zero value follows SubscriberConfig.Policy. Where that is not set it is AckFirst: what
// fails is lost. That is logged, once per handler: as an error if another setting shows that
// it is an oversight. Validate finds some of these at the start of the application.
type Middleware struct {
	// Policy is the policy of every handler that is not in Handlers. If it is the zero
	// value, AckFirst, a SubscriberConfig.Policy applies instead; AckFirst.Middleware,
	// ConfirmFirst and Handlers take precedence over that.
	Policy Policy
	// Handlers has policies by the name of the handler. A name that no handler has is
	// logged as an error, once that is certain.
	Handlers map[string]Policy
	// ConfirmFirst runs AckFirst handlers only after the broker has confirmed the
	// commit of the record: at most once, even under kill -9. No handler waits for an
	// older record. It requires this package's Subscriber and a consumer group.
	ConfirmFirst bool
	// Classify may choose another policy for an error. If it returns false, AckFirst or
	// an invalid policy, the usual policy applies. It is not called for signals, and
	// never under AckFirst.
	Classify func(err error) (Policy, bool)
	// MaxDeliveries, MaxAge, Backoff and DeadLetter replace the fields of SubscriberConfig with
	// the same names for this middleware's handlers. What is zero is that of a Middleware
	// around this one, or of the Subscriber. Unlimited turns a limit off. They require this
	// package's Subscriber.
	//
	// They apply to a record that has reached the middleware, or whose subscription's last one
	// has. So records that cannot be decoded go to SubscriberConfig.DeadLetter, and only
	// SubscriberConfig.MaxDeliveries makes a record be detected whose handler ends the process.
	// DeadLetter is opened for the first letter: if that fails the record is kept, and the log
	// says so.
	MaxDeliveries int
	MaxAge        time.Duration
	Backoff       func(attempt int, err error) time.Duration
	DeadLetter    DeadLetter
	// Logger is used for warnings, and for rejected messages of other subscribers. If
	// it is nil, the Subscriber's logger is used, and nothing is logged for messages of
	// other subscribers.
	Logger watermill.LoggerAdapter
}

// guarded is a handler behind the middleware. Its methods have a pointer receiver: the
// Router starts a goroutine for each message, and growing its initial stack would take a
// fifth of a message's time.
type guarded struct {
	Middleware
	next     message.HandlerFunc
	chosen   bool  // the policy cannot have been forgotten
	settings bool  // it has some, see handlerSettings
	names    *roll // nil if Handlers is empty
	begun    atomic.Bool
	nested   sync.Once // warned of
	broken   outage.Outage
}

func (m *guarded) logger(d *Delivery) watermill.LoggerAdapter {
	switch {
	case m.Logger != nil:
		return guardLogger(m.Logger)
	case d != nil && d.sub != nil:
		return d.sub.logger
	}
	return watermill.NopLogger{}
}

// Middleware implements Watermill's message.HandlerMiddleware. If a policy is invalid,
// every message fails, and nothing is acked.
func (m Middleware) Middleware(h message.HandlerFunc) message.HandlerFunc { return m.wrap(h, false) }

func (m Middleware) wrap(h message.HandlerFunc, chosen bool) message.HandlerFunc {
	if err := errors.Join(m.unknown()...); err != nil {
		err = fmt.Errorf("ackpolicy: bad Middleware, nothing is acked: %w", err)
		return func(msg *message.Message) ([]*message.Message, error) {
			if d, ok := FromMessage(msg); ok && d.sub != nil { // nor is SubscriberConfig.Policy followed
				if _, _, ok := d.enter(msg, msg.Context(), nil); ok {
					d.leave(0, plan{})
				}
			}
			if b, ok := BatchFromMessage(msg); ok {
				b.enter(msg.Context(), nil)
				b.leave(0, batchPlan{})
			}
			return nil, err
		}
	}
	g := &guarded{Middleware: m, next: h, chosen: chosen || m.ConfirmFirst || m.Policy != AckFirst, settings: m.failureSettings() != ""}
	if len(m.Handlers) > 0 {
		g.names = rollOf(m.Handlers)
	}
	return g.handle
}

func (m *guarded) handle(msg *message.Message) ([]*message.Message, error) {
	ctx := msg.Context()
	depth, void := 0, false
	d, ok := (*Delivery)(nil), false
	switch of := ctx.Value(deliveryKey{}).(type) {
	case *Delivery:
		d = of
		depth, void, ok = d.enter(msg, ctx, m)
	case *Batch:
		if of.carrier == msg {
			return m.handleBatch(of, msg, ctx)
		}
	}
	if !ok {
		d = foreignDelivery(msg, m.logger(nil))
		depth, void, _ = d.enter(msg, ctx, m)
	}
	policy := m.Policy
	if !m.chosen || len(m.Handlers) > 0 {
		policy = m.policyFor(d, ctx)
	}
	if !m.begun.Load() {
		m.begin(d, policy, message.HandlerNameFromCtx(ctx))
	}
	switch {
	case policy == AckFirst:
		if err := m.ackFirst(d); err != nil {
			d.leave(0, plan{}) // without a plan, the Router's ack and nack mean what they mean in Watermill; see contract
			return nil, err
		}
	case void:
		m.warnVoid(d, policy)
	}
	return m.run(d, depth, policy, msg)
}

func (m *guarded) policyFor(d *Delivery, ctx context.Context) Policy {
	if p, ok := m.Handlers[message.HandlerNameFromCtx(ctx)]; ok {
		return p
	}
	return m.usual(d)
}

// usual returns the policy of handlers that are not in Handlers.
func (m *guarded) usual(d *Delivery) Policy {
	if p := d.ofSubscriber(); p != nil && !m.chosen {
		return *p
	}
	return m.Policy
}

// ofSubscriber returns SubscriberConfig.Policy, or nil.
func (d *Delivery) ofSubscriber() *Policy {
	if d.sub == nil {
		return nil
	}
	return d.sub.sub.config.Policy
}

func (m *guarded) ackFirst(d *Delivery) error {
	if d.transactional() {
		return d.position(fmt.Errorf("ackpolicy: ack_first, and SubscriberConfig.Transactions: nothing was acked: choose another policy: %w", errAckFirst))
	}
	d.ending.mu.Lock()
	d.first = true
	d.ending.mu.Unlock()
	if !m.ConfirmFirst {
		if !d.Ack() { // running it now would not be at most once
			return d.position(fmt.Errorf("ackpolicy: ack_first: the handler does not run, its delivery is %s", d.Status()))
		}
		return nil
	}
	if d.sub == nil {
		return fmt.Errorf("ackpolicy: ConfirmFirst takes ackpolicy.NewSubscriber, nothing was acked: %w", ErrNotKafka)
	}
	return d.confirm()
}

// warnVoid logs that a policy has no effect because of an outer one.
func (m *guarded) warnVoid(d *Delivery, policy Policy) {
	m.nested.Do(func() {
		err := errors.New("nested policies: use Middleware.Handlers")
		if p := d.ofSubscriber(); p != nil && *p == AckFirst {
			err = errors.New("SubscriberConfig.Policy is ack_first, and the first message took more than a second to reach the middleware, or never reached it")
		}
		m.logger(d).Error("Policy "+policy.String()+" has no effect: the message was acked before (ack_first)", err, nil)
	})
}

// confirm acks, and waits until the commit is confirmed. If the wait ends in any other
// way the assignment has ended, and the handler must not run.
func (d *Delivery) confirm() error {
	if !d.kafka.HasGroup() {
		return d.position(fmt.Errorf("ConfirmFirst: nothing was acked: %w", ErrNoConsumerGroup))
	}
	sent, err := d.kafka.Confirm()
	if err == nil && d.Status() != Acked {
		return d.position(fmt.Errorf("ConfirmFirst: the delivery is %s", d.Status()))
	}
	if err = d.position(err); sent {
		d.sub.unconfirmed(d, err)
	}
	return err
}

// run calls the handler and leaves a plan. On a signal it settles at once.
func (m *guarded) run(d *Delivery, depth int, policy Policy, msg *message.Message) (produced []*message.Message, err error) {
	returned := false
	defer func() {
		if !returned {
			produced, err = m.unwound(d, depth, policy, msg, recover())
		}
	}()
	produced, err = m.next(msg)
	returned = true
	if d.sub != nil {
		d.settleAs(d.msg, watermills) // msg was set before the message was sent
	}
	if err != nil {
		return m.failed(d, depth, policy, produced, err)
	}
	return m.end(d, depth, policy, plan{onAck: decide(policy, succeeded), onNack: decide(policy, failed)}, produced)
}

// unwound handles a panic of the handler, or a runtime.Goexit.
func (m *guarded) unwound(d *Delivery, depth int, policy Policy, msg *message.Message, r any) ([]*message.Message, error) {
	if d.sub != nil {
		d.settleAs(d.msg, watermills)
	}
	failure := panicError(r)
	if sig, _ := findSignal(failure); sig != nil {
		return m.failed(d, depth, policy, nil, failure)
	}
	_, _ = m.failed(d, depth, policy, nil, failure)
	if r == nil {
		msg.Nack() // runtime.Goexit: nobody else acks or nacks
		return nil, nil
	}
	panic(r)
}

func panicError(r any) error {
	if r == nil {
		return fmt.Errorf("the handler: %w", errGoexit)
	}
	if err, ok := r.(error); ok {
		return err
	}
	return fmt.Errorf("panic: %v", r)
}

// failed handles an error of the handler: a failure, a signal, or that we stopped it.
func (m *guarded) failed(d *Delivery, depth int, policy Policy, produced []*message.Message, err error) ([]*message.Message, error) {
	p := plan{onAck: decide(policy, succeeded), onNack: decide(policy, failed), err: err}
	left := false
	defer func() {
		if !left { // Classify or a method of the error called runtime.Goexit
			m.tellBroken(d, fmt.Errorf("Middleware.Classify, or a method of the handler's error (%T): %w", err, errGoexit))
			d.leave(depth, p)
			d.msg.Nack()
		}
	}()
	sig, broken := findSignal(err)
	if broken != nil {
		m.tellBroken(d, broken)
	}
	switch {
	case d.ending.stopped() != nil:
		p.err = d.ending.asStopped(err)
		if policy == AckFirst {
			m.logger(d).Error("The handler of a record that was acked before it ran was stopped: the record does not come again (ack_first)",
				errors.New(textOf(err)), d.fields())
		}
	case sig != nil:
		d.obey(sig) // under AckFirst, without an effect
		left = true
		d.leave(depth, plan{}) // it is settled: the Router's ack only finishes it
		return nil, nil
	case policy != AckFirst && m.Classify != nil:
		if other, ok := m.classify(d, err); ok && other != AckFirst && other.valid() {
			p.onNack = decide(other, failed)
		}
	}
	left = true
	return m.end(d, depth, policy, p, produced)
}

// classify calls Classify. If that panics, the usual policy applies.
func (m *guarded) classify(d *Delivery, err error) (other Policy, ok bool) {
	if broken := guard("Middleware.Classify", func() { other, ok = m.Classify(err) }, nil); broken != nil {
		m.tellBroken(d, broken)
		return 0, false
	}
	return other, ok
}

func (m *guarded) tellBroken(d *Delivery, err error) {
	if report, due := m.broken.Failed(); due {
		m.logger(d).Error("Application code failed while the result of a handler was examined: it counts as an ordinary failure", err,
			report.AddTo(nil).Add(d.fields()))
	}
}

// end leaves the plan on the delivery.
func (m *guarded) end(d *Delivery, depth int, policy Policy, p plan, produced []*message.Message) ([]*message.Message, error) {
	if d.transactional() {
		if p.err != nil {
			d.kafka.Discard() // a handler that fails has published nothing
		}
		d.join(produced)
	}
	if d.leave(depth, p) && d.sub == nil {
		return m.endForeign(d, policy, p, produced, p.err)
	}
	return produced, p.err
}

// endForeign carries the plan out at once: another subscriber does not know of it.
func (m *guarded) endForeign(d *Delivery, policy Policy, p plan, produced []*message.Message, err error) ([]*message.Message, error) {
	if policy == Manual && (err == nil || p.onNack == doNothing) {
		if waitErr := d.foreign().wait(d); waitErr != nil {
			return nil, errors.Join(err, waitErr)
		}
		return produced, err
	}
	if err != nil {
		switch p.onNack {
		case doAck:
			d.Ack()
		case doReject:
			d.Reject(err)
		}
	}
	return produced, err
}

// RestoreContext is a middleware to put inside Watermill's PoisonQueue, Retry and
// CircuitBreaker. When the handler has returned,
//
//   - it gives the message back the context that it came with. Timeout leaves it an ended
//     context, with which a PoisonQueue around it cannot publish.
//   - it makes the error of a handler whose context we ended (the partition was revoked,
//     or the subscriber closes) a signal, as reported by [IsSignal], whatever library
//     created it. The record is left to the next owner, and is neither poisoned nor retried.
//   - with SubscriberConfig.Transactions it throws away what a handler published that failed:
//     a Retry around it runs the handler again for the same delivery.
//
// Without it, IsSignal recognizes ctx.Err() and context.Cause(ctx) of the message's context
// and of contexts derived from it, but not an error that a library returns in their place.
func RestoreContext(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		ctx := msg.Context()
		defer msg.SetContext(ctx)
		produced, err = h(msg)
		if err == nil {
			return produced, nil
		}
		switch of := ctx.Value(deliveryKey{}).(type) {
		case *Delivery:
			if of.transactional() && !IsSignal(err) {
				of.kafka.Discard() // the next try publishes it again
			}
			err = of.ending.asStopped(err)
		case *Batch:
			err = of.ctx.asStopped(err)
		}
		return produced, err
	}
}
