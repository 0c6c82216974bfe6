package lifecycle_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// An application that reads no messages has none in hand: Close does not wait for it.
func TestCloseWithNobodyReading(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, change testkit.Option) {
		group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "c", "d")...)
		log := testkit.NewLog(t)
		sub := testkit.NewSubscriber(t, testkit.Config(group, change, testkit.Ordering(ackpolicy.OrderByKey, 4)), log)
		out, err := sub.Subscribe(context.Background(), topic)
		testkit.Check(t, err)
		testkit.Await(t, "a message", out).Ack()
		testkit.WaitCommitted(t, group, topic, 0, 1)
		began := time.Now()
		testkit.Check(t, sub.Close())
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Close took %v, and DrainTimeout is 10 s", took)
		}
		if errs := log.At("error"); len(errs) > 0 {
			t.Errorf("errors: %v", errs)
		}
	})
}

// A message that was taken and is neither acked nor nacked may be in work: Close waits
// for it, and the log names it.
func TestCloseNamesWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	log := testkit.NewLog(t)
	sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), testkit.DrainTimeout(3*time.Second)), log)
	topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	out, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	testkit.Await(t, "a message", out).Ack()
	testkit.Await(t, "a message", out)
	wantClosed(t, func() { testkit.Check(t, sub.Close()) }, 3*time.Second)
	lines := log.At("info", "error")
	waits := slices.IndexFunc(lines, func(l string) bool {
		return len(testkit.Containing([]string{l}, "neither acked nor nacked", "kafka_partition_offset=1", topic)) > 0
	})
	released := slices.IndexFunc(lines, func(l string) bool {
		return len(testkit.Containing([]string{l}, "Partition released", "first_left_offset=1")) > 0
	})
	if waits < 0 || released < waits {
		t.Errorf("no line says what is waited for, before the partition is released: %v", lines)
	}
}

// A handler that ends with its context, which the drain ends, does not keep a Router until its CloseTimeout.
func TestRouterClosesInTime(t *testing.T) {
	t.Parallel()
	const drain = 300 * time.Millisecond
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	s := testkit.Consume(t, testkit.Config(group, testkit.DrainTimeout(drain)), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		<-msg.Context().Done()
		return context.Cause(msg.Context())
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 1)
	wantClosed(t, func() {
		testkit.Check(t, s.Router.Close())
		<-s.Ended
	}, drain)
	s.Want(t, "0#1")
	testkit.WantCommitted(t, group, topic, 0, 0)
}
