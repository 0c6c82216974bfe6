// Package before has applications as they are on watermill-kafka, package after the same ones moved to this library.
package before

import (
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

// Commands handles commands.
func Commands(s shop.Shop) (shop.Service, error) {
	router, err := message.NewRouter(message.RouterConfig{}, s.Logger)
	if err != nil {
		return nil, err
	}
	processor, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return s.Topic, nil },
		SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return kafka.NewSubscriber(s.Kafka, s.Logger)
		},
		Marshaler: shop.Names,
	})
	if err != nil {
		return nil, err
	}
	return router, processor.AddHandlers(cqrs.NewCommandHandler("place", s.HandleAs("place")))
}

// Events handles events: each handler has a subscriber and a group of its own.
func Events(s shop.Shop) (shop.Service, error) {
	router, err := message.NewRouter(message.RouterConfig{}, s.Logger)
	if err != nil {
		return nil, err
	}
	processor, err := cqrs.NewEventProcessorWithConfig(router, cqrs.EventProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) { return s.Topic, nil },
		SubscriberConstructor: func(p cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return kafka.NewSubscriber(s.Of(p.HandlerName), s.Logger)
		},
		Marshaler: shop.Names,
	})
	if err != nil {
		return nil, err
	}
	return router, processor.AddHandlers(cqrs.NewEventHandler("bill", s.HandleAs("bill")), cqrs.NewEventHandler("ship", s.HandleAs("ship")))
}

// EventGroups handles events: the handlers of a group share a subscriber.
func EventGroups(s shop.Shop) (shop.Service, error) {
	router, err := message.NewRouter(message.RouterConfig{}, s.Logger)
	if err != nil {
		return nil, err
	}
	processor, err := cqrs.NewEventGroupProcessorWithConfig(router, cqrs.EventGroupProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) { return s.Topic, nil },
		SubscriberConstructor: func(p cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return kafka.NewSubscriber(s.Of(p.EventGroupName), s.Logger)
		},
		AckOnUnknownEvent: true,
		Marshaler:         shop.Names,
	})
	if err != nil {
		return nil, err
	}
	return router, processor.AddHandlersGroup("shop", cqrs.NewGroupEventHandler(s.HandleAs("shop")))
}

// RequestReply handles commands, and replies to whoever sent them.
func RequestReply(s shop.Shop) (shop.Service, error) {
	router, err := message.NewRouter(message.RouterConfig{}, s.Logger)
	if err != nil {
		return nil, err
	}
	processor, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return s.Topic, nil },
		SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return kafka.NewSubscriber(s.Kafka, s.Logger)
		},
		Marshaler: shop.Names,
	})
	if err != nil {
		return nil, err
	}
	return router, processor.AddHandlers(requestreply.NewCommandHandler("place", s.Backend, s.HandleAs("place")))
}
