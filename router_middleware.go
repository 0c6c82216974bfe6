package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Middleware returns a handler that follows the policy:
//
//	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
func (p Policy) Middleware(h message.HandlerFunc) message.HandlerFunc {
	return Middleware{Policy: p}.Middleware(h)
}

// Middleware decides what becomes of a record when its handler ends. Added to the
// Router it holds for all handlers, added to a handler for that one; where both
// are, the inner one's verdict counts. An outer AckFirst leaves it nothing to
// decide, which is logged as an error: use Handlers instead.
type Middleware struct {
	// Policy of every handler that Handlers does not name.
	Policy Policy
	// Handlers gives a policy to handlers by name.
	Handlers map[string]Policy
	// ConfirmFirst runs AckFirst handlers only after the broker has confirmed the
	// record's commit: at most once, even under kill -9. It takes this
	// package's Subscriber with a consumer group.
	ConfirmFirst bool
	// Classify may choose another policy for an ordinary error: false, AckFirst
	// or an invalid one means the usual policy. It is not asked about signals,
	// nor under AckFirst.
	Classify func(err error) (Policy, bool)
	// Logger tells of rejected messages of other subscribers, and warns; nil is the
	// Subscriber's, and no log on the messages of others.
	Logger watermill.LoggerAdapter
}

// guarded is a handler behind the middleware. Its methods take a pointer: the
// Router gives each message a goroutine, and to outgrow the stack that this begins
// with takes a fifth of a message's time.
type guarded struct {
	Middleware
	next            message.HandlerFunc
	nested, unnamed sync.Once // warned of
}

func (m *guarded) logger(d *Delivery) watermill.LoggerAdapter {
	switch {
	case m.Logger != nil:
		return m.Logger
	case d != nil && d.sub != nil:
		return d.sub.logger
	}
	return watermill.NopLogger{}
}

// Middleware implements Watermill's message.HandlerMiddleware.
func (m Middleware) Middleware(h message.HandlerFunc) message.HandlerFunc {
	if err := m.validate(); err != nil {
		return func(*message.Message) ([]*message.Message, error) { return nil, err }
	}
	return (&guarded{Middleware: m, next: h}).handle
}

func (m *guarded) handle(msg *message.Message) ([]*message.Message, error) {
	ctx := msg.Context()
	d, ok := FromContext(ctx)
	depth, void := 0, false
	if ok {
		depth, void, ok = d.enter(msg, ctx)
	}
	if !ok {
		d = foreignDelivery(msg, m.logger(nil))
		depth, void, _ = d.enter(msg, ctx)
	}
	policy := m.Policy
	if len(m.Handlers) > 0 {
		policy = m.policyFor(d, ctx)
	}
	switch {
	case policy == AckFirst:
		if err := m.ackFirst(d); err != nil {
			d.leave(0, plan{}) // without a plan: the Router's signal means what it means in Watermill
			return nil, err
		}
	case void:
		m.warnVoid(d, policy)
	}
	return m.run(d, depth, policy, msg)
}

func (m Middleware) validate() error {
	var errs []error
	if !m.Policy.valid() {
		errs = append(errs, fmt.Errorf("Middleware.Policy: no such policy: %d", uint8(m.Policy)))
	}
	for name, p := range m.Handlers {
		if !p.valid() {
			errs = append(errs, fmt.Errorf("Middleware.Handlers[%q]: no such policy: %d", name, uint8(p)))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("ackpolicy: bad configuration, nothing is acked: %w", errors.Join(errs...))
}

func (m *guarded) policyFor(d *Delivery, ctx context.Context) Policy {
	name := message.HandlerNameFromCtx(ctx)
	if p, ok := m.Handlers[name]; ok {
		return p
	}
	if m.Policy == AckFirst {
		m.unnamed.Do(func() {
			m.logger(d).Info("Handler is not in Middleware.Handlers and Middleware.Policy was left at its zero value: its messages are acked before it runs (ack_first)",
				watermill.LogFields{"level": "warning", "handler_name": name})
		})
	}
	return m.Policy
}

func (m *guarded) ackFirst(d *Delivery) error {
	d.mu.Lock()
	d.first = true
	d.mu.Unlock()
	if !m.ConfirmFirst {
		if !d.Ack() { // to run it now would not be at most once
			return d.position(fmt.Errorf("ackpolicy: ack_first: the handler does not run, its delivery is %s", d.Status()))
		}
		return nil
	}
	if d.sub == nil {
		return fmt.Errorf("ackpolicy: ConfirmFirst takes ackpolicy.NewSubscriber, nothing was acked: %w", ErrNotKafka)
	}
	return d.confirm()
}

// warnVoid tells of a policy that an outer middleware has made void.
func (m *guarded) warnVoid(d *Delivery, policy Policy) {
	m.nested.Do(func() {
		m.logger(d).Error("Policy "+policy.String()+" has no effect: a middleware around it has acked the message already (ack_first)",
			errors.New("nested policies: use Middleware.Handlers"), nil)
	})
}

// confirm acks and waits until the commit is confirmed. Whatever else ends the
// wait ends the assignment: the handler must not run.
func (d *Delivery) confirm() error {
	if !d.kafka.HasGroup() {
		return d.position(fmt.Errorf("ConfirmFirst: nothing was acked: %w", ErrNoConsumerGroup))
	}
	if !d.Ack() {
		return d.position(fmt.Errorf("ConfirmFirst: the delivery is %s", d.Status()))
	}
	sent, err := d.kafka.Confirm()
	if err == nil {
		return nil
	}
	err = d.position(err)
	if sent {
		d.sub.unconfirmed(d, err)
	}
	return err
}

// run calls the handler and leaves the plan, or settles at once on a signal.
func (m *guarded) run(d *Delivery, depth int, policy Policy, msg *message.Message) (produced []*message.Message, err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		r := recover()
		failure := panicError(r)
		if sig := findSignal(failure); sig != nil {
			produced, err = m.end(d, depth, policy, nil, failure)
			return
		}
		_, _ = m.end(d, depth, policy, nil, failure)
		if r == nil {
			msg.Nack() // runtime.Goexit: nobody else will say anything
			return
		}
		panic(r)
	}()
	produced, err = m.next(msg)
	returned = true
	return m.end(d, depth, policy, produced, err)
}

func panicError(r any) error {
	if r == nil {
		return errors.New("the handler ended its goroutine (runtime.Goexit)")
	}
	if err, ok := r.(error); ok {
		return err
	}
	return fmt.Errorf("panic: %v", r)
}

// end turns how the handler ended into settlement and plan.
func (m *guarded) end(d *Delivery, depth int, policy Policy, produced []*message.Message, err error) ([]*message.Message, error) {
	if d.sub != nil {
		d.settleAs(d.msg) // which was set before the message was sent
	}
	if sig := findSignal(err); sig != nil {
		switch decide(policy, sig.kind) {
		case doAck:
			d.Ack()
		case doNack:
			d.nack(sig.delay, nil)
		case doReject:
			d.Reject(sig.reason)
		}
		d.leave(depth, plan{}) // settled: the Router's ack, which follows, only finishes
		return nil, nil
	}
	p := plan{onAck: decide(policy, succeeded), onNack: decide(policy, failed), err: err}
	if err != nil && policy != AckFirst && m.Classify != nil {
		if other, ok := m.Classify(err); ok && other != AckFirst && other.valid() {
			p.onNack = decide(other, failed)
		}
	}
	if d.leave(depth, p) && d.sub == nil {
		return m.endForeign(d, policy, p, produced, err)
	}
	return produced, err
}

// endForeign does at once what our own subscriber would do at the Router's signal.
func (m *guarded) endForeign(d *Delivery, policy Policy, p plan, produced []*message.Message, err error) ([]*message.Message, error) {
	if policy == Manual && (err == nil || p.onNack == doNothing) {
		if waitErr := d.foreign.wait(d); waitErr != nil {
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
