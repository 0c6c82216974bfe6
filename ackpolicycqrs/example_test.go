package ackpolicycqrs_test

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicycqrs"
)

type PlaceOrder struct{ ID string }

// Errors of the handler are acked, and what it asks for by a signal is done.
func ExampleCommandProcessor() {
	var (
		router     *message.Router
		subscriber *ackpolicy.Subscriber
		config     = cqrs.CommandProcessorConfig{
			GenerateSubscribeTopic: func(p cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) {
				return p.CommandName, nil
			},
			SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
				return subscriber, nil
			},
			Marshaler:                cqrs.JSONMarshaler{},
			AckCommandHandlingErrors: true,
		}
	)
	processor, err := cqrs.NewCommandProcessorWithConfig(router, ackpolicycqrs.CommandProcessor(config))
	if err != nil {
		return
	}
	_ = processor.AddHandlers(cqrs.NewCommandHandler("place", func(context.Context, *PlaceOrder) error {
		return ackpolicy.NackAfter(time.Minute) // not yet
	}))
}
