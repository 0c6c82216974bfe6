package applications_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicycqrs"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

// Other is a message that no handler is for.
type Other struct{ ID string }

// topicOf makes a topic that holds messages.
func topicOf(t testing.TB, messages ...any) string {
	t.Helper()
	topic, publisher := testkit.NewTopic(t, 1), newPublisher(t)
	for _, m := range messages {
		msg, err := shop.Names.Marshal(m)
		testkit.Check(t, err)
		testkit.Check(t, publisher.Publish(topic, msg))
	}
	return topic
}

// processor adds the handlers of a test to a Router. The handlers are named handler, and get their Delivery.
type processor struct {
	name string
	add  func(t *testing.T, s *testkit.Service, c processorConfig)
}

type processorConfig struct {
	topic      string
	subscriber message.Subscriber
	handle     func(context.Context, *ackpolicy.Delivery) error
	ours       bool // its configuration went through ackpolicycqrs
	ackErrors  bool // AckCommandHandlingErrors
	policy     *ackpolicy.Policy
}

func (c processorConfig) handler(s *testkit.Service) func(context.Context, *shop.Order) error {
	return func(ctx context.Context, _ *shop.Order) error {
		d, _ := ackpolicy.FromContext(ctx)
		s.Add(d)
		return c.handle(ctx, d)
	}
}

var processors = []processor{
	{"commands", func(t *testing.T, s *testkit.Service, c processorConfig) {
		config := cqrs.CommandProcessorConfig{
			GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return c.topic, nil },
			SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
				return c.subscriber, nil
			},
			Marshaler: shop.Names, AckCommandHandlingErrors: c.ackErrors, Logger: s.Log,
		}
		if c.ours {
			config = ackpolicycqrs.CommandProcessor(config)
		}
		p, err := cqrs.NewCommandProcessorWithConfig(s.Router, config)
		testkit.Check(t, err)
		testkit.Check(t, p.AddHandlers(cqrs.NewCommandHandler("handler", c.handler(s))))
	}},
	{"events", func(t *testing.T, s *testkit.Service, c processorConfig) {
		config := cqrs.EventProcessorConfig{
			GenerateSubscribeTopic: func(cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) { return c.topic, nil },
			SubscriberConstructor: func(cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
				return c.subscriber, nil
			},
			AckOnUnknownEvent: true, Marshaler: shop.Names, Logger: s.Log,
		}
		if c.ours {
			config = ackpolicycqrs.EventProcessor(config)
		}
		p, err := cqrs.NewEventProcessorWithConfig(s.Router, config)
		testkit.Check(t, err)
		testkit.Check(t, p.AddHandlers(cqrs.NewEventHandler("handler", c.handler(s))))
	}},
	{"groups", func(t *testing.T, s *testkit.Service, c processorConfig) {
		config := cqrs.EventGroupProcessorConfig{
			GenerateSubscribeTopic: func(cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) { return c.topic, nil },
			SubscriberConstructor: func(cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
				return c.subscriber, nil
			},
			AckOnUnknownEvent: true, Marshaler: shop.Names, Logger: s.Log,
		}
		if c.ours {
			config = ackpolicycqrs.EventGroupProcessor(config)
		}
		p, err := cqrs.NewEventGroupProcessorWithConfig(s.Router, config)
		testkit.Check(t, err)
		testkit.Check(t, p.AddHandlersGroup("handler", cqrs.NewGroupEventHandler(c.handler(s))))
	}},
}

// process runs a processor on the topic.
func (p processor) process(t *testing.T, group string, c processorConfig, mw ...message.HandlerMiddleware) *testkit.Service {
	t.Helper()
	s := testkit.NewService(t)
	s.Router.AddMiddleware(mw...)
	cfg := testkit.Config(group)
	cfg.Policy = c.policy
	c.subscriber = testkit.NewSubscriber(t, cfg, s.Log)
	p.add(t, s, c)
	s.Start(t)
	return s
}

// Middleware.Handlers knows the handler of a command or of an event by its name, and the handlers of a group by the group's.
func TestHandlerNames(t *testing.T) {
	t.Parallel()
	for _, p := range processors {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), topicOf(t, &shop.Order{})
			s := p.process(t, group, processorConfig{
				topic: topic, handle: func(context.Context, *ackpolicy.Delivery) error { return testkit.ErrBoom },
			}, ackpolicy.Middleware{
				Policy: ackpolicy.NackOnError, Handlers: map[string]ackpolicy.Policy{"handler": ackpolicy.RejectOnError},
			}.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Want(t, "0#1")
		})
	}
}

// A signal settles the record in every processor, also where AckCommandHandlingErrors replaces the handler's error by nil.
func TestSignalsOfProcessors(t *testing.T) {
	t.Parallel()
	for _, p := range processors {
		for name, signal := range map[string]struct {
			err  error
			want ackpolicy.Status
		}{
			"ErrAck":    {ackpolicy.ErrAck, ackpolicy.Acked},
			"ErrNack":   {ackpolicy.ErrNack, ackpolicy.Nacked},
			"ErrReject": {ackpolicy.RejectWith(testkit.ErrBoom), ackpolicy.Rejected},
		} {
			for how, mw := range map[string][]message.HandlerMiddleware{
				"policy": {ackpolicy.Manual.Middleware}, "no middleware": nil,
			} {
				t.Run(p.name+"/"+name+"/"+how, func(t *testing.T) {
					t.Parallel()
					group, topic := brokertest.Group(t), topicOf(t, &shop.Order{})
					s := p.process(t, group, processorConfig{
						topic: topic, ours: true, ackErrors: true,
						handle: func(_ context.Context, d *ackpolicy.Delivery) error {
							if d.Attempt() > 1 {
								return ackpolicy.ErrAck
							}
							return signal.err
						},
					}, mw...)
					testkit.WaitCommitted(t, group, topic, 0, 1)
					if got := s.All()[0].Status(); got != signal.want {
						t.Errorf("status %v, want %v", got, signal.want)
					}
				})
			}
		}
	}
}

// AckCommandHandlingErrors still acks what is no signal.
func TestAckCommandHandlingErrors(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), topicOf(t, &shop.Order{})
	s := processors[0].process(t, group, processorConfig{
		topic: topic, ours: true, ackErrors: true,
		handle: func(context.Context, *ackpolicy.Delivery) error { return testkit.ErrBoom },
	}, ackpolicy.RejectOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 1)
	if got := s.All()[0].Status(); got != ackpolicy.Acked {
		t.Errorf("status %v", got)
	}
}

// Under Manual, of a middleware or of the subscriber, what a processor ignores is acked, and what it hands to a handler is the handler's.
func TestIgnoredUnderManual(t *testing.T) {
	t.Parallel()
	for _, p := range processors {
		for how, mw := range map[string][]message.HandlerMiddleware{
			"a middleware": {ackpolicy.Manual.Middleware}, "the subscriber": nil,
		} {
			t.Run(p.name+"/"+how, func(t *testing.T) {
				t.Parallel()
				group, topic := brokertest.Group(t), topicOf(t, &Other{}, &shop.Order{}, &Other{})
				c := processorConfig{
					topic: topic, ours: true,
					handle: func(context.Context, *ackpolicy.Delivery) error { return nil },
				}
				if mw == nil {
					c.policy = new(ackpolicy.Manual)
				}
				s := p.process(t, group, c, mw...)
				d := s.Wait(t, 1)
				testkit.WaitCommitted(t, group, topic, 0, 1)
				if d.Status() != ackpolicy.Pending {
					t.Errorf("status %v", d.Status())
				}
				d.Ack()
				testkit.WaitCommitted(t, group, topic, 0, 3)
				s.Want(t, "1#1")
			})
		}
	}
}

// The functions of ackpolicycqrs keep what is missing missing, and the application's own OnHandle.
func TestProcessorConfigs(t *testing.T) {
	if err := ackpolicycqrs.CommandProcessor(cqrs.CommandProcessorConfig{}).Validate(); err == nil {
		t.Error("an empty configuration is valid")
	}
	if err := ackpolicycqrs.EventProcessor(cqrs.EventProcessorConfig{AckOnUnknownEvent: true}).Validate(); err == nil {
		t.Error("an empty configuration is valid")
	}
	if err := ackpolicycqrs.EventGroupProcessor(cqrs.EventGroupProcessorConfig{AckOnUnknownEvent: true}).Validate(); err == nil {
		t.Error("an empty configuration is valid")
	}
	called := 0
	msg := message.NewMessage("", nil)
	_ = ackpolicycqrs.CommandProcessor(cqrs.CommandProcessorConfig{
		OnHandle: func(cqrs.CommandProcessorOnHandleParams) error { called++; return nil },
	}).OnHandle(cqrs.CommandProcessorOnHandleParams{Message: msg})
	_ = ackpolicycqrs.EventProcessor(cqrs.EventProcessorConfig{
		OnHandle: func(cqrs.EventProcessorOnHandleParams) error { called++; return nil },
	}).OnHandle(cqrs.EventProcessorOnHandleParams{Message: msg})
	_ = ackpolicycqrs.EventGroupProcessor(cqrs.EventGroupProcessorConfig{
		OnHandle: func(cqrs.EventGroupProcessorOnHandleParams) error { called++; return nil },
	}).OnHandle(cqrs.EventGroupProcessorOnHandleParams{Message: msg})
	if called != 3 {
		t.Errorf("OnHandle was called %d times", called)
	}
}

// On other subscribers, too, signals and ignored messages are settled: there by the message's own ack and nack.
func TestProcessorsOnOtherSubscribers(t *testing.T) {
	t.Parallel()
	for _, p := range processors {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := testkit.NewService(t)
			s.Router.AddMiddleware(ackpolicy.Manual.Middleware)
			pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, s.Log)
			attempts := 0
			p.add(t, s, processorConfig{
				topic: "orders", subscriber: pubSub, ours: true, ackErrors: true,
				handle: func(context.Context, *ackpolicy.Delivery) error {
					if attempts++; attempts == 1 {
						return ackpolicy.ErrNack
					}
					return ackpolicy.ErrAck
				},
			})
			s.Start(t)
			for _, m := range []any{&Other{}, &shop.Order{}} {
				msg, err := shop.Names.Marshal(m)
				testkit.Check(t, err)
				testkit.Check(t, pubSub.Publish("orders", msg))
			}
			if attempts != 2 {
				t.Errorf("%d attempts", attempts)
			}
		})
	}
}
