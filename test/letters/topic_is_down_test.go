package letters_test

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// elsewhere sends letters to a separate broker.
func elsewhere(t *testing.T, network *brokertest.Network) (broker *brokertest.Broker, set testkit.Option) {
	t.Helper()
	broker = brokertest.NewFake(t) // a second one beside the shared one
	return broker, func(c *ackpolicy.SubscriberConfig) {
		cfg := *c.Kafka.OverwriteSaramaConfig
		cfg.Metadata.Retry.Max, cfg.Metadata.Retry.Backoff = 1, 10*time.Millisecond
		cfg.Producer.Retry.Backoff = 10 * time.Millisecond
		network.Use(&cfg)
		c.DeadLetter = ackpolicy.DeadLetterTopic{
			Brokers: broker.Addrs(), Config: &cfg, Create: &sarama.TopicDetail{NumPartitions: 1},
		}
	}
}

// While the dead letter topic cannot be written to, nothing is committed past the poison record, others are delivered,
// and the letter is stored once that works again: one, not one for each try.
func TestDeadLetterTopicIsDown(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*brokertest.Network, *brokertest.Broker) (heal func()){
		"unreachable": func(n *brokertest.Network, _ *brokertest.Broker) func() {
			n.Cut()
			return n.Heal
		},
		"disk full": func(_ *brokertest.Network, b *brokertest.Broker) func() {
			return b.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.KafkaStorageError, Count: -1}).Remove
		},
		"ACL revoked": func(_ *brokertest.Network, b *brokertest.Broker) func() {
			return b.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1}).Remove
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const records, poison, deliveries = 6, 2, 5
			network := &brokertest.Network{}
			broker, letters := elsewhere(t, network)
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
			cfg := testkit.Config(group, letters, testkit.Ordering(ackpolicy.Unordered, 4))
			cfg.MaxDeliveries = deliveries
			var failed, stored atomic.Int32
			cfg.Hooks.DeadLettered = func(e ackpolicy.DeadLetteredEvent) {
				if e.Err != nil {
					failed.Add(1)
				} else {
					stored.Add(1)
				}
			}
			s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == poison {
					return testkit.ErrPoison
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			heal := fault(network, broker)
			testkit.Produce(t, topic, 0, testkit.Numbered(records)...)
			testkit.Eventually(t, "a second try to store the letter", func() bool { return failed.Load() >= 2 })
			s.Wait(t, records+deliveries-1)
			testkit.WaitCommitted(t, group, topic, 0, poison)
			if n := stored.Load(); n > 0 {
				t.Errorf("%d letters stored while nothing can be", n)
			}
			if len(testkit.Containing(s.Log.At("error"), "Dead letter not stored", "kafka_partition_offset=2", topic+".dlq")) == 0 {
				t.Errorf("not in the log: %v", s.Log.At("error"))
			}
			heal()
			testkit.WaitCommitted(t, group, topic, 0, records)
			s.Stop()
			if end, err := brokertest.EndOffset(broker.Addrs(), topic+".dlq", 0); err != nil || end != 1 || stored.Load() != 1 {
				t.Errorf("%d letters (%v), %d reported", end, err, stored.Load())
			}
			if n := len(slices.DeleteFunc(s.Names(), func(n string) bool { return n[0] != '2' })); n != deliveries {
				t.Errorf("the poison record was delivered %d times: %v", n, s.Names())
			}
		})
	}
}
