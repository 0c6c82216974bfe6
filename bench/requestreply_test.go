package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

type question struct{ N int }

type reply struct{ Twice int }

// Watermill's request and reply, here since it needs more modules than the library does: a reply is
// published as soon as whoever asks has subscribed to the topic of replies, without a group and at its newest offset.
func TestRequestReply(t *testing.T) {
	const requests, patience = 40, 30 * time.Second
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	brokers := brokertest.Brokers(t)
	commands, replies := brokertest.Topic(t), brokertest.Topic(t)
	check(brokertest.CreateTopic(brokers, commands, 1))
	check(brokertest.CreateTopic(brokers, replies, 3))
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Marshaler: kafka.DefaultMarshaler{}}, nil)
	check(err)
	defer publisher.Close()
	subscriber := func(group string, initial int64) *ackpolicy.Subscriber {
		cfg := kafka.DefaultSaramaSubscriberConfig()
		cfg.Consumer.Offsets.Initial = initial
		sub, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
			Kafka: kafka.SubscriberConfig{Brokers: brokers, ConsumerGroup: group, OverwriteSaramaConfig: cfg},
		}, nil)
		check(err)
		return sub
	}
	listener := subscriber("", sarama.OffsetNewest)
	defer listener.Close()
	backend, err := requestreply.NewPubSubBackend(requestreply.PubSubBackendConfig{
		Publisher: publisher,
		SubscriberConstructor: func(requestreply.PubSubBackendSubscribeParams) (message.Subscriber, error) {
			return listener, nil
		},
		GenerateSubscribeTopic: func(requestreply.PubSubBackendSubscribeParams) (string, error) { return replies, nil },
		GeneratePublishTopic:   func(requestreply.PubSubBackendPublishParams) (string, error) { return replies, nil },
	}, requestreply.BackendPubsubJSONMarshaler[reply]{})
	check(err)
	bus, err := cqrs.NewCommandBusWithConfig(publisher, cqrs.CommandBusConfig{
		GeneratePublishTopic: func(cqrs.CommandBusGeneratePublishTopicParams) (string, error) { return commands, nil },
		Marshaler:            cqrs.JSONMarshaler{},
	})
	check(err)
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	check(err)
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	processor, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return commands, nil },
		SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return subscriber(brokertest.Group(t), sarama.OffsetOldest), nil
		},
		Marshaler: cqrs.JSONMarshaler{},
	})
	check(err)
	check(processor.AddHandlers(requestreply.NewCommandHandlerWithResult("twice", backend,
		func(_ context.Context, q *question) (reply, error) { return reply{2 * q.N}, nil })))
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	defer func() {
		check(router.Close())
		check(<-ended)
	}()
	<-router.Running()
	for i := range requests {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		reply, err := requestreply.SendWithReply(ctx, bus, backend, &question{i})
		cancel()
		if err = errors.Join(err, reply.Error); err != nil || reply.HandlerResult.Twice != 2*i {
			t.Fatalf("request %d of %d: %+v, %v", i, requests, reply.HandlerResult, err)
		}
	}
}
