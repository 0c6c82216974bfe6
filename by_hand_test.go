package ackpolicy_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A message that is acked or nacked by hand inside the handler, as InstantAck does it, is settled so, under every policy and
// whatever the handler does then. The subscriber notices the hand's ack a moment later than the handler may end.
func TestSettledByHand(t *testing.T) {
	t.Parallel()
	type second = func(d *ackpolicy.Delivery) error
	asks := func(v verb) second { return func(d *ackpolicy.Delivery) error { v(d); return nil } }
	ends := func(err error) second { return func(*ackpolicy.Delivery) error { return err } }
	seconds := []second{
		ends(nil), ends(errBoom), ends(ackpolicy.ErrAck), ends(ackpolicy.ErrNack), ends(ackpolicy.ErrReject),
		asks((*ackpolicy.Delivery).Ack), asks((*ackpolicy.Delivery).Nack), asks((*ackpolicy.Delivery).AckCumulative),
	}
	partitions := int32(2 * len(seconds)) // acked by hand in the first half of them, nacked in the second
	topic := filledTopic(t, partitions, 1)
	for _, policy := range policies {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			group := brokertest.Group(t)
			s := consume(t, config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				n := int(d.Partition())
				if n < len(seconds) {
					msg.Ack()
					return seconds[n](d)
				}
				if d.Attempt() > 1 {
					d.Ack()
					return nil
				}
				msg.Nack()
				return seconds[n-len(seconds)](d)
			}, policy.Middleware)
			for p := range partitions {
				waitCommitted(t, group, topic, p, 1)
			}
			s.stop()
			for _, d := range s.journal.all() {
				want := ackpolicy.Acked
				if policy != ackpolicy.AckFirst && int(d.Partition()) >= len(seconds) && d.Attempt() == 1 {
					want = ackpolicy.Nacked
				}
				if d.Status() != want {
					t.Errorf("partition %d, attempt %d: %v, want %v", d.Partition(), d.Attempt(), d.Status(), want)
				}
			}
		})
	}
}

func TestSettledByHandInALoop(t *testing.T) {
	t.Parallel()
	const records = 50
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(records)...)
	sub := newSubscriber(t, config(group), newLog(t))
	out, err := sub.Subscribe(context.Background(), topic)
	check(t, err)
	for i := range records {
		msg := await(t, fmt.Sprint("record ", i), out)
		d, _ := ackpolicy.FromMessage(msg)
		msg.Ack()
		if d.Nack() || d.Reject(nil) || !d.Ack() || d.Status() != ackpolicy.Acked {
			t.Fatalf("%s was acked, and is %v", name(d), d.Status())
		}
	}
	waitCommitted(t, group, topic, 0, records)
}
