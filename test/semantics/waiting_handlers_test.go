package semantics_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// waiting is how many handlers wait for a commit that record 0 holds back: as many as run at once by default.
const waiting = 64

// Handlers that wait for a commit hold every slot; the record that the commit waits for is due again, and needs one.
func TestNobodyWaitsForEver(t *testing.T) {
	t.Parallel()
	acksync := func(msg *message.Message, d *ackpolicy.Delivery) error { return d.AckSync(msg.Context()) }
	for _, c := range []struct {
		name        string
		handle      testkit.Handle
		policy      message.HandlerMiddleware
		undecodable bool
	}{
		{"AckSync behind a nacked record", acksync, ackpolicy.Manual.Middleware, false},
		{"AckSync behind an undecodable record", acksync, ackpolicy.Manual.Middleware, true},
		{"ConfirmFirst behind a nacked record", testkit.Succeed, testkit.ConfirmFirst, false},
		{"ConfirmFirst behind an undecodable record", testkit.Succeed, testkit.ConfirmFirst, true},
	} {
		for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByKey, ackpolicy.Unordered} {
			t.Run(fmt.Sprintf("%s/%v", c.name, o), func(t *testing.T) {
				t.Parallel()
				const records = 1 + 2*waiting
				var keys []string
				for i := range records {
					keys = append(keys, fmt.Sprint("key ", i))
				}
				group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed(keys...)...)
				var began atomic.Int32
				held := func() bool { return began.Load() < waiting } // record 0 comes to nothing
				cfg := testkit.Config(group, testkit.CommitOnDemand, testkit.Ordering(o, 0))
				if c.undecodable {
					cfg.Kafka.Unmarshaler = testkit.Refusing{While: held}
				}
				// Outside of the policy: what fails here is nacked, as Watermill has it, and is not acked first either.
				gate := func(h message.HandlerFunc) message.HandlerFunc {
					return func(msg *message.Message) ([]*message.Message, error) {
						if string(msg.Payload) != "0" {
							began.Add(1)
						} else if held() {
							return nil, testkit.ErrBoom
						}
						return h(msg)
					}
				}
				s := testkit.Consume(t, cfg, topic, c.handle, gate, c.policy)
				testkit.WaitCommitted(t, group, topic, 0, records)
				s.Stop()
				handled := map[int64]int{}
				for _, d := range s.All() {
					handled[d.Offset()]++
				}
				for offset := range int64(records) {
					if handled[offset] != 1 {
						t.Errorf("record %d was handled %d times", offset, handled[offset])
					}
				}
			})
		}
	}
}

// A record that is nacked from outside, while a handler behind it in its lane waits for its commit, is delivered again.
func TestNobodyWaitsForEverInALane(t *testing.T) {
	t.Parallel()
	for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "a", "a")...)
			s := testkit.Consume(t, testkit.Config(group, testkit.Ordering(o, 1)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				switch {
				case d.Offset() == 0 && d.Attempt() == 1:
					return nil // pending
				case d.Offset() == 0:
					return ackpolicy.ErrAck
				default:
					return d.AckSync(msg.Context())
				}
			}, ackpolicy.Manual.Middleware)
			second, first := s.Wait(t, 2), s.All()[0]
			testkit.Eventually(t, "the ack of the second", func() bool { return second.Status() == ackpolicy.Acked })
			if !first.Nack() {
				t.Error("Nack of the first: false")
			}
			testkit.WaitCommitted(t, group, topic, 0, 3)
			s.Stop()
			testkit.WantOnce(t, s, "0#1", "0#2", "1#1", "2#1")
		})
	}
}
