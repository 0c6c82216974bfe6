package applications_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicycqrs"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

// What a command handler returns, what the caller learns, and what becomes of the command. The backend acks errors, which
// would swallow the signals.
func TestReplies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		returns, then error // by the first attempt, and by the next
		reply         string
		want          []ackpolicy.Status
	}{
		"success":    {nil, nil, "", []ackpolicy.Status{ackpolicy.Acked}},
		"an error":   {testkit.ErrBoom, nil, "boom", []ackpolicy.Status{ackpolicy.Acked}},
		"ErrAck":     {ackpolicy.ErrAck, nil, "", []ackpolicy.Status{ackpolicy.Acked}},
		"RejectWith": {ackpolicy.RejectWith(testkit.ErrBoom), nil, "ackpolicy: reject: boom", []ackpolicy.Status{ackpolicy.Rejected}},
		"ErrNack":    {ackpolicy.ErrNack, nil, "", []ackpolicy.Status{ackpolicy.Nacked, ackpolicy.Acked}},
		"a reject by the method As": {
			asError{ackpolicy.RejectWith(testkit.ErrBoom)}, nil, "by As: ackpolicy: reject: boom", []ackpolicy.Status{ackpolicy.Rejected},
		},
		"a reject whose reason is a nack": {
			ackpolicy.RejectWith(ackpolicy.ErrNack), nil, "ackpolicy: reject: ackpolicy: nack", []ackpolicy.Status{ackpolicy.Rejected},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startReplier(t, func(_ context.Context, d *ackpolicy.Delivery) error {
				if d.Attempt() > 1 {
					return c.then
				}
				return c.returns
			})
			for i := range 2 { // the second caller does not get the first one's reply
				reply, err := requestreply.SendWithReply(t.Context(), s.bus, s.backend, &shop.Order{})
				testkit.Check(t, err)
				got := ""
				if reply.Error != nil {
					got = reply.Error.Error()
				}
				if got != c.reply {
					t.Errorf("reply %d: error %q, want %q", i, got, c.reply)
				}
				testkit.WaitCommitted(t, s.group, s.topic, 0, int64(i+1))
			}
			for i, d := range s.All() {
				if want := c.want[i%len(c.want)]; d.Status() != want {
					t.Errorf("delivery %s: status %v, want %v", testkit.Name(d), d.Status(), want)
				}
			}
			if n := len(s.All()); n != 2*len(c.want) {
				t.Errorf("%d deliveries", n)
			}
		})
	}
}

// asError is a signal by its method As only.
type asError struct{ signal error }

func (e asError) Error() string { return "by As: " + e.signal.Error() }

func (e asError) As(target any) bool { return errors.As(e.signal, target) }

// A subscriber for replies that is shared by many callers gives each its own reply. Positions in the topic of the replies are
// not stored: a caller reads from where the topic ends as it subscribes, so that it misses no reply to its own command.
func TestManyCallers(t *testing.T) {
	t.Parallel()
	s := startReplier(t, func(context.Context, *ackpolicy.Delivery) error { return nil })
	var callers sync.WaitGroup
	for range 5 {
		callers.Go(func() {
			if reply, err := requestreply.SendWithReply(t.Context(), s.bus, s.backend, &shop.Order{}); err != nil || reply.Error != nil {
				t.Errorf("reply: %v, %v", reply.Error, err)
			}
		})
	}
	callers.Wait()
	if n := len(s.All()); n != 5 {
		t.Errorf("%d deliveries", n)
	}
}

// replier is a service that replies, and what its callers need.
type replier struct {
	*testkit.Service
	group, topic string
	bus          *cqrs.CommandBus
	backend      requestreply.Backend[requestreply.NoResult]
}

func startReplier(t *testing.T, handle func(context.Context, *ackpolicy.Delivery) error) replier {
	t.Helper()
	s := replier{Service: testkit.NewService(t), group: brokertest.Group(t), topic: testkit.NewTopic(t, 1)}
	replies, publisher := testkit.NewTopic(t, 1), newPublisher(t)
	readers := testkit.NewSubscriber(t, testkit.Config("", testkit.InitialOffset(sarama.OffsetNewest)), s.Log)
	backend, err := requestreply.NewPubSubBackend[requestreply.NoResult](requestreply.PubSubBackendConfig{
		Publisher:              publisher,
		SubscriberConstructor:  func(requestreply.PubSubBackendSubscribeParams) (message.Subscriber, error) { return readers, nil },
		GeneratePublishTopic:   func(requestreply.PubSubBackendPublishParams) (string, error) { return replies, nil },
		GenerateSubscribeTopic: func(requestreply.PubSubBackendSubscribeParams) (string, error) { return replies, nil },
		AckCommandErrors:       true,
	}, requestreply.BackendPubsubJSONMarshaler[requestreply.NoResult]{})
	testkit.Check(t, err)
	s.backend = ackpolicycqrs.Backend[requestreply.NoResult](backend)
	s.bus, err = cqrs.NewCommandBusWithConfig(publisher, cqrs.CommandBusConfig{
		GeneratePublishTopic: func(cqrs.CommandBusGeneratePublishTopicParams) (string, error) { return s.topic, nil },
		Marshaler:            shop.Names,
	})
	testkit.Check(t, err)

	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	commands, err := cqrs.NewCommandProcessorWithConfig(s.Router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return s.topic, nil },
		SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return testkit.NewSubscriber(t, testkit.Config(s.group), s.Log), nil
		},
		Marshaler: shop.Names,
	})
	testkit.Check(t, err)
	testkit.Check(t, commands.AddHandlers(requestreply.NewCommandHandler("place", s.backend, func(ctx context.Context, _ *shop.Order) error {
		d, _ := ackpolicy.FromContext(ctx)
		s.Add(d)
		return handle(ctx, d)
	})))
	s.Start(t)
	return s
}
