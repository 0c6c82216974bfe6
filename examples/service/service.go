package main

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

var errUnknownCustomer = errors.New("unknown customer")

// serve charges the orders of a topic and publishes their invoices, until ctx ends.
func serve(ctx context.Context, brokers []string, charge func(context.Context, order) (invoice, error), logger watermill.LoggerAdapter) error {
	config := kafka.SubscriberConfig{
		Brokers: brokers, ConsumerGroup: "billing", OverwriteSaramaConfig: kafka.DefaultSaramaSubscriberConfig(),
	}
	config.OverwriteSaramaConfig.Consumer.Offsets.Initial = sarama.OffsetOldest
	subscriber, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka:      config,
		Ordering:   ackpolicy.OrderByKey, // a failing order holds back its own customer's only
		Backoff:    ackpolicy.ExponentialBackoff{Max: 30 * time.Second}.Delay,
		MaxAge:     15 * time.Minute,                                         // then it is rejected:
		DeadLetter: ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}}, // to orders.dlq
	}, logger)
	if err != nil {
		return err
	}
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Marshaler: kafka.DefaultMarshaler{}}, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	router.AddMiddleware(ackpolicy.Middleware{
		Policy:   ackpolicy.NackOnError,                    // an error: deliver it again, after Backoff
		Classify: ackpolicy.NeverRetry(errUnknownCustomer), // this error, or bad JSON: reject it at once
	}.Middleware)
	router.AddHandler("charge", "orders", subscriber, "invoices", publisher, func(msg *message.Message) ([]*message.Message, error) {
		var o order
		if err := json.Unmarshal(msg.Payload, &o); err != nil {
			return nil, err
		}
		bill, err := charge(msg.Context(), o)
		if err != nil {
			return nil, err
		}
		payload, err := json.Marshal(bill)
		return message.Messages{message.NewMessage(o.ID, payload)}, err // acked once this is published
	})
	return router.Run(ctx) // when ctx ends: finish running handlers, commit, leave the group
}
