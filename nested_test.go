package ackpolicy_test

import (
	"context"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Where two of our middlewares wrap one handler, the inner one decides.
func TestInnerPolicyCounts(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	s := newService(t)
	s.router.AddMiddleware(ackpolicy.Ack.Middleware)
	h := s.router.AddConsumerHandler("handler", topic, newSubscriber(t, config(group), s.log), s.recorded(func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 && d.Attempt() == 1 {
			return errBoom
		}
		return nil
	}))
	h.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.start(t)
	waitCommitted(t, group, topic, 0, 2)
	s.stop()
	s.journal.want(t, "0#1", "0#2", "1#1")
}

func TestInnerPolicyCountsOnOtherSubscribers(t *testing.T) {
	t.Parallel()
	ps := gochannel.NewGoChannel(gochannel.Config{}, nil)
	s := newService(t)
	s.router.AddMiddleware(ackpolicy.RejectOnError.Middleware)
	handled := make(chan struct{}, 10)
	h := s.router.AddConsumerHandler("handler", "t", ps, func(*message.Message) error {
		handled <- struct{}{}
		if len(handled) == 1 {
			return errBoom
		}
		return nil
	})
	h.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.start(t)
	check(t, ps.Publish("t", message.NewMessage("1", nil)))
	eventually(t, "the second delivery", func() bool { return len(handled) == 2 })
	s.stop()
}

// An outer AckFirst leaves an inner policy nothing to decide, which is told.
func TestOuterAckFirstIsTold(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(3)...)
	s := newService(t)
	s.router.AddMiddleware(ackpolicy.Middleware{}.Middleware)
	h := s.router.AddConsumerHandler("handler", topic, newSubscriber(t, config(group), s.log),
		s.recorded(func(*message.Message, *ackpolicy.Delivery) error { return nil }))
	h.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.start(t)
	s.journal.wait(t, 3)
	s.stop()
	if lines := with(s.log.at("error"), "has no effect"); len(lines) != 1 {
		t.Errorf("told %d times: %v", len(lines), lines)
	}
}

// Under AckFirst a handler does not run where its ack was refused: the record has
// another owner by now.
func TestAckFirstRefused(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
	var ran atomic.Int32
	came := make(chan *ackpolicy.Delivery, 1)
	failed := make(chan error, 1)
	slow := func(h message.HandlerFunc) message.HandlerFunc { // as a throttle might be
		return func(msg *message.Message) ([]*message.Message, error) {
			d, _ := ackpolicy.FromMessage(msg)
			came <- d
			<-msg.Context().Done()
			produced, err := h(msg)
			failed <- err
			return produced, err
		}
	}
	s := consume(t, config(group, drainTimeout(100*time.Millisecond)), topic, func(*message.Message, *ackpolicy.Delivery) error {
		ran.Add(1)
		return nil
	}, slow, ackpolicy.AckFirst.Middleware)
	d := await(t, "the message", came)
	s.stop()
	if err := await(t, "the middleware's answer", failed); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("got %v", err)
	}
	if ran.Load() != 0 || d.Status() != ackpolicy.Revoked {
		t.Errorf("the handler ran %d times, status %v", ran.Load(), d.Status())
	}
	wantCommitted(t, group, topic, 0, 0)
}

// A delay may be longer than time goes on.
func TestNackForEver(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(200)...)
	s := consume(t, config(group, ordering(ackpolicy.Unordered, 1)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return ackpolicy.NackAfter(math.MaxInt64)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 200)
	s.stop()
	for _, d := range s.journal.all() {
		if d.Attempt() > 1 {
			t.Fatalf("%s", name(d))
		}
	}
}

// A revoked record is never reported as stored, and a stored one not as lost.
func TestAckSyncTellsTheTruth(t *testing.T) {
	t.Parallel()
	for range 10 {
		topic := newTopic(t, 1, numbered(1)...)
		sub := newSubscriber(t, config(brokertest.Group(t), drainTimeout(time.Millisecond)), nil)
		out, err := sub.Subscribe(context.Background(), topic)
		check(t, err)
		d, _ := ackpolicy.FromMessage(await(t, "a message", out))
		go sub.Close()
		for d.Status() == ackpolicy.Pending {
		}
		if err := d.AckSync(context.Background()); err == nil {
			t.Fatal("AckSync of a revoked record returned nil")
		}
		check(t, sub.Close())
	}
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
	s := consume(t, config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		return d.AckSync(msg.Context())
	}, ackpolicy.Manual.Middleware)
	d := s.journal.wait(t, 1)
	waitCommitted(t, group, topic, 0, 1)
	s.stop()
	check(t, d.AckSync(context.Background()))
}
