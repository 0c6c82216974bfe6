package topics_test

import (
	"strings"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// One member reads all topics of a list; each record comes once, in the order of its key, and is stored under its topic.
func TestList(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		group, a, b := brokertest.Group(t), brokertest.Topic(t), brokertest.Topic(t)
		create(t, a, b)
		fill(t, a, 20)
		var got handled
		handle := func(_ *message.Message, d *ackpolicy.Delivery) error {
			got.add(d)
			return nil
		}
		cfg := testkit.Config(group, rebalance, testkit.Ordering(ackpolicy.OrderByKey, 4))
		s := testkit.Consume(t, cfg, a+", "+b, handle, ackpolicy.NackOnError.Middleware)
		stored(t, group, 20, a)
		awaitMembers(t, group, 1)
		second := testkit.Consume(t, cfg, b+","+a, handle, ackpolicy.NackOnError.Middleware)
		awaitMembers(t, group, 2)
		fill(t, b, 20)
		stored(t, group, 20, b)
		s.Stop()
		second.Stop()
		got.wantOnce(t, a, 20, 20)
		got.wantOnce(t, b, 20, 20)
		stored(t, group, 20, a, b)
	})
}

// A topic of a list that is created later is read from its beginning, even if the group starts at the newest records; one
// that is deleted and created again too. The other topic does not notice.
func TestListOfWhatComesAndGoes(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		group, kept, late := brokertest.Group(t), brokertest.Topic(t), brokertest.Topic(t)
		create(t, kept)
		var got handled
		s := testkit.Consume(t, testkit.Config(group, rebalance, soon, testkit.InitialOffset(sarama.OffsetNewest)), kept+","+late,
			func(_ *message.Message, d *ackpolicy.Delivery) error {
				got.add(d)
				return nil
			}, ackpolicy.NackOnError.Middleware)
		stored(t, group, 0, kept)
		producer := testkit.StartProducer(t, kept, partitions, 100, 5)
		testkit.Eventually(t, "a line that names the missing topic", func() bool {
			return len(testkit.Containing(s.Log.At("error"), "The topic does not exist", "topic="+late)) > 0
		})
		create(t, late)
		fill(t, late, 4)
		stored(t, group, 4, late)
		remove(t, late)
		create(t, late)
		fill(t, late, 3)
		testkit.Eventually(t, "the records of the new topic", func() bool { return got.of(late) == 2*(4+3) })
		ends := producer.Finish(t)
		for p, end := range ends {
			testkit.WaitCommitted(t, group, kept, int32(p), end)
		}
		s.Stop()
		got.wantOnce(t, kept, ends...)
		if lines := testkit.Containing(s.Log.At("error"), "topic="+kept); len(lines) > 0 {
			t.Errorf("errors of the topic that was kept:\n%s", strings.Join(lines, "\n"))
		}
	})
}

// Subscribe names what is wrong with a list or a pattern.
func TestBadTopics(t *testing.T) {
	t.Parallel()
	sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t)), nil)
	for _, bad := range []string{"", "..", "^orders", "orders,", "orders/*"} {
		if _, err := sub.Subscribe(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "Subscribe: topic \""+bad+"\"") {
			t.Errorf("%s: got %v", bad, err)
		}
	}
	alone := testkit.NewSubscriber(t, testkit.Config("", soon), nil)
	topic := testkit.NewTopic(t, 1)
	missing := brokertest.Topic(t)
	if _, err := alone.Subscribe(t.Context(), topic+","+missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("without a group: got %v, want an error that names the topic that does not exist", err)
	}
}

// SubscribeInitialize creates each topic of a list, and none of a pattern.
func TestInitializeTopics(t *testing.T) {
	t.Parallel()
	cfg := testkit.Config(brokertest.Group(t))
	cfg.Kafka.InitializeTopicDetails = &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}
	sub := testkit.NewSubscriber(t, cfg, nil)
	a, b := brokertest.Topic(t), brokertest.Topic(t)
	testkit.Check(t, sub.SubscribeInitialize(a+","+b+","+a+".*"))
	testkit.Admin(t, testkit.Shared, func(admin sarama.ClusterAdmin) error {
		topics, err := admin.ListTopics()
		for _, topic := range []string{a, b} {
			if _, ok := topics[topic]; !ok {
				t.Errorf("%s was not created", topic)
			}
		}
		return err
	})
}
