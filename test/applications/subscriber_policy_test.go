package applications_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

// A processor makes a subscriber for each handler, and each may have a policy: no middleware is needed.
func TestSubscriberPolicyPerHandler(t *testing.T) {
	t.Parallel()
	s := testkit.NewService(t)
	topic := topicOf(t, &shop.Order{ID: "poison"}, &shop.Order{ID: "sound"})
	policies := map[string]ackpolicy.Policy{"charge": ackpolicy.RejectOnError, "report": ackpolicy.NackOnError}
	groups := map[string]string{}
	processor, err := cqrs.NewEventProcessorWithConfig(s.Router, cqrs.EventProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) { return topic, nil },
		SubscriberConstructor: func(p cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			groups[p.HandlerName] = brokertest.Group(t)
			cfg := testkit.Config(groups[p.HandlerName])
			cfg.Policy = new(policies[p.HandlerName])
			return testkit.NewSubscriber(t, cfg, s.Log), nil
		},
		Marshaler: shop.Names, Logger: s.Log,
	})
	testkit.Check(t, err)
	var mu sync.Mutex
	handled := map[string][]string{}
	handler := func(name string) cqrs.EventHandler {
		return cqrs.NewEventHandler(name, func(_ context.Context, o *shop.Order) error {
			mu.Lock()
			defer mu.Unlock()
			handled[name] = append(handled[name], o.ID)
			if o.ID == "poison" && len(handled[name]) <= 2 {
				return testkit.ErrBoom
			}
			return nil
		})
	}
	testkit.Check(t, processor.AddHandlers(handler("charge"), handler("report")))
	s.Start(t)
	for _, group := range groups {
		testkit.WaitCommitted(t, group, topic, 0, 2)
	}
	s.Stop()
	for name, want := range map[string][]string{"charge": {"poison", "sound"}, "report": {"poison", "poison", "poison", "sound"}} {
		if !slices.Equal(handled[name], want) {
			t.Errorf("%s handled %v, want %v", name, handled[name], want)
		}
	}
}
