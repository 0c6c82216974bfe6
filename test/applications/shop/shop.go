// Package shop is what the applications in before and after have in common: an order, and what they are given.
package shop

import (
	"context"
	"encoding/json"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Order is the command, the event and the message of all applications.
type Order struct{ ID string }

// Names makes and reads the messages.
var Names = cqrs.JSONMarshaler{GenerateName: cqrs.StructName}

// Shop is what an application is given.
type Shop struct {
	Kafka     kafka.SubscriberConfig
	Topic     string // of the orders
	Publisher message.Publisher
	Backend   requestreply.Backend[struct{}]
	Logger    watermill.LoggerAdapter
	// Handle handles an order for the handler of that name.
	Handle func(ctx context.Context, handler string, o *Order) error
}

// Of returns the configuration of a handler that has a group of its own.
func (s Shop) Of(handler string) kafka.SubscriberConfig {
	c := s.Kafka
	c.ConsumerGroup += "-" + handler
	return c
}

// HandleAs is Handle for CQRS handlers.
func (s Shop) HandleAs(handler string) func(context.Context, *Order) error {
	return func(ctx context.Context, o *Order) error { return s.Handle(ctx, handler, o) }
}

// HandleMessageAs is Handle for the Router's handlers.
func (s Shop) HandleMessageAs(handler string) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		var o Order
		if err := json.Unmarshal(msg.Payload, &o); err != nil {
			return err
		}
		return s.Handle(msg.Context(), handler, &o)
	}
}

// Service is an application: a Router, or one of the components that have a Router inside.
type Service interface {
	Run(ctx context.Context) error
	Running() chan struct{}
	Close() error
}
