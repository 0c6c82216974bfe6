package main

import (
	"context"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicycqrs"
)

// PlaceOrder is a command, OrderPlaced the event of a command that succeeded.
type (
	PlaceOrder  struct{ ID, Customer string }
	OrderPlaced struct{ ID, Customer string }
)

// CatalogChanged is an event that none of these handlers is for.
type CatalogChanged struct{}

// shop has the handlers.
type shop interface {
	place(ctx context.Context, c *PlaceOrder) error
	charge(ctx context.Context, e *OrderPlaced) error
	// audit keeps the Delivery and acks it later, with others.
	audit(ctx context.Context, e *OrderPlaced) error
}

var marshaler = cqrs.JSONMarshaler{GenerateName: cqrs.StructName}

// serve runs the shop until ctx ends. Topics and groups begin with a prefix.
func serve(ctx context.Context, brokers []string, prefix string, newShop func(*cqrs.EventBus) shop, logger watermill.LoggerAdapter) error {
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	router.AddMiddleware(ackpolicy.Middleware{
		Policy:   ackpolicy.NackOnError,                                  // an error: deliver it again
		Handlers: map[string]ackpolicy.Policy{"audit": ackpolicy.Manual}, // the name of a group, a command handler or an event handler
	}.Middleware)

	newSubscriber := func(group string) (message.Subscriber, error) {
		config := kafka.SubscriberConfig{
			Brokers: brokers, ConsumerGroup: prefix + group, OverwriteSaramaConfig: kafka.DefaultSaramaSubscriberConfig(),
		}
		config.OverwriteSaramaConfig.Consumer.Offsets.Initial = sarama.OffsetOldest
		return ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
			Kafka:      config,
			Ordering:   ackpolicy.OrderByKey,
			DeadLetter: ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}},
		}, logger)
	}
	publisher, err := newPublisher(brokers, logger)
	if err != nil {
		return err
	}
	defer func() { _ = publisher.Close() }()
	events, err := cqrs.NewEventBusWithConfig(publisher, cqrs.EventBusConfig{
		GeneratePublishTopic: func(cqrs.GenerateEventPublishTopicParams) (string, error) { return prefix + "events", nil },
		OnPublish: func(p cqrs.OnEventSendParams) error {
			if e, ok := p.Event.(*OrderPlaced); ok {
				p.Message.Metadata.Set("customer", e.Customer)
			}
			return nil
		},
		Marshaler: marshaler,
	})
	if err != nil {
		return err
	}
	shop := newShop(events)

	commandHandlers, err := cqrs.NewCommandProcessorWithConfig(router, ackpolicycqrs.CommandProcessor(cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) {
			return prefix + "commands", nil
		},
		SubscriberConstructor: func(p cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return newSubscriber(p.HandlerName)
		},
		Marshaler: marshaler,
	}))
	if err != nil {
		return err
	}
	if err := commandHandlers.AddHandlers(cqrs.NewCommandHandler("place", shop.place)); err != nil {
		return err
	}

	eventHandlers, err := cqrs.NewEventGroupProcessorWithConfig(router, ackpolicycqrs.EventGroupProcessor(cqrs.EventGroupProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) {
			return prefix + "events", nil
		},
		SubscriberConstructor: func(p cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return newSubscriber(p.EventGroupName)
		},
		AckOnUnknownEvent: true, // also under Manual
		Marshaler:         marshaler,
	}))
	if err != nil {
		return err
	}
	if err := eventHandlers.AddHandlersGroup("billing", cqrs.NewGroupEventHandler(shop.charge)); err != nil {
		return err
	}
	if err := eventHandlers.AddHandlersGroup("audit", cqrs.NewGroupEventHandler(shop.audit)); err != nil {
		return err
	}
	return router.Run(ctx) // when ctx ends: finish running handlers, commit, leave the groups
}

// newPublisher returns a publisher that makes the customer the key, so that the messages of one stay in order.
func newPublisher(brokers []string, logger watermill.LoggerAdapter) (message.Publisher, error) {
	return kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: brokers,
		Marshaler: kafka.NewWithPartitioningMarshaler(func(_ string, msg *message.Message) (string, error) {
			return msg.Metadata.Get("customer"), nil
		}),
	}, logger)
}
