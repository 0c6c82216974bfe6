package main

import (
	"context"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// batches hands out batches of the default size, one at a time. They do not wait to be full, as
// Spring Kafka's do not.
func batches(o ackpolicy.Ordering, read reader) func(context.Context, job, *meter) error {
	return func(ctx context.Context, j job, m *meter) error {
		sub, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{Kafka: kafkaConfig(j), Ordering: o}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		return read(ctx, sub.Batches(ackpolicy.BatchConfig{Wait: ackpolicy.NoWait}), j, m)
	}
}

func batchLoop(ctx context.Context, sub message.Subscriber, j job, m *meter) error {
	messages, err := sub.Subscribe(ctx, j.Topic)
	if err != nil {
		return err
	}
	go func() {
		for msg := range messages {
			if b, ok := ackpolicy.BatchFromMessage(msg); ok {
				for _, msg := range b.Messages() {
					m.handle(msg.Payload)
				}
			}
			msg.Ack()
		}
	}()
	<-m.done
	return sub.Close()
}

func batchRouter(ctx context.Context, sub message.Subscriber, j job, m *meter) error {
	r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	r.AddMiddleware(ackpolicy.NackOnError.Middleware)
	r.AddConsumerHandler("bench", j.Topic, sub, ackpolicy.HandleBatch(func(_ context.Context, messages []*message.Message) error {
		for _, msg := range messages {
			m.handle(msg.Payload)
		}
		return nil
	}))
	go func() {
		<-m.done
		_ = r.Close()
	}()
	return r.Run(ctx)
}
