package semantics_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestFirstSettlementWins(t *testing.T) {
	t.Parallel()
	calls := map[string]testkit.Verb{"AckCumulative": (*ackpolicy.Delivery).AckCumulative}
	for _, v := range testkit.Verbs {
		calls[v.Name] = v.Call
	}
	cases := []struct {
		first, second string
		want          bool // what the second returns
		status        ackpolicy.Status
	}{
		{"Ack", "Ack", true, ackpolicy.Acked},
		{"Ack", "AckCumulative", true, ackpolicy.Acked},
		{"Ack", "Nack", false, ackpolicy.Acked},
		{"Ack", "NackAfter", false, ackpolicy.Acked},
		{"Ack", "Reject", false, ackpolicy.Acked},
		{"AckCumulative", "Ack", true, ackpolicy.Acked},
		{"Nack", "Nack", true, ackpolicy.Nacked},
		{"Nack", "NackAfter", true, ackpolicy.Nacked},
		{"NackAfter", "Nack", true, ackpolicy.Nacked},
		{"Nack", "Ack", false, ackpolicy.Nacked},
		{"Nack", "AckCumulative", false, ackpolicy.Nacked},
		{"Nack", "Reject", false, ackpolicy.Nacked},
		{"Reject", "Reject", true, ackpolicy.Rejected},
		{"Reject", "Ack", false, ackpolicy.Rejected},
		{"Reject", "AckCumulative", false, ackpolicy.Rejected},
		{"Reject", "Nack", false, ackpolicy.Rejected},
	}
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(len(cases))...)
	s := testkit.Consume(t, testkit.Config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() > 1 {
			return nil
		}
		c := cases[d.Offset()]
		if status := d.Status(); status != ackpolicy.Pending {
			t.Errorf("before %s: %v", c.first, status)
		}
		if !calls[c.first](d) {
			t.Errorf("%s: false", c.first)
		}
		if got := calls[c.second](d); got != c.want || d.Status() != c.status {
			t.Errorf("%s, then %s: %v, %v", c.first, c.second, got, d.Status())
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, int64(len(cases)))
	s.Stop()
}

// A message that is acked or nacked by hand inside the handler, as InstantAck does it, is settled so, under every policy and
// whatever the handler does then. The subscriber notices the hand's ack a moment later than the handler may end.
func TestSettledByHand(t *testing.T) {
	t.Parallel()
	type second = func(d *ackpolicy.Delivery) error
	asks := func(v testkit.Verb) second { return func(d *ackpolicy.Delivery) error { v(d); return nil } }
	ends := func(err error) second { return func(*ackpolicy.Delivery) error { return err } }
	seconds := []second{
		ends(nil), ends(testkit.ErrBoom), ends(ackpolicy.ErrAck), ends(ackpolicy.ErrNack), ends(ackpolicy.ErrReject),
		asks((*ackpolicy.Delivery).Ack), asks((*ackpolicy.Delivery).Nack), asks((*ackpolicy.Delivery).AckCumulative),
	}
	partitions := int32(2 * len(seconds)) // acked by hand in the first half of them, nacked in the second
	topic := testkit.FilledTopic(t, partitions, 1)
	for _, policy := range testkit.Policies {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			group := brokertest.Group(t)
			s := testkit.Consume(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
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
				testkit.WaitCommitted(t, group, topic, p, 1)
			}
			s.Stop()
			for _, d := range s.All() {
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
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	sub := testkit.NewSubscriber(t, testkit.Config(group), testkit.NewLog(t))
	out, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	for i := range records {
		msg := testkit.Await(t, fmt.Sprint("record ", i), out)
		d, _ := ackpolicy.FromMessage(msg)
		msg.Ack()
		if d.Nack() || d.Reject(nil) || !d.Ack() || d.Status() != ackpolicy.Acked {
			t.Fatalf("%s was acked, and is %v", testkit.Name(d), d.Status())
		}
	}
	testkit.WaitCommitted(t, group, topic, 0, records)
}
