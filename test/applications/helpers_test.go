package applications_test

import (
	"context"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

// run runs a service until the test's end.
func run(t testing.TB, service shop.Service) (stop func()) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- service.Run(context.Background()) }()
	stop = sync.OnceFunc(func() {
		_ = service.Close()
		if err := testkit.Await(t, "the end of Run", ended); err != nil {
			t.Error("Run:", err)
		}
	})
	t.Cleanup(stop)
	testkit.Await(t, "the service", service.Running())
	return stop
}

func newPublisher(t testing.TB) message.Publisher {
	t.Helper()
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: testkit.Shared.Addrs(), Marshaler: kafka.DefaultMarshaler{}}, nil)
	testkit.Check(t, err)
	t.Cleanup(func() { testkit.Check(t, publisher.Close()) })
	return publisher
}

type publisherFunc func(topic string, msg *message.Message) error

func (p publisherFunc) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		if err := p(topic, msg); err != nil {
			return err
		}
	}
	return nil
}

func (publisherFunc) Close() error { return nil }
