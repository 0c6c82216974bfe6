package batches_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// handler is a handler of batches that is given their deliveries, too.
type handler = func(ctx context.Context, messages []*message.Message, ds []*ackpolicy.Delivery) error

// calls has the calls of a batch handler.
type calls struct {
	mu  sync.Mutex
	all [][]*ackpolicy.Delivery
}

// recorded records the calls of h.
func (c *calls) recorded(h handler) message.NoPublishHandlerFunc {
	return ackpolicy.HandleBatch(func(ctx context.Context, messages []*message.Message) error {
		var ds []*ackpolicy.Delivery
		for _, msg := range messages {
			d, ok := ackpolicy.FromMessage(msg)
			if !ok {
				return fmt.Errorf("message %s has no Delivery", msg.UUID)
			}
			ds = append(ds, d)
		}
		c.mu.Lock()
		c.all = append(c.all, ds)
		c.mu.Unlock()
		return h(ctx, messages, ds)
	})
}

func (c *calls) get() [][]*ackpolicy.Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
}

// names returns the deliveries of each call as offset#attempt.
func (c *calls) names() (names [][]string) {
	for _, ds := range c.get() {
		var call []string
		for _, d := range ds {
			call = append(call, testkit.Name(d))
		}
		names = append(names, call)
	}
	return names
}

// count returns how often each record was given to the handler, by partition and offset.
func (c *calls) count() map[testkit.RecordID]int {
	n := map[testkit.RecordID]int{}
	for _, ds := range c.get() {
		for _, d := range ds {
			n[testkit.RecordID{Partition: d.Partition(), Offset: d.Offset()}]++
		}
	}
	return n
}

// consume runs a service with one handler of batches.
func consume(t testing.TB, cfg ackpolicy.SubscriberConfig, batches ackpolicy.BatchConfig, topic string, h handler, mw ...message.HandlerMiddleware) (*testkit.Service, *calls) {
	t.Helper()
	s, c := testkit.NewService(t), &calls{}
	s.Router.AddMiddleware(mw...)
	s.Router.AddConsumerHandler("handler", topic, testkit.NewSubscriber(t, cfg, s.Log).Batches(batches), c.recorded(h))
	s.Start(t)
	return s, c
}

func succeed(context.Context, []*message.Message, []*ackpolicy.Delivery) error { return nil }
