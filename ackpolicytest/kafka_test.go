package ackpolicytest_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

// inGroup is a configuration with a consumer group.
func inGroup(options ...func(*ackpolicy.SubscriberConfig)) ackpolicy.SubscriberConfig {
	c := ackpolicy.SubscriberConfig{Kafka: kafka.SubscriberConfig{ConsumerGroup: "shop"}}
	for _, option := range options {
		option(&c)
	}
	return c
}

// start runs a Router with one handler.
func start(t *testing.T, k *ackpolicytest.Kafka, config ackpolicy.SubscriberConfig, h message.NoPublishHandlerFunc, middlewares ...message.HandlerMiddleware) {
	t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, k.Logger())
	if err != nil {
		t.Fatal(err)
	}
	router.AddMiddleware(middlewares...)
	router.AddConsumerHandler("ship", "orders", k.Subscriber(config), h)
	k.Start(router)
}

// attempt returns the attempt of a message's delivery.
func attempt(msg *message.Message) int {
	d, _ := ackpolicy.FromMessage(msg)
	return d.Attempt()
}

// An hour passes in no time.
func TestNackAfterAnHour(t *testing.T) {
	began := time.Now()
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		k.Produce("orders", newMessage(), newMessage())
		start(t, k, inGroup(), func(msg *message.Message) error {
			if attempt(msg) == 1 {
				return ackpolicy.NackAfter(time.Hour)
			}
			return nil
		}, ackpolicy.NackOnError.Middleware)
		k.Advance(time.Minute)
		k.Settlement("shop", "orders", 0, 0).WantNacked(t, 1, time.Hour)
		if n := k.Committed("shop", "orders", 0); n != 0 {
			t.Errorf("committed %d", n)
		}
		k.Advance(time.Hour)
		k.Settlement("shop", "orders", 0, 0).WantAcked(t, 2)
		k.WaitSettled("shop", "orders")
		if n := k.Committed("shop", "orders", 0); n != 2 {
			t.Errorf("committed %d", n)
		}
	})
	t.Log("took", time.Since(began))
}
