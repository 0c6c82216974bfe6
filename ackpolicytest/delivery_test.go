package ackpolicytest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

var errBoom = errors.New("boom")

func newMessage() *message.Message { return message.NewMessage("1", []byte("payload")) }

func returns(err error) message.NoPublishHandlerFunc {
	return func(*message.Message) error { return err }
}

// A handler's end is settled as on Kafka.
func TestHandleByPolicy(t *testing.T) {
	const resend = 100 * time.Millisecond
	var (
		acked    = func(t testing.TB, s ackpolicytest.Settlement) { s.WantAcked(t, 1) }
		rejected = func(t testing.TB, s ackpolicytest.Settlement) { s.WantRejected(t, 1, errBoom) }
		nacked   = func(after time.Duration) func(testing.TB, ackpolicytest.Settlement) {
			return func(t testing.TB, s ackpolicytest.Settlement) { s.WantNacked(t, 1, after) }
		}
		pending = func(t testing.TB, s ackpolicytest.Settlement) { s.WantStatus(t, ackpolicy.Pending) }
	)
	type want = func(testing.TB, ackpolicytest.Settlement)
	panics := func(*message.Message) error { panic(errBoom) }
	for _, row := range []struct {
		name                                    string
		handler                                 message.NoPublishHandlerFunc
		ack, rejectOnError, nackOnError, manual want
	}{
		{"success", returns(nil), acked, acked, acked, pending},
		{"an error", returns(errBoom), acked, rejected, nacked(resend), pending},
		{"a panic", panics, acked, rejected, nacked(resend), pending},
		{"ErrAck", returns(fmt.Errorf("order 7: %w", ackpolicy.ErrAck)), acked, acked, acked, acked},
		{"NackAfter", returns(ackpolicy.NackAfter(time.Hour)), nacked(time.Hour), nacked(time.Hour), nacked(time.Hour), nacked(time.Hour)},
		{"RejectWith", returns(ackpolicy.RejectWith(errBoom)), rejected, rejected, rejected, rejected},
	} {
		for policy, want := range map[ackpolicy.Policy]want{
			ackpolicy.AckFirst: acked, ackpolicy.Ack: row.ack, ackpolicy.RejectOnError: row.rejectOnError,
			ackpolicy.NackOnError: row.nackOnError, ackpolicy.Manual: row.manual,
		} {
			t.Run(row.name+" "+policy.String(), func(t *testing.T) {
				d := ackpolicytest.New(newMessage(), ackpolicytest.Record{})
				_ = d.HandleNoPublish(row.handler, policy.Middleware)
				want(t, d.Settlement())
			})
		}
	}
}

// The handler sees the record that the test describes.
func TestDescribedRecord(t *testing.T) {
	type key struct{}
	msg := newMessage()
	msg.SetContext(context.WithValue(context.Background(), key{}, "value"))
	at := time.Now().Truncate(time.Millisecond)
	d := ackpolicytest.New(msg, ackpolicytest.Record{
		Topic: "orders", Partition: 3, Offset: 42, Key: []byte("k"), Timestamp: at, Attempt: 5, Handler: "ship",
	})
	err := d.HandleNoPublish(func(msg *message.Message) error {
		got, ok := ackpolicy.FromMessage(msg)
		if !ok || got != d.Delivery {
			t.Fatalf("FromMessage: %v, %v", got, ok)
		}
		if got.Topic() != "orders" || got.Partition() != 3 || got.Offset() != 42 || string(got.Key()) != "k" ||
			!got.Timestamp().Equal(at) || got.Attempt() != 5 || got.Group() != "group" {
			t.Errorf("the delivery is of %s %d/%d, key %s, %v, attempt %d, group %s",
				got.Topic(), got.Partition(), got.Offset(), got.Key(), got.Timestamp(), got.Attempt(), got.Group())
		}
		ctx := msg.Context()
		if offset, ok := kafka.MessagePartitionOffsetFromCtx(ctx); offset != 42 || !ok {
			t.Errorf("the context has offset %d, %v", offset, ok)
		}
		if name := message.HandlerNameFromCtx(ctx); name != "ship" || ctx.Value(key{}) != "value" {
			t.Errorf("the context has handler %q and value %v", name, ctx.Value(key{}))
		}
		return nil
	}, ackpolicy.Middleware{Policy: ackpolicy.Manual, Handlers: map[string]ackpolicy.Policy{"ship": ackpolicy.NackOnError}}.Middleware)
	if err != nil {
		t.Error(err)
	}
	d.Settlement().WantAcked(t, 5)
	if msg.Context().Err() == nil {
		t.Error("the context has not ended with its handler")
	}
}

// What the Subscriber's configuration decides about a nack.
func TestConfigured(t *testing.T) {
	backoff := func(attempt int, err error) time.Duration {
		if !errors.Is(err, errBoom) {
			t.Errorf("Backoff of %v", err)
		}
		return time.Duration(attempt) * time.Minute
	}
	config := ackpolicy.SubscriberConfig{Backoff: backoff, MaxDeliveries: 3, MaxAge: time.Hour}
	handle := func(record ackpolicytest.Record) ackpolicytest.Settlement {
		record.Config = config
		d := ackpolicytest.New(newMessage(), record)
		_ = d.HandleNoPublish(returns(errBoom), ackpolicy.NackOnError.Middleware)
		return d.Settlement()
	}
	handle(ackpolicytest.Record{}).WantNacked(t, 1, time.Minute)
	handle(ackpolicytest.Record{Attempt: 2}).WantNacked(t, 2, 2*time.Minute)
	handle(ackpolicytest.Record{Attempt: 3}).WantRejected(t, 3, errBoom)
	handle(ackpolicytest.Record{Attempt: 2, Age: 61 * time.Minute}).WantRejected(t, 2, errBoom)
}

// The Subscriber's policy applies without a middleware; the middleware's own settings come first.
func TestConfiguredByHandler(t *testing.T) {
	rejects := ackpolicy.RejectOnError
	config := ackpolicy.SubscriberConfig{Policy: &rejects, MaxDeliveries: 5}
	d := ackpolicytest.New(newMessage(), ackpolicytest.Record{Config: config})
	_ = d.HandleNoPublish(returns(errBoom))
	d.Settlement().WantRejected(t, 1, nil)

	m := ackpolicy.Middleware{
		Policy: ackpolicy.NackOnError, MaxDeliveries: 2,
		Backoff: func(int, error) time.Duration { return time.Minute },
	}
	d = ackpolicytest.New(newMessage(), ackpolicytest.Record{Config: config})
	_ = d.HandleNoPublish(returns(errBoom), m.Middleware)
	d.Settlement().WantNacked(t, 1, time.Minute)
	d = ackpolicytest.New(newMessage(), ackpolicytest.Record{Config: config, Attempt: 2})
	_ = d.HandleNoPublish(returns(errBoom), m.Middleware)
	d.Settlement().WantRejected(t, 2, errBoom)
}

// What the handler returned could not be published.
func TestPublishFailure(t *testing.T) {
	var sent []*message.Message
	publish := func(produced []*message.Message) error {
		sent = produced
		return errBoom
	}
	d := ackpolicytest.New(newMessage(), ackpolicytest.Record{Publish: publish})
	out := newMessage()
	_, err := d.Handle(ackpolicy.NackOnError.Middleware(func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{out}, nil
	}))
	if !errors.Is(err, errBoom) || len(sent) != 1 || sent[0] != out {
		t.Errorf("published %v, and the Router got: %v", sent, err)
	}
	d.Settlement().WantNacked(t, 1, 100*time.Millisecond)
}

// The first settlement counts; AckSync and ConfirmFirst find their commit stored.
func TestVerbs(t *testing.T) {
	d := ackpolicytest.New(newMessage(), ackpolicytest.Record{})
	if !d.NackAfter(time.Minute) || d.Ack() || !d.Nack() {
		t.Error("the nack, a contradicting ack or an equal nack returned something else")
	}
	_ = d.HandleNoPublish(returns(nil), ackpolicy.Ack.Middleware)
	d.Settlement().WantNacked(t, 1, time.Minute)

	d = ackpolicytest.New(newMessage(), ackpolicytest.Record{})
	if err := d.AckSync(context.Background()); err != nil {
		t.Error("AckSync:", err)
	}
	d.Settlement().WantAcked(t, 1)

	d = ackpolicytest.New(newMessage(), ackpolicytest.Record{})
	if err := d.HandleNoPublish(returns(nil), ackpolicy.Middleware{ConfirmFirst: true}.Middleware); err != nil {
		t.Error("ConfirmFirst:", err)
	}
	d.Settlement().WantAcked(t, 1)

	d = ackpolicytest.New(newMessage(), ackpolicytest.Record{}) // settled after its handler
	_ = d.HandleNoPublish(returns(nil), ackpolicy.Manual.Middleware)
	d.Settlement().WantStatus(t, ackpolicy.Pending)
	if !d.Reject(errBoom) {
		t.Error("not rejected")
	}
	d.Settlement().WantRejected(t, 1, errBoom)
}

// A handler learns that its partition is drained and taken away.
func TestStops(t *testing.T) {
	d := ackpolicytest.New(newMessage(), ackpolicytest.Record{})
	err := d.HandleNoPublish(func(msg *message.Message) error {
		d.Drain()
		<-d.Draining()
		if msg.Context().Err() != nil {
			t.Error("the context ends with the beginning of the drain")
		}
		d.Revoke()
		<-msg.Context().Done()
		return context.Cause(msg.Context())
	}, ackpolicy.NackOnError.Middleware)
	if !errors.Is(err, ackpolicy.ErrRevoked) {
		t.Error(err)
	}
	d.Settlement().WantStatus(t, ackpolicy.Revoked)
	if d.Ack() {
		t.Error("acked")
	}
	d.Close() // does nothing more
}

// Without a policy, Watermill's own ack and nack count.
func TestNoPolicy(t *testing.T) {
	d := ackpolicytest.New(newMessage(), ackpolicytest.Record{})
	_ = d.HandleNoPublish(returns(errBoom))
	d.Settlement().WantNacked(t, 1, 100*time.Millisecond)
	d = ackpolicytest.New(newMessage(), ackpolicytest.Record{})
	_ = d.HandleNoPublish(returns(nil))
	d.Settlement().WantAcked(t, 1)
}

// Without a middleware, the Subscriber's policy counts.
func TestSubscriberPolicy(t *testing.T) {
	for policy, want := range map[ackpolicy.Policy]ackpolicy.Status{
		ackpolicy.AckFirst: ackpolicy.Acked, ackpolicy.Ack: ackpolicy.Acked, ackpolicy.RejectOnError: ackpolicy.Rejected,
		ackpolicy.NackOnError: ackpolicy.Nacked, ackpolicy.Manual: ackpolicy.Pending,
	} {
		d := ackpolicytest.New(newMessage(), ackpolicytest.Record{Config: ackpolicy.SubscriberConfig{Policy: &policy}})
		_ = d.HandleNoPublish(returns(errBoom))
		if got := d.Status(); got != want {
			t.Errorf("%v: %v, want %v", policy, got, want)
		}
	}
}

// A handler's own settings take precedence over the Subscriber's.
func TestHandlersSettings(t *testing.T) {
	mw := ackpolicy.Middleware{
		Policy: ackpolicy.NackOnError, MaxDeliveries: 3, Backoff: func(int, error) time.Duration { return time.Minute },
		DeadLetter: ackpolicy.DeadLetterTopic{},
	}.Middleware
	handle := func(attempt int) ackpolicytest.Settlement {
		d := ackpolicytest.New(newMessage(), ackpolicytest.Record{Attempt: attempt, Config: ackpolicy.SubscriberConfig{MaxDeliveries: 2}})
		_ = d.HandleNoPublish(returns(errBoom), mw)
		return d.Settlement()
	}
	handle(2).WantNacked(t, 2, time.Minute)
	handle(3).WantRejected(t, 3, errBoom)
}
