package batches_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A handler that leaves, fails, nacks and acks records of its batches at random, also from other goroutines and for
// the batch as a whole before it returns: each record is settled in the end.
func TestAnythingIsSettled(t *testing.T) {
	t.Parallel()
	for _, ordering := range orderings {
		t.Run(fmt.Sprint(ordering), func(t *testing.T) {
			t.Parallel()
			const n = 300
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, keyed(n, 20)...)
			cfg := testkit.Config(group, testkit.Ordering(ordering, 0))
			cfg.Kafka.NackResendSleep = time.Millisecond
			s := testkit.NewService(t)
			s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			sub := testkit.NewSubscriber(t, cfg, s.Log).Batches(ackpolicy.BatchConfig{Size: 20, Wait: ackpolicy.NoWait, Concurrency: 3})
			s.Router.AddConsumerHandler("handler", topic, sub, func(msg *message.Message) error {
				b, _ := ackpolicy.BatchFromMessage(msg)
				for i, m := range b.Messages() {
					d, _ := ackpolicy.FromMessage(m)
					switch rand.IntN(8) {
					case 0:
						b.Leave(i)
					case 1:
						b.Fail(i, testkit.ErrBoom)
					case 2:
						d.NackAfter(time.Millisecond)
					case 3:
						b.Leave(i)
						go d.NackAfter(time.Millisecond)
					case 4:
						b.Leave(i)
						go d.Ack()
					case 5:
						go d.Reject(testkit.ErrPoison)
					}
				}
				switch rand.IntN(4) {
				case 0:
					msg.Ack()
				case 1:
					msg.Nack()
				case 2:
					return testkit.ErrBoom
				}
				return nil
			})
			s.Start(t)
			testkit.WaitCommitted(t, group, topic, 0, n)
			s.Stop()
		})
	}
}
