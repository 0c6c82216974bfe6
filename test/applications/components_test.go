package applications_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/fanin"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/components/requeuer"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

// Several handlers of one event in a group are one delivery: what a retry repeats is all of them, and the first signal or
// error ends it.
func TestSeveralHandlersOfOneEvent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first, second func(d *ackpolicy.Delivery) error
		want          []string
	}{
		"the second fails once": {
			func(*ackpolicy.Delivery) error { return nil },
			func(d *ackpolicy.Delivery) error { return failOnce(d) },
			[]string{"first#1", "second#1", "first#2", "second#2"},
		},
		"the first fails once": {
			func(d *ackpolicy.Delivery) error { return failOnce(d) },
			func(*ackpolicy.Delivery) error { return nil },
			[]string{"first#1", "first#2", "second#2"},
		},
		"the first acks, the second fails": {
			func(d *ackpolicy.Delivery) error { d.Ack(); return nil },
			func(*ackpolicy.Delivery) error { return testkit.ErrBoom },
			[]string{"first#1", "second#1"},
		},
		"the first returns ErrAck": {
			func(*ackpolicy.Delivery) error { return ackpolicy.ErrAck },
			func(*ackpolicy.Delivery) error { return nil },
			[]string{"first#1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), topicOf(t, &shop.Order{})
			s := testkit.NewService(t)
			s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			p, err := cqrs.NewEventGroupProcessorWithConfig(s.Router, cqrs.EventGroupProcessorConfig{
				GenerateSubscribeTopic: func(cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) { return topic, nil },
				SubscriberConstructor: func(cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
					return testkit.NewSubscriber(t, testkit.Config(group), s.Log), nil
				},
				Marshaler: shop.Names,
			})
			testkit.Check(t, err)
			var mu sync.Mutex
			var calls []string
			handler := func(name string, handle func(*ackpolicy.Delivery) error) cqrs.GroupEventHandler {
				return cqrs.NewGroupEventHandler(func(ctx context.Context, _ *shop.Order) error {
					d, _ := ackpolicy.FromContext(ctx)
					mu.Lock()
					calls = append(calls, fmt.Sprintf("%s#%d", name, d.Attempt()))
					mu.Unlock()
					return handle(d)
				})
			}
			testkit.Check(t, p.AddHandlersGroup("group", handler("first", c.first), handler("second", c.second)))
			s.Start(t)
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Stop()
			if !slices.Equal(calls, c.want) {
				t.Errorf("called: %v, want %v", calls, c.want)
			}
		})
	}
}

func failOnce(d *ackpolicy.Delivery) error {
	if d.Attempt() == 1 {
		return testkit.ErrBoom
	}
	return nil
}

// The forwarder's handler has a name for Handlers. What it cannot unwrap is rejected, and what it publishes has the context
// of the envelope, with the envelope's Delivery.
func TestForwarder(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, brokertest.Values("no envelope")...)
	publisher := newPublisher(t)
	msg := message.NewMessage("", []byte("order"))
	testkit.Check(t, forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: topic}).Publish("orders", msg))

	log, letters := testkit.NewLog(t), &testkit.Flaky{}
	cfg := testkit.Config(group)
	cfg.DeadLetter = letters
	forwarded := make(chan string, 1)
	service, err := forwarder.NewForwarder(testkit.NewSubscriber(t, cfg, log), publisherFunc(func(topic string, msg *message.Message) error {
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			return testkit.ErrBoom
		}
		forwarded <- fmt.Sprintf("%s to %s from offset %d", msg.Payload, topic, d.Offset())
		return nil
	}), log, forwarder.Config{
		ForwarderTopic: topic,
		Middlewares: []message.HandlerMiddleware{ackpolicy.Middleware{
			Policy: ackpolicy.NackOnError, Handlers: map[string]ackpolicy.Policy{"events_forwarder": ackpolicy.RejectOnError},
		}.Middleware},
	})
	testkit.Check(t, err)
	run(t, service)
	if got := testkit.Await(t, "the message", forwarded); got != "order to orders from offset 1" {
		t.Error(got)
	}
	testkit.WaitCommitted(t, group, topic, 0, 2)
	if n := letters.Sent.Load(); n != 1 {
		t.Errorf("%d letters", n)
	}
}

// Fan-in has a handler for each topic, by the name that docs/cqrs.md gives, and keeps the metadata.
func TestFanIn(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), topicOf(t, &shop.Order{})
	log, published := testkit.NewLog(t), make(chan string, 1)
	service, err := fanin.NewFanIn(testkit.NewSubscriber(t, testkit.Config(group), log), publisherFunc(func(target string, msg *message.Message) error {
		published <- message.HandlerNameFromCtx(msg.Context()) + " to " + target + ": " + msg.Metadata.Get("name")
		return nil
	}), fanin.Config{SourceTopics: []string{topic}, TargetTopic: "all"}, log)
	testkit.Check(t, err)
	run(t, service)
	if got := testkit.Await(t, "the message", published); got != "fan_in_"+topic+" to all: Order" {
		t.Error(got)
	}
}

// A requeuer that is stopped while it waits leaves its record. One that cannot publish does not count that as a retry.
func TestRequeuer(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	var mu sync.Mutex
	var published []string
	fails := 1
	start := func(delay time.Duration) (stop func(), s *testkit.Service) {
		s = testkit.NewService(t)
		s.Router.AddMiddleware(func(h message.HandlerFunc) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				if d, ok := ackpolicy.FromMessage(msg); ok {
					s.Add(d)
				}
				return h(msg)
			}
		})
		_, err := requeuer.NewRequeuer(requeuer.Config{
			Subscriber:     testkit.NewSubscriber(t, testkit.Config(group, testkit.DrainTimeout(50*time.Millisecond)), s.Log),
			SubscribeTopic: topic, Router: s.Router, Delay: delay,
			Publisher: publisherFunc(func(topic string, msg *message.Message) error {
				mu.Lock()
				defer mu.Unlock()
				published = append(published, message.HandlerNameFromCtx(msg.Context())+" to "+topic+" "+msg.Metadata.Get(requeuer.RetriesKey))
				if fails--; fails >= 0 {
					return testkit.ErrBoom
				}
				return nil
			}),
			GeneratePublishTopic: func(requeuer.GeneratePublishTopicParams) (string, error) { return "orders", nil },
		}, s.Log)
		testkit.Check(t, err)
		s.Start(t)
		return s.Stop, s
	}
	stop, s := start(time.Hour)
	d := s.Wait(t, 1)
	stop()
	if d.Status() != ackpolicy.Revoked || published != nil {
		t.Errorf("status %v, published %v", d.Status(), published)
	}
	stop, _ = start(time.Millisecond)
	testkit.WaitCommitted(t, group, topic, 0, 1)
	stop()
	if want := []string{"requeuer to orders 1", "requeuer to orders 1"}; !slices.Equal(published, want) {
		t.Errorf("published %v, want %v", published, want)
	}
}
