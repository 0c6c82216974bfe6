package ackpolicy_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A handler that outlives the drain: told first, cancelled with the cause at the end, and nothing settles after that.
func TestDrainEnds(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	verdicts := make(chan bool, 1)
	s := consume(t, config(group, drainTimeout(300*time.Millisecond)), topic,
		func(msg *message.Message, d *ackpolicy.Delivery) error {
			if err := until(msg.Context(), d.Draining()); err != nil {
				t.Errorf("cancelled before Draining closed: %v", err)
			}
			<-msg.Context().Done()
			if cause := context.Cause(msg.Context()); !errors.Is(cause, ackpolicy.ErrClosing) {
				t.Errorf("cause: %v", cause)
			}
			poll(func() bool { return d.Status() != ackpolicy.Pending })
			verdicts <- d.Ack()
			return nil
		}, ackpolicy.NackOnError.Middleware)
	d := s.journal.wait(t, 1)
	select {
	case <-d.Draining():
		t.Error("drains before the stop")
	default:
	}
	s.stop()
	if await(t, "the handler", verdicts) || d.Status() != ackpolicy.Revoked {
		t.Errorf("settled after the end: %v", d.Status())
	}
	s.journal.want(t, "0#1")
	wantCommitted(t, group, topic, 0, 0)
}

// What is running when the drain starts may finish, settle and wait for its commit.
func TestDrainLetsHandlersFinish(t *testing.T) {
	t.Parallel()
	for name, finish := range map[string]func(context.Context, *ackpolicy.Delivery) error{
		"by returning": func(context.Context, *ackpolicy.Delivery) error { return nil },
		"AckSync":      func(ctx context.Context, d *ackpolicy.Delivery) error { return d.AckSync(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
			s := consume(t, config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if err := until(msg.Context(), d.Draining()); err != nil {
					return err
				}
				err := finish(msg.Context(), d)
				if err != nil {
					t.Error(err)
				}
				return err
			}, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 1)
			s.stop()
			s.journal.want(t, "0#1")
			wantCommitted(t, group, topic, 0, 1)
		})
	}
}

// An application that settles in batches under Manual flushes when Draining closes, and the drain waits for it.
func TestDrainWaitsForABatch(t *testing.T) {
	t.Parallel()
	const records = 10
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(records)...)
	var batch struct {
		sync.Mutex
		once       sync.Once
		deliveries []*ackpolicy.Delivery
	}
	flushed := make(chan struct{})
	s := consume(t, config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		draining := d.Draining()
		batch.Lock()
		defer batch.Unlock()
		batch.deliveries = append(batch.deliveries, d)
		batch.once.Do(func() {
			go func() {
				defer close(flushed)
				<-draining
				batch.Lock()
				defer batch.Unlock()
				for _, d := range batch.deliveries {
					if !d.Ack() {
						t.Errorf("%s: %v", name(d), d.Status())
					}
				}
			}()
		})
		return nil
	}, ackpolicy.Manual.Middleware)
	s.journal.wait(t, records)
	s.stop()
	await(t, "the flush", flushed)
	wantCommitted(t, group, topic, 0, records)
}

// Where nobody settles late, a pending record does not hold up the end: the default DrainTimeout is 10 s.
func TestDrainDoesNotWaitForTheForgotten(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	s := consume(t, config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			d.Ack()
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.journal.wait(t, 2)
	started := time.Now()
	s.stop()
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	wantCommitted(t, group, topic, 0, 0)
}

// The ways to stop a Router: all of them commit what is settled before Run returns.
func TestWaysToStop(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(s *service, h *message.Handler, cancel func()){
		"Router.Close":      func(s *service, _ *message.Handler, _ func()) { _ = s.router.Close() },
		"context cancelled": func(_ *service, _ *message.Handler, cancel func()) { cancel() },
		"Handler.Stop":      func(_ *service, h *message.Handler, _ func()) { h.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const records = 20
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(records)...)
			s := newService(t)
			s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			last := make(chan struct{})
			// CommitInterval is an hour: only the stop commits.
			sub := newSubscriber(t, config(group, func(c *ackpolicy.SubscriberConfig) { c.CommitInterval = time.Hour }), s.log)
			h := s.router.AddConsumerHandler("handler", topic, sub, s.recorded(
				func(msg *message.Message, d *ackpolicy.Delivery) error {
					if d.Offset() == records-1 {
						close(last)
						return until(msg.Context(), d.Draining())
					}
					return nil
				}))
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() {
				defer close(s.ended)
				if err := s.router.Run(ctx); err != nil {
					t.Error("Run:", err)
				}
				wantCommitted(t, group, topic, 0, records)
			}()
			t.Cleanup(s.stop)
			await(t, "the last record", last)
			stop(s, h, cancel)
			await(t, "the end of Run", s.ended)
			if len(s.journal.all()) != records {
				t.Errorf("deliveries: %v", s.journal.names())
			}
		})
	}
}
