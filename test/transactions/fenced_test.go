package transactions_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A transaction that the broker has ended is written again, and the error says what happened: sarama's does not.
func TestFenced(t *testing.T) {
	for name, fault := range map[string]kfake.Fault{
		"at its end": {Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.ProducerFenced, Count: 1},
		"before":     {Keys: []kmsg.Key{kmsg.AddOffsetsToTxn}, Err: kerr.InvalidProducerEpoch, Count: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			in, at := testkit.FakeTopic(t, broker, brokertest.KeyValue("key", "value"))
			out, _ := testkit.FakeTopicOf(t, broker, 1)
			cfg := testkit.Config(brokertest.Group(t), at)
			cfg.Transactions = &ackpolicy.Transactions{}
			failed, stored := make(chan error, 100), atomic.Bool{}
			cfg.Hooks.CommitFailed = func(e ackpolicy.CommitFailedEvent) { failed <- e.Err }
			cfg.Hooks.Committed = func(e ackpolicy.CommittedEvent) { stored.Store(e.Offset == 1) }
			s := testkit.NewService(t)
			sub := testkit.NewSubscriber(t, cfg, s.Log)
			pub, err := sub.Publisher(kafka.PublisherConfig{})
			testkit.Check(t, err)
			s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			s.Router.AddHandler("copy", in, sub, out, pub, func(msg *message.Message) ([]*message.Message, error) {
				broker.Kfake().Fault(fault) // the transaction that stores the start position is over, or nearly
				return message.Messages{text("%s", msg.Payload)}, nil
			})
			s.Start(t)
			if err := testkit.Await(t, "a failed commit", failed); !strings.Contains(err.Error(), "PRODUCER_FENCED") || strings.Contains(err.Error(), "Unknown error") {
				t.Error(err)
			}
			testkit.Eventually(t, "the transaction to be stored", stored.Load)
			s.Stop()
			var values []string
			testkit.Check(t, brokertest.Read(broker.Addrs(), out, 0, testkit.Patience, func(m *sarama.ConsumerMessage) error {
				values = append(values, string(m.Value))
				return nil
			}))
			if len(values) != 1 {
				t.Errorf("written: %q", values)
			}
		})
	}
}
