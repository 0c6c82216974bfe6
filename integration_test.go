package ackpolicy_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

var policies = []ackpolicy.Policy{
	ackpolicy.AckFirst, ackpolicy.Ack, ackpolicy.RejectOnError, ackpolicy.NackOnError, ackpolicy.Manual,
}

// TestEveryCell runs every outcome under every policy on two records. The table's outcome is that of the first delivery
// of record 0. All other deliveries succeed (under Manual: are acked), so that record 1 shows whether record 0 pins the
// offset that Kafka stores.
func TestEveryCell(t *testing.T) {
	t.Parallel()
	for _, o := range outcomes() {
		t.Run(o.name, func(t *testing.T) {
			for _, policy := range policies {
				t.Run(policy.String(), func(t *testing.T) {
					t.Parallel()
					testCell(t, o, policy)
				})
			}
		})
	}
}

func testCell(t *testing.T, o outcome, policy ackpolicy.Policy) {
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	want := o.want[policy]
	deliveries, stored := o.expect(policy)
	cfg := config(group)
	if o.stopped {
		cfg.DrainTimeout = 200 * time.Millisecond
	}

	s := newService(t)
	c := &cell{outcome: o, policy: policy, service: s}
	out := &failingPublisher{fail: o.failPublish}
	s.router.AddMiddleware(c.observe)
	s.router.AddMiddleware(o.outside...)
	s.router.AddMiddleware(policy.Middleware)
	s.router.AddMiddleware(o.inside...)
	s.router.AddHandler("handler", topic, newSubscriber(t, cfg, s.log), "out", out, c.handle)
	s.start(t)
	s.journal.wait(t, len(deliveries))
	s.stop()

	s.journal.want(t, deliveries...)
	wantCommitted(t, group, topic, 0, stored)
	first := s.journal.all()[0]
	if got := first.Status(); got != want.status() {
		t.Errorf("status of the first delivery: got %v, want %v", got, want.status())
	}
	if got := c.reached[0]; got != o.router {
		t.Errorf("what reached the Router: got %q, want %q", got, o.router)
	}
	if published := o.published(want); out.published != published {
		t.Errorf("published %d messages, want %d", out.published, published)
	}
	if c.verdict != nil && *c.verdict != (want == o.asked) {
		t.Errorf("the verb answered %v where the record is %v", *c.verdict, want)
	}
	if acked := policy == ackpolicy.AckFirst; (c.before == ackpolicy.Acked) != acked {
		t.Errorf("status when the handler started: %v", c.before)
	}
	c.checkLog(t, want, topic)
}

// fate is what becomes of a delivery.
type fate string

const (
	acked    fate = "acked"
	nacked   fate = "nacked"
	rejected fate = "rejected"
	left     fate = "left" // never settled, and read again by the next owner
)

func (f fate) status() ackpolicy.Status {
	return map[fate]ackpolicy.Status{
		acked: ackpolicy.Acked, nacked: ackpolicy.Nacked, rejected: ackpolicy.Rejected, left: ackpolicy.Revoked,
	}[f]
}

type fates map[ackpolicy.Policy]fate

// under is a row of the table. The column AckFirst is the same in all of them.
func under(ack, rejectOnError, nackOnError, manual fate) fates {
	return fates{
		ackpolicy.AckFirst: acked, ackpolicy.Ack: ack, ackpolicy.RejectOnError: rejectOnError,
		ackpolicy.NackOnError: nackOnError, ackpolicy.Manual: manual,
	}
}

func always(f fate) fates { return under(f, f, f, f) }

type handlerFunc = func(c *cell, d *ackpolicy.Delivery, msg *message.Message) ([]*message.Message, error)

type outcome struct {
	name            string
	handler         handlerFunc
	inside, outside []message.HandlerMiddleware // of the policy's
	late            verb                        // called on record 0 while record 1 is handled: after the handler returned
	asked           fate                        // what the verb asks for
	failPublish     bool                        // the first time
	publishes       bool                        // what is not refused
	stopped         bool                        // while the handler runs
	signal          bool                        // so nothing is logged as an error, but a reject
	want            fates
	router          string // what reaches the Router from the first delivery
}

// expect returns the deliveries, and the offset that Kafka stores at the end.
func (o outcome) expect(policy ackpolicy.Policy) (deliveries []string, stored int64) {
	switch want := o.want[policy]; {
	case o.stopped && want == left:
		return []string{"0#1"}, 0
	case o.stopped:
		return []string{"0#1"}, 1
	case want == left:
		return []string{"0#1", "1#1"}, 0
	case want == nacked && o.late != nil && policy == ackpolicy.Manual:
		return []string{"0#1", "1#1", "0#2"}, 2
	case want == nacked:
		return []string{"0#1", "0#2", "1#1"}, 2
	default:
		return []string{"0#1", "1#1"}, 2
	}
}

func (o outcome) published(want fate) int {
	if o.publishes && !o.failPublish || o.failPublish && want == nacked {
		return 1
	}
	return 0
}

// cell is one outcome under one policy.
type cell struct {
	outcome
	policy  ackpolicy.Policy
	service *service

	mu      sync.Mutex
	reached []string         // the Router, a delivery
	before  ackpolicy.Status // of the first delivery when its handler started
	verdict *bool            // what the verb answered
}

func (c *cell) handle(msg *message.Message) ([]*message.Message, error) {
	d, ok := ackpolicy.FromMessage(msg)
	if !ok {
		return nil, errors.New("a message without a Delivery")
	}
	first := d.Offset() == 0 && d.Attempt() == 1
	if first {
		c.before = d.Status()
	}
	c.service.journal.add(d)
	if first {
		return c.outcome.handler(c, d, msg)
	}
	if d.Offset() == 1 && c.late != nil {
		c.call(c.late, c.service.journal.all()[0])
	}
	if c.policy == ackpolicy.Manual {
		d.Ack()
	}
	if c.failPublish && d.Offset() == 0 {
		return output(), nil
	}
	return nil, nil
}

// call calls a verb from another goroutine.
func (c *cell) call(v verb, d *ackpolicy.Delivery) {
	answer := make(chan bool)
	go func() { answer <- v(d) }()
	verdict := <-answer
	c.verdict = &verdict
}

func output() []*message.Message { return message.Messages{message.NewMessage("out", nil)} }

// observe is the outermost middleware: what reaches it reaches the Router.
func (c *cell) observe(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		defer func() {
			v := recover()
			c.mu.Lock()
			c.reached = append(c.reached, describe(err, v))
			c.mu.Unlock()
			if v != nil {
				panic(v)
			}
		}()
		return h(msg)
	}
}

func describe(err error, panicked any) string {
	var recovered middleware.RecoveredPanicError
	switch {
	case panicked != nil:
		return fmt.Sprintf("panic %v", panicked)
	case errors.As(err, &recovered):
		return fmt.Sprintf("recovered %v", recovered.V)
	case err == nil:
		return ""
	default:
		return err.Error()
	}
}

// checkLog: a reject without a dead letter destination is an error, a signal is none.
func (c *cell) checkLog(t *testing.T, want fate, topic string) {
	t.Helper()
	logged := c.service.log.at("error")
	rejects := with(logged, topic, "Record rejected")
	if (want == rejected) != (len(rejects) == 1) {
		t.Errorf("%d lines about a reject, and the record is %v", len(rejects), want)
	}
	if c.signal && len(logged) > len(rejects) {
		t.Errorf("a signal was logged as an error: %v", logged)
	}
}

// failingPublisher counts what is published.
type failingPublisher struct {
	mu        sync.Mutex
	fail      bool
	closed    bool
	published int
}

func (p *failingPublisher) Publish(_ string, messages ...*message.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return errors.New("published after Close")
	case p.fail:
		p.fail = false
		return errBoom
	}
	p.published += len(messages)
	return nil
}

func (p *failingPublisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

// TestRejectIsLogged with what one needs to find the record.
func TestRejectIsLogged(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, numbered(3)...)
	s := consume(t, config(brokertest.Group(t)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			return ackpolicy.RejectWith(errBoom)
		}
		return nil
	}, ackpolicy.Ack.Middleware)
	s.journal.wait(t, 3)
	s.stop()
	logged := s.log.at("error")
	if len(logged) != 1 || len(with(logged, topic, "partition=0", "offset=1", errBoom.Error())) != 1 {
		t.Errorf("want topic, partition, offset and reason in one line, got:\n%s", strings.Join(logged, "\n"))
	}
}

func TestDeliveryDescribesItsRecord(t *testing.T) {
	t.Parallel()
	stamp := anHourAgo()
	record := brokertest.KeyValue("key", "value")
	record.Timestamp = stamp
	topic := newTopic(t, 2)
	produce(t, topic, 1, numbered(1)...)
	produce(t, topic, 1, record)
	s := consume(t, config(brokertest.Group(t)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if same, ok := ackpolicy.FromContext(msg.Context()); !ok || same != d {
			return errors.New("FromContext and FromMessage differ")
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 2)
	s.stop()
	s.journal.want(t, "0#1", "1#1")
	plain, d := s.journal.all()[0], s.journal.all()[1]
	if d.Topic() != topic || d.Partition() != 1 || d.Offset() != 1 || string(d.Key()) != "key" || !d.Timestamp().Equal(stamp) {
		t.Errorf("got %s/%d@%d, key %q, %v", d.Topic(), d.Partition(), d.Offset(), d.Key(), d.Timestamp())
	}
	if plain.Key() != nil {
		t.Errorf("key of a record without one: %q", plain.Key())
	}
	if _, ok := ackpolicy.FromContext(context.Background()); ok {
		t.Error("a Delivery in an empty context")
	}
	if statuses := []ackpolicy.Status{plain.Status(), d.Status()}; !slices.Equal(statuses, []ackpolicy.Status{ackpolicy.Acked, ackpolicy.Acked}) {
		t.Errorf("statuses: %v", statuses)
	}
}
