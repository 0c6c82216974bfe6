package semantics_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestIsSignal(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"nil":               {nil, false},
		"an error":          {testkit.ErrBoom, false},
		"canceled":          {context.Canceled, false},
		"ErrClosing":        {ackpolicy.ErrClosing, true},
		"ErrRevoked":        {fmt.Errorf("order 7: %w", ackpolicy.ErrRevoked), true},
		"a panic":           {middleware.RecoveredPanicError{V: "boom"}, false},
		"ErrAck":            {ackpolicy.ErrAck, true},
		"ErrNack":           {ackpolicy.ErrNack, true},
		"ErrReject":         {ackpolicy.ErrReject, true},
		"NackAfter":         {ackpolicy.NackAfter(time.Second), true},
		"RejectWith":        {ackpolicy.RejectWith(testkit.ErrBoom), true},
		"wrapped":           {fmt.Errorf("order 7: %w", ackpolicy.ErrAck), true},
		"joined":            {errors.Join(testkit.ErrBoom, fmt.Errorf("order 7: %w", ackpolicy.ErrAck)), true},
		"panicked":          {middleware.RecoveredPanicError{V: ackpolicy.ErrNack}, true},
		"panicked, deep":    {fmt.Errorf("order: %w", middleware.RecoveredPanicError{V: ackpolicy.NackAfter(1)}), true},
		"retries exhausted": {errors.Join(testkit.ErrBoom, ackpolicy.RejectWith(testkit.ErrBoom)), true},
		"formatted with v":  {fmt.Errorf("order 7: %v", ackpolicy.ErrAck), false},
	} {
		if got := ackpolicy.IsSignal(c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, ok := range map[string]bool{
		"NackAfter is ErrNack":       errors.Is(ackpolicy.NackAfter(time.Second), ackpolicy.ErrNack),
		"RejectWith is ErrReject":    errors.Is(ackpolicy.RejectWith(testkit.ErrBoom), ackpolicy.ErrReject),
		"RejectWith is its reason":   errors.Is(ackpolicy.RejectWith(testkit.ErrBoom), testkit.ErrBoom),
		"NackAfter is not ErrReject": !errors.Is(ackpolicy.NackAfter(time.Second), ackpolicy.ErrReject),
		"NackAfter is not ErrAck":    !errors.Is(ackpolicy.NackAfter(time.Second), ackpolicy.ErrAck),
	} {
		if !ok {
			t.Errorf("not so: %s", name)
		}
	}
}

// domainError is an application's error that is a signal by its methods.
type domainError struct {
	text   string
	signal error
	deep   bool // errors.As finds the signal, too
}

func (e domainError) Error() string { return e.text }

func (e domainError) Is(target error) bool { return errors.Is(e.signal, target) }

func (e domainError) As(target any) bool { return e.deep && errors.As(e.signal, target) }

// An error of the application's own type is a signal if its method Is says so, at any depth; As brings delay and reason.
func TestSignalsByIs(t *testing.T) {
	t.Parallel()
	reject := domainError{text: "customer is blocked", signal: ackpolicy.ErrReject}
	nack := domainError{text: "busy", signal: ackpolicy.ErrNack}
	ack := domainError{text: "duplicate", signal: ackpolicy.ErrAck}
	reason := domainError{text: "text", signal: ackpolicy.RejectWith(testkit.ErrBoom), deep: true}
	for name, c := range map[string]struct {
		err    error
		want   ackpolicy.Status
		reason string // of the reject
	}{
		"reject":          {err: reject, want: ackpolicy.Rejected, reason: "customer is blocked"},
		"nack":            {err: nack, want: ackpolicy.Nacked},
		"ack":             {err: ack, want: ackpolicy.Acked},
		"wrapped":         {err: fmt.Errorf("order 7: %w", reject), want: ackpolicy.Rejected, reason: "customer is blocked"},
		"joined, nack":    {err: errors.Join(ack, testkit.ErrBoom, reject, nack), want: ackpolicy.Nacked},
		"joined, reject":  {err: errors.Join(ack, testkit.ErrBoom, reject), want: ackpolicy.Rejected, reason: "customer is blocked"},
		"beside a plain":  {err: errors.Join(reject, ackpolicy.ErrNack), want: ackpolicy.Nacked},
		"a reason, by As": {err: fmt.Errorf("order 7: %w", reason), want: ackpolicy.Rejected, reason: testkit.ErrBoom.Error()},
		"in a recovered panic": {
			err: middleware.RecoveredPanicError{V: fmt.Errorf("order 7: %w", reject)}, want: ackpolicy.Rejected, reason: "customer is blocked",
		},
	} {
		for _, how := range []string{"returned", "panicked"} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				if !ackpolicy.IsSignal(c.err) {
					t.Error("IsSignal says no")
				}
				statuses := map[error]ackpolicy.Status{ackpolicy.ErrAck: ackpolicy.Acked, ackpolicy.ErrNack: ackpolicy.Nacked, ackpolicy.ErrReject: ackpolicy.Rejected}
				if sig := ackpolicy.SignalOf(c.err); statuses[sig] != c.want {
					t.Errorf("SignalOf: %v", sig)
				}
				topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
				settled := make(chan ackpolicy.SettledEvent, 10)
				cfg := testkit.Config(brokertest.Group(t))
				cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) { settled <- e }
				s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
					if d.Offset() > 0 || d.Attempt() > 1 {
						return nil
					}
					if how == "panicked" {
						panic(c.err)
					}
					return c.err
				}, ackpolicy.Manual.Middleware)
				e := testkit.Await(t, "the settlement", settled)
				if e.Offset != 0 || e.Status != c.want || c.reason != "" && e.Reason.Error() != c.reason {
					t.Errorf("%+v", e)
				}
				s.Stop()
			})
		}
	}
}

// A delay that As brings is kept.
func TestSignalDelayByAs(t *testing.T) {
	t.Parallel()
	const delay = 300 * time.Millisecond
	topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	var first time.Time
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() == 1 {
			first = time.Now()
			return fmt.Errorf("order 7: %w", domainError{text: "busy", signal: ackpolicy.NackAfter(delay), deep: true})
		}
		return nil
	}, ackpolicy.RejectOnError.Middleware)
	s.Wait(t, 2)
	if waited := time.Since(first); waited < delay {
		t.Errorf("came again after %v", waited)
	}
	s.Stop()
}

// An error that wraps itself ends the search for signals.
func TestSignalSearchEnds(t *testing.T) {
	e := &loopError{}
	e.inner = e
	if ackpolicy.IsSignal(e) {
		t.Error("a signal")
	}
}

type loopError struct{ inner error }

func (*loopError) Error() string { return "loop" }

func (e *loopError) Unwrap() error { return e.inner }

// Settle carries a signal out where the middleware does not see the handler's error.
func TestSettle(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want ackpolicy.Status
	}{
		"no error":           {nil, ackpolicy.Acked}, // by the policy
		"an error":           {testkit.ErrBoom, ackpolicy.Acked},
		"ErrAck":             {ackpolicy.ErrAck, ackpolicy.Acked},
		"NackAfter, wrapped": {fmt.Errorf("order 7: %w", ackpolicy.NackAfter(0)), ackpolicy.Nacked},
		"an error's Is":      {domainError{text: "gone", signal: ackpolicy.ErrReject}, ackpolicy.Rejected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			s := testkit.Consume(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Attempt() > 1 {
					return nil
				}
				if err := ackpolicy.Settle(msg.Context(), c.err); err != c.err {
					t.Errorf("returned %v", err)
				}
				return nil // as what replaces the error would
			}, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 1)
			if got := s.All()[0].Status(); got != c.want {
				t.Errorf("status %v, want %v", got, c.want)
			}
		})
	}
	if err := ackpolicy.Settle(t.Context(), ackpolicy.ErrNack); !errors.Is(err, ackpolicy.ErrNack) {
		t.Errorf("without a Delivery: %v", err)
	}
}
