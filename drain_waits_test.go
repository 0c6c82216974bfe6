package ackpolicy_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A nacked record with settled ones behind it is handed out again in the drain, if it comes due in time, and what waits
// for it in its lane after it: left, it would bring the settled ones with it.
func TestDrainWaitsForNackedRecords(t *testing.T) {
	t.Parallel()
	for name, order := range map[string]change{
		"key": ordering(ackpolicy.OrderByKey, 4), "unordered": ordering(ackpolicy.Unordered, 4),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a", "b", "a", "c")...)
			others := make(chan struct{})
			cfg := config(group, order, drainTimeout(time.Minute))
			cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
				if e.Offset == 3 {
					close(others)
				}
			}
			s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				switch {
				case d.Offset() == 0 && d.Attempt() < 3:
					return ackpolicy.NackAfter(time.Second)
				case d.Offset() == 2 && d.Attempt() == 1:
					return ackpolicy.NackAfter(0)
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			await(t, "the last record", others)
			s.stop()
			wantCommitted(t, group, topic, 0, 4)
			wantOnce(t, s, "0#1", "0#2", "0#3", "1#1", "2#1", "2#2", "3#1")
		})
	}
}

// One that fails each time does not hold the drain.
func TestDrainLeavesPoison(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	s := consume(t, config(group, ordering(ackpolicy.Unordered, 4), drainTimeout(2*time.Minute)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return ackpolicy.NackAfter(20 * time.Millisecond)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	waitAcked(t, s)
	began := time.Now()
	s.stop()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the drain took %v", took)
	}
	wantCommitted(t, group, topic, 0, 0)
}

func waitAcked(t *testing.T, s *service) {
	t.Helper()
	eventually(t, "an acked record", func() bool {
		return slices.ContainsFunc(s.journal.all(), func(d *ackpolicy.Delivery) bool { return d.Status() == ackpolicy.Acked })
	})
}

// wantOnce asserts which deliveries there were, in whatever order.
func wantOnce(t *testing.T, s *service, want ...string) {
	t.Helper()
	got := s.journal.names()
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("deliveries: got %v, want %v", got, want)
	}
}

// Nobody is there who would settle a record that is pending under Manual: a handler in AckSync behind it does not hold the drain.
func TestDrainEndsWaitsBehindAForgottenRecord(t *testing.T) {
	t.Parallel()
	cfg := config(brokertest.Group(t))
	answers := make(chan error, 1)
	group, topic := cfg.Kafka.ConsumerGroup, newTopic(t, 1, numbered(2)...)
	drainTimeout(patience / 2)(&cfg)
	released := make(chan ackpolicy.RevokedEvent, 1)
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released <- e }
	s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			answers <- d.AckSync(msg.Context())
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	waitAcked(t, s)
	s.stop()
	if err := await(t, "the end of AckSync", answers); !errors.Is(err, ackpolicy.ErrClosing) {
		t.Errorf("AckSync: %v", err)
	}
	if e := await(t, "the release", released); e.TimedOut || e.Pending != 1 {
		t.Errorf("released as %+v", e)
	}
	wantCommitted(t, group, topic, 0, 0)
}

// Nor do handlers that wait for commits with all slots keep a nacked record that comes due from its own.
func TestDrainFullOfWaits(t *testing.T) {
	t.Parallel()
	cfg := config(brokertest.Group(t), ordering(ackpolicy.OrderByKey, 2), drainTimeout(patience))
	group, topic := cfg.Kafka.ConsumerGroup, newTopic(t, 1, keyed("a", "b", "c")...)
	acked := make(chan struct{}, 10)
	released := make(chan ackpolicy.RevokedEvent, 10)
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
		if e.Offset != 0 {
			acked <- struct{}{}
		}
	}
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released <- e }
	consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() > 0 {
			return d.AckSync(msg.Context())
		}
		if d.Attempt() == 1 {
			return ackpolicy.NackAfter(5 * time.Second) // the other member comes before
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	await(t, "the first ack", acked)
	await(t, "the second ack", acked)
	consume(t, config(group), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.Manual.Middleware)
	if e := await(t, "the release", released); e.TimedOut || e.Offset != 3 {
		t.Errorf("released as %+v", e)
	}
}
