package topics_test

import (
	"errors"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A dead letter topic that cannot be opened holds the letters of its own topic only.
func TestDeadLetterTopicThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	for _, topic := range []string{"orders.eu", "orders.us"} {
		testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, 1))
	}
	opening := broker.Kfake().Fault(kfake.Fault{ // it is created, and has no leader
		Keys: []kmsg.Key{kmsg.Metadata}, Topic: "orders.us.dlq", Err: kerr.LeaderNotAvailable, Count: -1,
	})
	cfg := testkit.Config(brokertest.Group(t), soon)
	cfg.Kafka.Brokers = broker.Addrs()
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}}
	s := testkit.Consume(t, cfg, "orders.*", testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	reject := func(topic string) {
		_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(1)...)
		testkit.Check(t, err)
	}
	reject("orders.us")
	testkit.Check(t, opening.Wait(t.Context(), 3))
	reject("orders.eu")
	if !testkit.PollFor(testkit.Patience/3, func() bool {
		stored, err := brokertest.Committed(broker.Addrs(), cfg.Kafka.ConsumerGroup, "orders.eu", 0)
		return err == nil && stored == 1
	}) {
		t.Error("the letter of orders.eu waits for the dead letter topic of orders.us")
	}
	opening.Remove()
	testkit.Eventually(t, "the letter of orders.us", func() bool {
		stored, err := brokertest.Committed(broker.Addrs(), cfg.Kafka.ConsumerGroup, "orders.us", 0)
		return err == nil && stored == 1
	})
	s.Stop()
}

// A topic whose letters would go to itself is read: the letters are refused, with a line that says why.
func TestLettersToTheTopicItself(t *testing.T) {
	t.Parallel()
	group, prefix := brokertest.Group(t), brokertest.Topic(t)
	topic := prefix + ".a"
	create(t, topic)
	fill(t, topic, 1)
	cfg := testkit.Config(group, soon)
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Topic: func(origin string) string { return origin }}
	s := testkit.Consume(t, cfg, prefix+".*", func(*message.Message, *ackpolicy.Delivery) error {
		return ackpolicy.RejectWith(errors.New("no"))
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, partitions)
	testkit.Eventually(t, "a line that says why", func() bool {
		return len(testkit.Containing(s.Log.At("error"), "would go to the topic itself")) > 0
	})
	s.Stop()
}
