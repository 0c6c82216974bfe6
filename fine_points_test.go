package ackpolicy_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

func TestFirstSettlementWins(t *testing.T) {
	t.Parallel()
	calls := map[string]verb{"AckCumulative": (*ackpolicy.Delivery).AckCumulative}
	for _, v := range verbs {
		calls[v.name] = v.call
	}
	cases := []struct {
		first, second string
		want          bool // what the second answers
		status        ackpolicy.Status
	}{
		{"Ack", "Ack", true, ackpolicy.Acked},
		{"Ack", "AckCumulative", true, ackpolicy.Acked},
		{"Ack", "Nack", false, ackpolicy.Acked},
		{"Ack", "NackAfter", false, ackpolicy.Acked},
		{"Ack", "Reject", false, ackpolicy.Acked},
		{"AckCumulative", "Ack", true, ackpolicy.Acked},
		{"Nack", "Nack", true, ackpolicy.Nacked},
		{"Nack", "NackAfter", true, ackpolicy.Nacked},
		{"NackAfter", "Nack", true, ackpolicy.Nacked},
		{"Nack", "Ack", false, ackpolicy.Nacked},
		{"Nack", "AckCumulative", false, ackpolicy.Nacked},
		{"Nack", "Reject", false, ackpolicy.Nacked},
		{"Reject", "Reject", true, ackpolicy.Rejected},
		{"Reject", "Ack", false, ackpolicy.Rejected},
		{"Reject", "AckCumulative", false, ackpolicy.Rejected},
		{"Reject", "Nack", false, ackpolicy.Rejected},
	}
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(len(cases))...)
	s := consume(t, config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() > 1 {
			return nil
		}
		c := cases[d.Offset()]
		if status := d.Status(); status != ackpolicy.Pending {
			t.Errorf("before %s: %v", c.first, status)
		}
		if !calls[c.first](d) {
			t.Errorf("%s: false", c.first)
		}
		if got := calls[c.second](d); got != c.want || d.Status() != c.status {
			t.Errorf("%s, then %s: %v, %v", c.first, c.second, got, d.Status())
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	waitCommitted(t, group, topic, 0, int64(len(cases)))
	s.stop()
}

func TestIsSignal(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"nil":              {nil, false},
		"an error":         {errBoom, false},
		"canceled":         {context.Canceled, false},
		"ErrClosing":       {ackpolicy.ErrClosing, true},
		"ErrRevoked":       {fmt.Errorf("order 7: %w", ackpolicy.ErrRevoked), true},
		"a panic":          {middleware.RecoveredPanicError{V: "boom"}, false},
		"ErrAck":           {ackpolicy.ErrAck, true},
		"ErrNack":          {ackpolicy.ErrNack, true},
		"ErrReject":        {ackpolicy.ErrReject, true},
		"NackAfter":        {ackpolicy.NackAfter(time.Second), true},
		"RejectWith":       {ackpolicy.RejectWith(errBoom), true},
		"wrapped":          {fmt.Errorf("order 7: %w", ackpolicy.ErrAck), true},
		"joined":           {errors.Join(errBoom, fmt.Errorf("order 7: %w", ackpolicy.ErrAck)), true},
		"panicked":         {middleware.RecoveredPanicError{V: ackpolicy.ErrNack}, true},
		"panicked, deep":   {fmt.Errorf("order: %w", middleware.RecoveredPanicError{V: ackpolicy.NackAfter(1)}), true},
		"retried in vain":  {errors.Join(errBoom, ackpolicy.RejectWith(errBoom)), true},
		"formatted with v": {fmt.Errorf("order 7: %v", ackpolicy.ErrAck), false},
	} {
		if got := ackpolicy.IsSignal(c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, ok := range map[string]bool{
		"NackAfter is ErrNack":       errors.Is(ackpolicy.NackAfter(time.Second), ackpolicy.ErrNack),
		"RejectWith is ErrReject":    errors.Is(ackpolicy.RejectWith(errBoom), ackpolicy.ErrReject),
		"RejectWith is its reason":   errors.Is(ackpolicy.RejectWith(errBoom), errBoom),
		"NackAfter is not ErrReject": !errors.Is(ackpolicy.NackAfter(time.Second), ackpolicy.ErrReject),
		"NackAfter is not ErrAck":    !errors.Is(ackpolicy.NackAfter(time.Second), ackpolicy.ErrAck),
	} {
		if !ok {
			t.Errorf("not so: %s", name)
		}
	}
}

// A handler's context lives as long as its handler, whatever was settled and committed meanwhile.
func TestContextEndsWithItsHandler(t *testing.T) {
	t.Parallel()
	for _, v := range verbs {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
			contexts := make(chan context.Context, 2)
			s := consume(t, config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Attempt() > 1 {
					return nil
				}
				contexts <- msg.Context()
				v.call(d)
				if v.asks != nacked {
					if err := brokertest.WaitCommitted(shared.Addrs(), group, topic, 0, 1, patience); err != nil {
						t.Error(err)
					}
				}
				if err := msg.Context().Err(); err != nil {
					t.Errorf("the context of a running handler: %v", context.Cause(msg.Context()))
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			ctx := await(t, "the handler", contexts)
			await(t, "the end of its context", ctx.Done())
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				t.Errorf("cause: %v", cause)
			}
			waitCommitted(t, group, topic, 0, 1)
			s.stop()
		})
	}
}

// A policy for each handler; the one that has none is told about once.
func TestHandlers(t *testing.T) {
	t.Parallel()
	s, warnings, group := newService(t), newLog(t), brokertest.Group(t)
	sub := newSubscriber(t, config(group), s.log)
	s.router.AddMiddleware(ackpolicy.Middleware{
		Handlers: map[string]ackpolicy.Policy{"acks": ackpolicy.Ack, "nacks": ackpolicy.NackOnError},
		Logger:   warnings,
	}.Middleware)
	cases := map[string][]string{
		"acks":     {"0#1", "1#1"},
		"nacks":    {"0#1", "0#2", "1#1"},
		"unlisted": {"0#1", "1#1"},
	}
	topics, journals := map[string]string{}, map[string]*journal{}
	for handler := range cases {
		topics[handler], journals[handler] = newTopic(t, 1, numbered(2)...), &journal{}
		s.router.AddConsumerHandler(handler, topics[handler], sub, journals[handler].recorded(
			func(_ *message.Message, d *ackpolicy.Delivery) error {
				if early := d.Status() == ackpolicy.Acked; early != (handler == "unlisted") {
					t.Errorf("%s starts with a delivery that is %v", handler, d.Status())
				}
				if d.Offset() == 0 && d.Attempt() == 1 {
					return errBoom
				}
				return nil
			}))
	}
	s.start(t)
	for handler, want := range cases {
		journals[handler].wait(t, len(want))
	}
	s.stop()
	for handler, want := range cases {
		journals[handler].want(t, want...)
		wantCommitted(t, group, topics[handler], 0, 2)
	}
	if told := warnings.at("error", "info"); len(told) != 1 || len(with(told, "unlisted")) != 1 {
		t.Errorf("want one line about the handler without a policy, got %q", told)
	}
}

var (
	errPermanent = errors.New("permanent")
	errAckFirst  = errors.New("classified as AckFirst")
	errInvalid   = errors.New("classified as no policy at all")
	errManual    = errors.New("classified as Manual")
)

type classifier struct {
	mu   sync.Mutex
	seen []error
}

func (c *classifier) classify(err error) (ackpolicy.Policy, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, err)
	switch {
	case errors.Is(err, errPermanent):
		return ackpolicy.RejectOnError, true
	case errors.Is(err, errAckFirst):
		return ackpolicy.AckFirst, true
	case errors.Is(err, errInvalid):
		return ackpolicy.Policy(99), true
	case errors.Is(err, errManual):
		return ackpolicy.Manual, true
	}
	return ackpolicy.Manual, false
}

func TestClassify(t *testing.T) {
	t.Parallel()
	records := []struct {
		err  error
		want ackpolicy.Status // of the first delivery, under NackOnError
	}{
		{errBoom, ackpolicy.Nacked},
		{fmt.Errorf("order 7: %w", errPermanent), ackpolicy.Rejected},
		{errAckFirst, ackpolicy.Nacked},
		{errInvalid, ackpolicy.Nacked},
		{ackpolicy.ErrReject, ackpolicy.Rejected},
		{nil, ackpolicy.Acked},
		{errManual, ackpolicy.Revoked},
	}
	for _, policy := range []ackpolicy.Policy{ackpolicy.NackOnError, ackpolicy.AckFirst} {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(len(records))...)
			var c classifier
			s := consume(t, config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Attempt() > 1 {
					return nil
				}
				return records[d.Offset()].err
			}, ackpolicy.Middleware{Policy: policy, Classify: c.classify}.Middleware)
			if policy == ackpolicy.AckFirst {
				s.journal.wait(t, len(records))
				s.stop()
				wantCommitted(t, group, topic, 0, int64(len(records)))
				if len(c.seen) > 0 {
					t.Errorf("Classify was asked about %v", c.seen)
				}
				return
			}
			s.journal.wait(t, len(records)+3)
			s.stop()
			wantCommitted(t, group, topic, 0, int64(len(records)-1))
			for _, d := range s.journal.all() {
				if want := records[d.Offset()].want; d.Attempt() == 1 && d.Status() != want {
					t.Errorf("%v: %v, want %v", records[d.Offset()].err, d.Status(), want)
				}
			}
			if want := []error{errBoom, records[1].err, errAckFirst, errInvalid, errManual}; !slices.Equal(c.seen, want) {
				t.Errorf("Classify was asked about %v, want %v", c.seen, want)
			}
		})
	}
}

// The stack that the Router logs leads to where the handler panicked.
func TestPanicKeepsItsStack(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, numbered(1)...)
	s := consume(t, config(brokertest.Group(t)), topic, func(*message.Message, *ackpolicy.Delivery) error {
		explode()
		return nil
	}, ackpolicy.Ack.Middleware)
	eventually(t, "the panic in the log", func() bool {
		return len(with(s.log.at("error"), "Panic recovered", "boom", "ackpolicy_test.explode")) == 1
	})
	s.stop()
}

//go:noinline
func explode() { panic("boom") }

// Without a consumer group nothing can be committed; all else holds.
func TestNoConsumerGroup(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, numbered(4)...)
	s := consume(t, config(""), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		switch name(d) {
		case "0#1":
			d.Ack()
		case "1#1":
			return ackpolicy.ErrReject
		case "2#1":
			return errBoom
		case "3#1":
			if err := d.AckSync(msg.Context()); !errors.Is(err, ackpolicy.ErrNoConsumerGroup) {
				t.Errorf("AckSync: %v", err)
			}
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 5)
	s.stop()
	s.journal.want(t, "0#1", "1#1", "2#1", "2#2", "3#1")
	var statuses []ackpolicy.Status
	for _, d := range s.journal.all() {
		statuses = append(statuses, d.Status())
	}
	want := []ackpolicy.Status{ackpolicy.Acked, ackpolicy.Rejected, ackpolicy.Nacked, ackpolicy.Acked, ackpolicy.Acked}
	if !slices.Equal(statuses, want) {
		t.Errorf("statuses: got %v, want %v", statuses, want)
	}
}
