package subscriber_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// contextual is an Unmarshaler that gives its messages a context.
type contextual struct {
	kafka.DefaultMarshaler
	give func(r *sarama.ConsumerMessage) context.Context
}

func (u contextual) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	msg, err := u.DefaultMarshaler.Unmarshal(r)
	if err == nil {
		msg.SetContext(u.give(r))
	}
	return msg, err
}

func unmarshalWith(give func(r *sarama.ConsumerMessage) context.Context) testkit.Option {
	return func(c *ackpolicy.SubscriberConfig) { c.Kafka.Unmarshaler = contextual{give: give} }
}

type ctxKey string

// The values that the Unmarshaler put into the message's context are there, beside ours and those of Subscribe's context.
func TestUnmarshalersValues(t *testing.T) {
	t.Parallel()
	type errKey struct{}
	cause := errors.New("no more")
	for name, give := range map[string]func(ctx context.Context) context.Context{
		"values": func(ctx context.Context) context.Context { return ctx },
		"one that can end": func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancelCause(ctx)
			t.Cleanup(func() { cancel(cause) })
			return ctx
		},
		"one that has ended": func(ctx context.Context) context.Context {
			ctx, cancel := context.WithTimeoutCause(ctx, time.Hour, cause)
			cancel()
			return ctx
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, brokertest.KeyValue("key", "0"))
			sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), unmarshalWith(func(r *sarama.ConsumerMessage) context.Context {
				ctx := context.WithValue(context.Background(), ctxKey("trace"), string(r.Key))
				return give(context.WithValue(ctx, ctxKey("both"), "the Unmarshaler's"))
			})), testkit.NewLog(t))
			ctx := context.WithValue(context.Background(), ctxKey("both"), "Subscribe's")
			messages, err := sub.Subscribe(context.WithValue(ctx, errKey{}, "Subscribe's"), topic)
			testkit.Check(t, err)
			msg := testkit.Await(t, "the message", messages)
			for key, want := range map[any]any{ctxKey("trace"): "key", ctxKey("both"): "the Unmarshaler's", errKey{}: "Subscribe's", ctxKey("none"): nil} {
				if got := msg.Context().Value(key); got != want {
					t.Errorf("%v: got %v, want %v", key, got, want)
				}
			}
			if key, ok := kafka.MessageKeyFromCtx(msg.Context()); !ok || string(key) != "key" {
				t.Errorf("watermill-kafka's key: %q", key)
			}
			if d, ok := ackpolicy.FromMessage(msg); !ok || d.Offset() != 0 {
				t.Error("no Delivery")
			}
			if err := msg.Context().Err(); err != nil {
				t.Errorf("the context has ended: %v", err)
			}
			derived, cancel := context.WithCancel(msg.Context())
			defer cancel()
			msg.Ack()
			testkit.Await(t, "the end of the context", msg.Context().Done())
			testkit.Await(t, "the end of a derived context", derived.Done())
		})
	}
}

// The context ends with the Unmarshaler's, and as every other when we end it.
func TestUnmarshalersContextEnds(t *testing.T) {
	t.Parallel()
	t.Run("by its deadline", func(t *testing.T) {
		t.Parallel()
		topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
		failed := make(chan error, 10)
		s := testkit.Consume(t, testkit.Config(brokertest.Group(t), unmarshalWith(func(*sarama.ConsumerMessage) context.Context {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			t.Cleanup(cancel)
			return ctx
		})), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
			if _, ok := msg.Context().Deadline(); !ok {
				t.Error("no deadline")
			}
			<-msg.Context().Done()
			failed <- msg.Context().Err()
			if d.Attempt() == 1 {
				return msg.Context().Err()
			}
			return nil
		}, ackpolicy.NackOnError.Middleware)
		if err := testkit.Await(t, "the end of the handler", failed); !errors.Is(err, context.DeadlineExceeded) || ackpolicy.IsSignal(err) {
			t.Errorf("ended with %v", err)
		}
		s.Wait(t, 2) // an ordinary failure
		s.Stop()
	})
	t.Run("by Close", func(t *testing.T) {
		t.Parallel()
		topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
		ended := make(chan error, 1)
		s := testkit.Consume(t, testkit.Config(brokertest.Group(t), testkit.DrainTimeout(50*time.Millisecond), unmarshalWith(func(*sarama.ConsumerMessage) context.Context {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			t.Cleanup(cancel)
			return ctx
		})), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
			<-msg.Context().Done()
			ended <- context.Cause(msg.Context())
			return msg.Context().Err()
		}, ackpolicy.RejectOnError.Middleware)
		s.Wait(t, 1)
		s.Stop()
		if cause := testkit.Await(t, "the end of the handler", ended); !errors.Is(cause, ackpolicy.ErrClosing) {
			t.Errorf("the cause is %v", cause)
		}
		if status := s.All()[0].Status(); status != ackpolicy.Revoked {
			t.Errorf("the record is %v", status)
		}
	})
}

// A context whose methods panic costs an attempt.
func TestUnmarshalersContextPanics(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	attempts := 0
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t), unmarshalWith(func(r *sarama.ConsumerMessage) context.Context {
		if r.Offset == 0 {
			if attempts++; attempts == 1 {
				return broken{context.Background()}
			}
		}
		return context.Background()
	})), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 2)
	s.Stop()
	s.Want(t, "0#2", "1#1")
}

type broken struct{ context.Context }

func (broken) Err() error { panic("bug in Err") }
