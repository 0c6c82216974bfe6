package semantics_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestDeliveryDescribesItsRecord(t *testing.T) {
	t.Parallel()
	stamp := testkit.AnHourAgo()
	record := brokertest.KeyValue("key", "value")
	record.Timestamp = stamp
	topic := testkit.NewTopic(t, 2)
	testkit.Produce(t, topic, 1, testkit.Numbered(1)...)
	testkit.Produce(t, topic, 1, record)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if same, ok := ackpolicy.FromContext(msg.Context()); !ok || same != d {
			return errors.New("FromContext and FromMessage differ")
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 2)
	s.Stop()
	s.Want(t, "0#1", "1#1")
	plain, d := s.All()[0], s.All()[1]
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

// A handler's context lives as long as its handler, whatever was settled and committed meanwhile.
func TestContextEndsWithItsHandler(t *testing.T) {
	t.Parallel()
	for _, v := range testkit.Verbs {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			contexts := make(chan context.Context, 2)
			s := testkit.Consume(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Attempt() > 1 {
					return nil
				}
				contexts <- msg.Context()
				v.Call(d)
				if v.Asks != testkit.Nacked {
					if err := brokertest.WaitCommitted(testkit.Shared.Addrs(), group, topic, 0, 1, testkit.Patience); err != nil {
						t.Error(err)
					}
				}
				if err := msg.Context().Err(); err != nil {
					t.Errorf("the context of a running handler: %v", context.Cause(msg.Context()))
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			ctx := testkit.Await(t, "the handler", contexts)
			testkit.Await(t, "the end of its context", ctx.Done())
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				t.Errorf("cause: %v", cause)
			}
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Stop()
		})
	}
}

// The stack that the Router logs leads to where the handler panicked.
func TestPanicKeepsItsStack(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(*message.Message, *ackpolicy.Delivery) error {
		explode()
		return nil
	}, ackpolicy.Ack.Middleware)
	testkit.Eventually(t, "the panic in the log", func() bool {
		return len(testkit.Containing(s.Log.At("error"), "Panic recovered", "boom", "semantics_test.explode")) == 1
	})
	s.Stop()
}

//go:noinline
func explode() { panic("boom") }
