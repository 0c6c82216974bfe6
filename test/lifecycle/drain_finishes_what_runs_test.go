package lifecycle_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A handler that outlives the drain: it is notified first, cancelled with the cause at the end, and nothing settles after that.
func TestDrainEnds(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	verdicts := make(chan bool, 1)
	s := testkit.Consume(t, testkit.Config(group, testkit.DrainTimeout(300*time.Millisecond)), topic,
		func(msg *message.Message, d *ackpolicy.Delivery) error {
			if err := testkit.Until(msg.Context(), d.Draining()); err != nil {
				t.Errorf("cancelled before Draining closed: %v", err)
			}
			<-msg.Context().Done()
			if cause := context.Cause(msg.Context()); !errors.Is(cause, ackpolicy.ErrClosing) {
				t.Errorf("cause: %v", cause)
			}
			testkit.Poll(func() bool { return d.Status() != ackpolicy.Pending })
			verdicts <- d.Ack()
			return nil
		}, ackpolicy.NackOnError.Middleware)
	d := s.Wait(t, 1)
	select {
	case <-d.Draining():
		t.Error("drains before the stop")
	default:
	}
	s.Stop()
	if testkit.Await(t, "the handler", verdicts) || d.Status() != ackpolicy.Revoked {
		t.Errorf("settled after the end: %v", d.Status())
	}
	s.Want(t, "0#1")
	testkit.WantCommitted(t, group, topic, 0, 0)
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
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
			s := testkit.Consume(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if err := testkit.Until(msg.Context(), d.Draining()); err != nil {
					return err
				}
				err := finish(msg.Context(), d)
				if err != nil {
					t.Error(err)
				}
				return err
			}, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 1)
			s.Stop()
			s.Want(t, "0#1")
			testkit.WantCommitted(t, group, topic, 0, 1)
		})
	}
}

// An application that settles in batches under Manual flushes when Draining closes, and the drain waits for it.
func TestDrainWaitsForABatch(t *testing.T) {
	t.Parallel()
	const records = 10
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	var batch struct {
		sync.Mutex
		once       sync.Once
		deliveries []*ackpolicy.Delivery
	}
	flushed := make(chan struct{})
	s := testkit.Consume(t, testkit.Config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
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
						t.Errorf("%s: %v", testkit.Name(d), d.Status())
					}
				}
			}()
		})
		return nil
	}, ackpolicy.Manual.Middleware)
	s.Wait(t, records)
	s.Stop()
	testkit.Await(t, "the flush", flushed)
	testkit.WantCommitted(t, group, topic, 0, records)
}

// The ways to stop a Router: all of them commit what is settled before Run returns.
func TestWaysToStop(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(s *testkit.Service, h *message.Handler, cancel func()){
		"Router.Close":      func(s *testkit.Service, _ *message.Handler, _ func()) { _ = s.Router.Close() },
		"context cancelled": func(_ *testkit.Service, _ *message.Handler, cancel func()) { cancel() },
		"Handler.Stop":      func(_ *testkit.Service, h *message.Handler, _ func()) { h.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const records = 20
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
			s := testkit.NewService(t)
			s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			last := make(chan struct{})
			// CommitInterval is an hour: only the stop commits.
			sub := testkit.NewSubscriber(t, testkit.Config(group, func(c *ackpolicy.SubscriberConfig) { c.CommitInterval = time.Hour }), s.Log)
			h := s.Router.AddConsumerHandler("handler", topic, sub, s.Recorded(
				func(msg *message.Message, d *ackpolicy.Delivery) error {
					if d.Offset() == records-1 {
						close(last)
						return testkit.Until(msg.Context(), d.Draining())
					}
					return nil
				}))
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() {
				defer close(s.Ended)
				if err := s.Router.Run(ctx); err != nil {
					t.Error("Run:", err)
				}
				testkit.WantCommitted(t, group, topic, 0, records)
			}()
			t.Cleanup(s.Stop)
			testkit.Await(t, "the last record", last)
			stop(s, h, cancel)
			testkit.Await(t, "the end of Run", s.Ended)
			if len(s.All()) != records {
				t.Errorf("deliveries: %v", s.Names())
			}
		})
	}
}
