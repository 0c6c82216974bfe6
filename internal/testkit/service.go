package testkit

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// NewSubscriber makes a Subscriber that is closed at the test's end.
func NewSubscriber(t testing.TB, cfg ackpolicy.SubscriberConfig, logger watermill.LoggerAdapter) *ackpolicy.Subscriber {
	t.Helper()
	sub, err := ackpolicy.NewSubscriber(cfg, logger)
	Check(t, err)
	t.Cleanup(func() {
		if err := sub.Close(); err != nil {
			t.Error("Close:", err)
		}
	})
	return sub
}

// Service is a Router with its log and a journal of its deliveries.
type Service struct {
	Journal
	Router *message.Router
	Sub    *ackpolicy.Subscriber // of NewConsumer
	Log    *Log
	Ended  chan struct{}
}

// NewService makes a Service that has yet to be started.
func NewService(t testing.TB) *Service {
	t.Helper()
	logger := NewLog(t)
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	Check(t, err)
	return &Service{Router: router, Log: logger, Ended: make(chan struct{})}
}

// Start runs the Router until Stop or the test's end.
func (s *Service) Start(t testing.TB) {
	t.Helper()
	failed := make(chan error, 1)
	go func() {
		defer close(s.Ended)
		if err := s.Router.Run(context.Background()); err != nil {
			failed <- err
		}
	}()
	t.Cleanup(s.Stop)
	select {
	case <-s.Router.Running():
	case err := <-failed:
		t.Fatal("Run:", err)
	}
}

// Stop stops the service as a deploy does, and waits for its end.
func (s *Service) Stop() {
	_ = s.Router.Close()
	<-s.Ended
}

// Handle is a handler that is given its Delivery.
type Handle = func(msg *message.Message, d *ackpolicy.Delivery) error

// NewConsumer makes a service, which has yet to be started, with one handler behind the middlewares, the first of which is
// the outermost.
func NewConsumer(t testing.TB, cfg ackpolicy.SubscriberConfig, topic string, h Handle, mw ...message.HandlerMiddleware) *Service {
	t.Helper()
	s := NewService(t)
	s.Sub = NewSubscriber(t, cfg, s.Log)
	s.Router.AddMiddleware(mw...)
	s.Router.AddConsumerHandler("handler", topic, s.Sub, s.Recorded(h))
	return s
}

// Consume is a NewConsumer that has been started.
func Consume(t testing.TB, cfg ackpolicy.SubscriberConfig, topic string, h Handle, mw ...message.HandlerMiddleware) *Service {
	t.Helper()
	s := NewConsumer(t, cfg, topic, h, mw...)
	s.Start(t)
	return s
}
