package testkit

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// FakeTopic is NewTopic on a broker of the test's own.
func FakeTopic(t *testing.T, broker *brokertest.Broker, records ...brokertest.Record) (topic string, at Option) {
	t.Helper()
	topic, at = FakeTopicOf(t, broker, 1)
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, records...)
	Check(t, err)
	return topic, at
}

// FakeTopicOf is an empty topic on a broker of the test's own.
func FakeTopicOf(t *testing.T, broker *brokertest.Broker, partitions int32, settings ...string) (topic string, at Option) {
	t.Helper()
	topic = brokertest.Topic(t)
	Check(t, brokertest.CreateTopic(broker.Addrs(), topic, partitions, settings...))
	return topic, func(c *ackpolicy.SubscriberConfig) { c.Kafka.Brokers = broker.Addrs() }
}

// RefuseCommits has the broker refuse commits of records: by their offset, or by marks above it. The commit of a
// group's start position is stored.
func RefuseCommits(broker *brokertest.Broker, count int) *kfake.FaultHandle {
	return broker.Kfake().Fault(kfake.Fault{
		Keys:  []kmsg.Key{kmsg.OffsetCommit},
		Err:   kerr.CoordinatorLoadInProgress,
		Count: count,
		When: func(request kmsg.Request) bool {
			for _, topic := range request.(*kmsg.OffsetCommitRequest).Topics {
				for _, partition := range topic.Partitions {
					if partition.Offset > 0 || hasMarks(topic.Topic, partition) {
						return true
					}
				}
			}
			return false
		},
	})
}

func hasMarks(topic string, p kmsg.OffsetCommitRequestTopicPartition) bool {
	if p.Metadata == nil {
		return false
	}
	l, err := ledger.Decode(ledger.Place{Topic: topic, Partition: p.Partition, Offset: p.Offset}, *p.Metadata)
	return err == nil && len(l.Blocks) > 0
}
