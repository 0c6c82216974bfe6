package ackpolicy_test

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Close, of the Subscriber or of the Router, may be called from any hook: it returns, and everything that was settled is stored.
func TestCloseFromAHook(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(h *ackpolicy.Hooks, stop func()){
		"Assigned":  func(h *ackpolicy.Hooks, stop func()) { h.Assigned = func(ackpolicy.AssignedEvent) { stop() } },
		"Settled":   func(h *ackpolicy.Hooks, stop func()) { h.Settled = func(ackpolicy.SettledEvent) { stop() } },
		"Committed": func(h *ackpolicy.Hooks, stop func()) { h.Committed = func(ackpolicy.CommittedEvent) { stop() } },
		"Revoked":   func(h *ackpolicy.Hooks, stop func()) { h.Revoked = func(ackpolicy.RevokedEvent) { stop() } },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 2, numbered(3)...)
			var sub atomic.Pointer[ackpolicy.Subscriber]
			returned := make(chan error, 1)
			var once sync.Once
			cfg := config(group)
			set(&cfg.Hooks, func() {
				once.Do(func() {
					began := time.Now()
					eventually(t, "the subscriber", func() bool { return sub.Load() != nil })
					returned <- sub.Load().Close()
					if took := time.Since(began); took > cfg.DrainTimeout+5*time.Second {
						t.Errorf("Close took %v", took)
					}
				})
			})
			s := newService(t)
			subscriber := newSubscriber(t, cfg, s.log)
			s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			s.router.AddConsumerHandler("handler", topic, subscriber, s.recorded(func(*message.Message, *ackpolicy.Delivery) error { return nil }))
			s.start(t)
			s.journal.wait(t, 1)
			sub.Store(subscriber)
			if name == "Revoked" {
				go s.stop()
			}
			check(t, await(t, "Close, called from the hook", returned))
			s.stop()
			wantCommitted(t, group, topic, 0, int64(len(s.journal.all())))
		})
	}
}

// A hook that never returns costs no more than its bound, neither time nor memory, and the log says which one it is.
func TestHookThatNeverReturns(t *testing.T) {
	t.Parallel()
	const records = 10_000 // more than may wait
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(records)...)
	forever := make(chan struct{})
	t.Cleanup(func() { close(forever) })
	cfg := config(group, ordering(ackpolicy.Unordered, 64))
	var calls atomic.Int32
	cfg.Hooks.Settled = func(ackpolicy.SettledEvent) { calls.Add(1); <-forever }
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
	waitCommitted(t, group, topic, 0, records)
	began := time.Now()
	s.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if calls.Load() != 1 {
		t.Errorf("the hook was called %d times at once", calls.Load())
	}
	logged := s.log.at("error")
	if len(with(logged, "events are dropped", "Hooks.Settled")) == 0 || len(with(logged, "Closed without waiting for a hook", "Hooks.Settled")) == 0 {
		t.Errorf("the log does not name the hook:\n%s", strings.Join(logged, "\n"))
	}
}

// Hooks are called in the order of the events, one at a time, and all of them before Close returns.
func TestHooksInOrder(t *testing.T) {
	t.Parallel()
	const records = 3000
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(records)...)
	var told []string // no lock: one call at a time, and Close follows the last
	var next int64
	cfg := config(group)
	cfg.Hooks.Assigned = func(ackpolicy.AssignedEvent) { told = append(told, "assigned") }
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
		if e.Offset != next {
			t.Errorf("offset %d where %d is next", e.Offset, next)
		}
		next++
		if e.Offset%500 == 0 {
			runtime.Gosched()
		}
	}
	cfg.Hooks.Committed = func(e ackpolicy.CommittedEvent) {
		if e.Offset > next {
			t.Errorf("committed %d before %d was settled", e.Offset, next)
		}
	}
	cfg.Hooks.Revoked = func(ackpolicy.RevokedEvent) { told = append(told, "revoked") }
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, records)
	s.stop()
	if !slices.Equal(told, []string{"assigned", "revoked"}) || next != records {
		t.Errorf("%v, %d settled", told, next)
	}
}

// A hook may settle records.
func TestHookSettles(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	cfg := config(group)
	var s *service
	ready := make(chan struct{})
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
		<-ready
		if e.Offset == 1 {
			s.journal.all()[0].Reject(errors.New("record 1 says so"))
		}
	}
	s = consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			d.Ack()
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	close(ready)
	waitCommitted(t, group, topic, 0, 2)
	s.stop()
	if status := s.journal.all()[0].Status(); status != ackpolicy.Rejected {
		t.Errorf("status: %v", status)
	}
}

// Code of the application that fails for each record does not write a line for each.
func TestBrokenCodeInTheLog(t *testing.T) {
	t.Parallel()
	const records = 100
	topic := newTopic(t, 1, numbered(records)...)
	cfg := config(brokertest.Group(t))
	cfg.Hooks.Settled = func(ackpolicy.SettledEvent) { panic("hook") }
	cfg.Backoff = func(int, error) time.Duration { panic("backoff") }
	cfg.Kafka.NackResendSleep = time.Millisecond
	policy := ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Classify: func(error) (ackpolicy.Policy, bool) { panic("classify") }}
	began := time.Now()
	s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() == 1 {
			return errBoom
		}
		return nil
	}, policy.Middleware)
	waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
	s.stop()
	most := 1 + int(time.Since(began)/(10*time.Second))
	for _, line := range []string{"A hook failed", "Backoff failed", "Code of the application failed"} {
		if n := len(with(s.log.at("error"), line, "failing_for=")); n == 0 || n > most {
			t.Errorf("%s: %d lines for %d records, want 1 to %d", line, n, records, most)
		}
	}
}
