package ackpolicy_test

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
)

// elsewhere sends letters to a broker of their own.
func elsewhere(t *testing.T, network *brokertest.Network) (broker *brokertest.Broker, set change) {
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
			group, topic := brokertest.Group(t), newTopic(t, 1)
			cfg := config(group, letters, ordering(ackpolicy.Unordered, 4))
			cfg.MaxDeliveries = deliveries
			var failed, stored atomic.Int32
			cfg.Hooks.DeadLettered = func(e ackpolicy.DeadLetteredEvent) {
				if e.Err != nil {
					failed.Add(1)
				} else {
					stored.Add(1)
				}
			}
			s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == poison {
					return errPoison
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			heal := fault(network, broker)
			produce(t, topic, 0, numbered(records)...)
			eventually(t, "a second try to store the letter", func() bool { return failed.Load() >= 2 })
			s.journal.wait(t, records+deliveries-1)
			waitCommitted(t, group, topic, 0, poison)
			if n := stored.Load(); n > 0 {
				t.Errorf("%d letters stored while nothing can be", n)
			}
			if len(with(s.log.at("error"), "Dead letter not stored", "kafka_partition_offset=2", topic+".dlq")) == 0 {
				t.Errorf("not in the log: %v", s.log.at("error"))
			}
			heal()
			waitCommitted(t, group, topic, 0, records)
			s.stop()
			if end, err := brokertest.EndOffset(broker.Addrs(), topic+".dlq", 0); err != nil || end != 1 || stored.Load() != 1 {
				t.Errorf("%d letters (%v), %d told", end, err, stored.Load())
			}
			if n := len(slices.DeleteFunc(s.journal.names(), func(n string) bool { return n[0] != '2' })); n != deliveries {
				t.Errorf("the poison record was delivered %d times: %v", n, s.journal.names())
			}
		})
	}
}
