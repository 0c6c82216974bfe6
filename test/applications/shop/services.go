package shop

import (
	"context"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
)

// NewRouter is the constructor of Routers that the services of a company share.
func NewRouter(publisher message.Publisher, logger watermill.LoggerAdapter) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, err
	}
	poison, err := middleware.PoisonQueue(publisher, "poison")
	if err != nil {
		return nil, err
	}
	router.AddMiddleware(middleware.CorrelationID, poison, middleware.Recoverer)
	return router, nil
}

// Loop reads a topic without a Router.
type Loop struct {
	message.Subscriber
	topic   string
	handle  message.NoPublishHandlerFunc
	running chan struct{}
}

// NewLoop makes a Loop.
func NewLoop(subscriber message.Subscriber, topic string, handle message.NoPublishHandlerFunc) *Loop {
	return &Loop{subscriber, topic, handle, make(chan struct{})}
}

// Run reads until Close.
func (l *Loop) Run(ctx context.Context) error {
	messages, err := l.Subscribe(ctx, l.topic)
	if err != nil {
		return err
	}
	close(l.running)
	for msg := range messages {
		if err := l.handle(msg); err != nil {
			msg.Nack()
			continue
		}
		msg.Ack()
	}
	return nil
}

// Running returns a channel that is closed once messages can come.
func (l *Loop) Running() chan struct{} { return l.running }
