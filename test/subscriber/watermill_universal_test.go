package subscriber_test

import (
	"context"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/subscriber"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Watermill's universal suite on our subscriber, with the feature sets and the configuration that watermill-kafka's own
// tests use (pkg/kafka/pubsub_test.go). What differs:
//   - Topics have fewer partitions than upstream's 50: the suite opens hundreds of subscribers at once, and a fetch loop for
//     each partition of each is more than two cores care to run.
//   - Each of the suite's tests has its own group. In upstream's single one every subscriber that comes or goes
//     rebalances those of all tests, which takes longer than the suite waits on a slow machine; stock watermill-kafka fails there, too.
//   - What the suite does not close, the end of the test does; and since it leaves messages unread that a drain has to
//     wait for, drains are short.
//   - A nacked message comes again after 20 ms: the suite nacks 300 times, in the ordered set all in one partition.

const universalPartitions = 10

type pubSubs struct {
	marshaler kafka.MarshalerUnmarshaler
	changes   []testkit.Option
}

func (p pubSubs) open(t *testing.T) (message.Publisher, message.Subscriber) {
	return p.openGroup(t, t.Name())
}

func (p pubSubs) openWithoutGroup(t *testing.T) (message.Publisher, message.Subscriber) {
	return p.openGroup(t, "")
}

func (p pubSubs) openGroup(t *testing.T, group string) (message.Publisher, message.Subscriber) {
	t.Helper()
	if p.marshaler == nil {
		p.marshaler = kafka.DefaultMarshaler{}
	}
	logger := watermill.NopLogger{}
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: testkit.Shared.Addrs(), Marshaler: p.marshaler}, logger)
	testkit.Check(t, err)

	cfg := kafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Admin.Timeout = 30 * time.Second
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.ChannelBufferSize = 10240
	cfg.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	cfg.Consumer.Group.Rebalance.Timeout = 3 * time.Second
	c := ackpolicy.SubscriberConfig{DrainTimeout: 100 * time.Millisecond, Kafka: kafka.SubscriberConfig{
		Brokers:               testkit.Shared.Addrs(),
		Unmarshaler:           p.marshaler,
		OverwriteSaramaConfig: cfg,
		ConsumerGroup:         group,
		NackResendSleep:       20 * time.Millisecond,
		// Upstream's wait lists all topics of the broker with their settings, and the other tests leave hundreds.
		WaitForTopicCreationTimeout: time.Minute,
		InitializeTopicDetails: &sarama.TopicDetail{
			NumPartitions:     universalPartitions,
			ReplicationFactor: 1,
		},
	}}
	for _, change := range p.changes {
		change(&c)
	}
	sub, err := ackpolicy.NewSubscriber(c, logger)
	testkit.Check(t, err)
	t.Cleanup(func() {
		_ = publisher.Close()
		_ = sub.Close()
	})
	return publisher, sub
}

func partitionKey(_ string, msg *message.Message) (string, error) {
	return msg.Metadata.Get("partition_key"), nil
}

func TestUniversal(t *testing.T) {
	t.Parallel()
	tests.TestPubSub(t, tests.Features{ConsumerGroups: true, Persistent: true},
		pubSubs{}.open, pubSubs{}.openGroup)
}

func TestUniversalOrdered(t *testing.T) {
	if testing.Short() {
		t.Skip("skipping long tests")
	}
	t.Parallel()
	ordered := pubSubs{marshaler: kafka.NewWithPartitioningMarshaler(partitionKey)}
	tests.TestPubSub(t, tests.Features{ConsumerGroups: true, GuaranteedOrder: true, Persistent: true},
		ordered.open, pubSubs{}.openGroup)
}

func TestUniversalNoGroup(t *testing.T) {
	if testing.Short() {
		t.Skip("skipping long tests")
	}
	t.Parallel()
	tests.TestPubSub(t, tests.Features{Persistent: true, NewSubscriberReceivesOldMessages: true},
		pubSubs{}.openWithoutGroup, nil)
}

func TestUniversalAutoCommitDisabled(t *testing.T) {
	t.Parallel()
	manual := pubSubs{changes: []testkit.Option{func(c *ackpolicy.SubscriberConfig) {
		c.Kafka.OverwriteSaramaConfig.Consumer.Offsets.AutoCommit.Enable = false
	}}}
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups: true,
		Persistent:     true,
		ForceShort:     true, // as upstream: every ack is a separate commit
	}, manual.open, manual.openGroup)
}

// GuaranteedOrder would claim an order across keys.
func TestUniversalByKey(t *testing.T) {
	if testing.Short() {
		t.Skip("skipping long tests")
	}
	t.Parallel()
	byKey := pubSubs{changes: []testkit.Option{testkit.Ordering(ackpolicy.OrderByKey, 16)}}
	tests.TestPubSub(t, tests.Features{ConsumerGroups: true, Persistent: true}, byKey.open, byKey.openGroup)
}

// The next two tests are watermill-kafka's; the messages are ours.
func TestCtxValues(t *testing.T) {
	t.Parallel()
	publisher, sub := pubSubs{}.openWithoutGroup(t)
	topic := testkit.NewTopic(t, 4)
	for range 20 {
		testkit.Check(t, publisher.Publish(topic, message.NewMessage(watermill.NewUUID(), nil)))
	}
	messages, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	received, all := subscriber.BulkReadWithDeduplication(messages, 20, testkit.Patience)
	if !all {
		t.Fatalf("%d of 20 messages", len(received))
	}
	wantCtxValues(t, sub, topic, received)
}

func TestCtxValuesAfterRetry(t *testing.T) {
	t.Parallel()
	publisher, sub := pubSubs{}.openWithoutGroup(t)
	topic := testkit.NewTopic(t, 4)
	testkit.Check(t, publisher.Publish(topic, message.NewMessage(watermill.NewUUID(), nil)))
	messages, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	testkit.Await(t, "a message", messages).Nack()
	again := testkit.Await(t, "its second delivery", messages)
	again.Ack()
	wantCtxValues(t, sub, topic, message.Messages{again})
}

// wantCtxValues: what upstream's getters read from the messages agrees with where the topic's partitions end.
func wantCtxValues(t *testing.T, sub message.Subscriber, topic string, messages message.Messages) {
	t.Helper()
	ends := kafka.PartitionOffset{0: 0, 1: 0, 2: 0, 3: 0}
	for _, msg := range messages {
		partition, ok1 := kafka.MessagePartitionFromCtx(msg.Context())
		offset, ok2 := kafka.MessagePartitionOffsetFromCtx(msg.Context())
		timestamp, ok3 := kafka.MessageTimestampFromCtx(msg.Context())
		key, ok4 := kafka.MessageKeyFromCtx(msg.Context())
		if !ok1 || !ok2 || !ok3 || !ok4 || timestamp.IsZero() || key != nil {
			t.Errorf("partition %v, offset %v, timestamp %v %v, key %v %q", ok1, ok2, ok3, timestamp, ok4, key)
		}
		ends[partition] = max(ends[partition], offset+1)
	}
	got, err := sub.(*ackpolicy.Subscriber).PartitionOffset(topic)
	testkit.Check(t, err)
	if len(got) != len(ends) {
		t.Errorf("PartitionOffset: %v, want %v", got, ends)
	}
	for partition, end := range ends {
		if got[partition] != end {
			t.Errorf("PartitionOffset: %v, want %v", got, ends)
		}
	}
}

// Two of our subscribers and a stock one share a group: nothing is lost while they come and go.
func TestSharedWithStockSubscriber(t *testing.T) {
	t.Parallel()
	const partitions, each = 6, 50
	group, topic := brokertest.Group(t), testkit.NewTopic(t, partitions)
	cfg := testkit.Config(group)
	open := map[string]func() message.Subscriber{
		"ours":      func() message.Subscriber { return testkit.NewSubscriber(t, cfg, testkit.NewLog(t)) },
		"ours also": func() message.Subscriber { return testkit.NewSubscriber(t, cfg, testkit.NewLog(t)) },
		"stock": func() message.Subscriber {
			sub, err := kafka.NewSubscriber(cfg.Kafka, testkit.NewLog(t))
			testkit.Check(t, err)
			t.Cleanup(func() { testkit.Check(t, sub.Close()) })
			return sub
		},
	}
	seen := make(chan string, 100*partitions*each)
	subs := map[string]message.Subscriber{}
	start := func(member string) {
		subs[member] = open[member]()
		messages, err := subs[member].Subscribe(context.Background(), topic)
		testkit.Check(t, err)
		go func() {
			for msg := range messages {
				seen <- string(msg.Payload)
				msg.Ack()
			}
		}()
	}
	stable := func(members int) {
		testkit.Eventually(t, "a stable group", func() bool {
			n, state, err := brokertest.Members(testkit.Shared.Addrs(), group)
			return err == nil && n == members && state == "Stable"
		})
	}
	published, got := 0, map[string]bool{}
	send := func() {
		for p := range int32(partitions) {
			var records []brokertest.Record
			for range each {
				records = append(records, brokertest.Values(watermill.NewShortUUID())...)
			}
			testkit.Produce(t, topic, p, records...)
			published += each
		}
	}
	receive := func() {
		for len(got) < published {
			got[testkit.Await(t, "all that was published", seen)] = true
		}
	}

	for _, member := range []string{"ours", "stock", "ours also"} {
		send()
		start(member)
	}
	stable(3)
	receive()
	for i, member := range []string{"ours", "stock"} {
		send()
		testkit.Check(t, subs[member].Close())
		stable(2 - i)
		receive()
	}
	for p := range int32(partitions) {
		testkit.WaitCommitted(t, group, topic, p, int64(published/partitions))
	}
	testkit.Check(t, subs["ours also"].Close())
}
