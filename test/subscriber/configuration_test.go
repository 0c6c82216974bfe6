package subscriber_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// wrong are configurations with one mistake, and what the error has to name: the field and the value.
func wrong() map[string]struct {
	change testkit.Option
	names  []string
} {
	type mistake = struct {
		change testkit.Option
		names  []string
	}
	return map[string]mistake{
		"brokers":            {func(c *ackpolicy.SubscriberConfig) { c.Kafka.Brokers = nil }, []string{"Kafka.Brokers", "missing brokers"}},
		"policy":             {func(c *ackpolicy.SubscriberConfig) { c.Policy = new(ackpolicy.Policy(76)) }, []string{"Policy", "76"}},
		"ordering":           {func(c *ackpolicy.SubscriberConfig) { c.Ordering = 77 }, []string{"Ordering", "77"}},
		"in flight":          {func(c *ackpolicy.SubscriberConfig) { c.MaxInFlight = -11 }, []string{"MaxInFlight", "-11"}},
		"in flight total":    {func(c *ackpolicy.SubscriberConfig) { c.MaxInFlightTotal = -12 }, []string{"MaxInFlightTotal", "-12"}},
		"uncommitted":        {func(c *ackpolicy.SubscriberConfig) { c.MaxUncommitted = -13 }, []string{"MaxUncommitted", "-13", "Unlimited"}},
		"bytes":              {func(c *ackpolicy.SubscriberConfig) { c.MaxBufferedBytes = -14 }, []string{"MaxBufferedBytes", "-14"}},
		"commit interval":    {func(c *ackpolicy.SubscriberConfig) { c.CommitInterval = -15 }, []string{"CommitInterval", "-15"}},
		"drain timeout":      {func(c *ackpolicy.SubscriberConfig) { c.DrainTimeout = -16 }, []string{"DrainTimeout", "-16"}},
		"nack sleep":         {func(c *ackpolicy.SubscriberConfig) { c.Kafka.NackResendSleep = -17 }, []string{"Kafka.NackResendSleep", "-17"}},
		"reconnect sleep":    {func(c *ackpolicy.SubscriberConfig) { c.Kafka.ReconnectRetrySleep = -18 }, []string{"Kafka.ReconnectRetrySleep", "-18"}},
		"sarama's own check": {func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Consumer.Fetch.Min = -19 }, []string{"OverwriteSaramaConfig", "Consumer.Fetch.Min"}},
	}
}

// wantWords asserts that there is an error with all the words.
func wantWords(t *testing.T, of string, err error, words []string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", of)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %q is not in the error:\n%v", of, word, err)
		}
	}
}

// Each mistake is named, and all of them in one error.
func TestConfigErrors(t *testing.T) {
	t.Parallel()
	sound := func() ackpolicy.SubscriberConfig {
		return ackpolicy.SubscriberConfig{Kafka: kafka.SubscriberConfig{
			Brokers:               []string{"localhost:9092"},
			ConsumerGroup:         "group",
			OverwriteSaramaConfig: kafka.DefaultSaramaSubscriberConfig(),
		}}
	}
	test := func(name string, cfg ackpolicy.SubscriberConfig, words []string) {
		_, err := ackpolicy.NewSubscriber(cfg, nil)
		wantWords(t, name, err, words)
	}
	all, words := sound(), []string(nil)
	for name, w := range wrong() {
		one := sound()
		w.change(&one)
		test(name, one, w.names)
		w.change(&all)
		words = append(words, w.names...)
	}
	test("all", all, words)

	parallel := sound()
	parallel.MaxInFlight = 4
	test("in flight above 1 by partition", parallel, []string{"MaxInFlight", "4", "OrderByPartition", "OrderByKey", "Unordered"})

	pointless := sound()
	pointless.Policy, pointless.MaxAge = new(ackpolicy.AckFirst), 21*time.Minute
	test("an age that AckFirst never reaches", pointless, []string{"MaxAge", "21m0s", "AckFirst"})

	empty := sound()
	empty.Transactions = &ackpolicy.Transactions{}
	empty.DeadLetter = (*ackpolicy.DeadLetterTopic)(nil)
	test("a pointer that is nil", empty, []string{"DeadLetter: a nil *ackpolicy.DeadLetterTopic"})
	empty.DeadLetter = (*ackpolicy.DeadLetterPublisher)(nil)
	test("another one", empty, []string{"DeadLetter: a nil *ackpolicy.DeadLetterPublisher"})

	if _, err := ackpolicy.NewSubscriber(sound(), nil); err != nil {
		t.Errorf("a sound configuration: %v", err)
	}
	unlimited := sound()
	unlimited.MaxUncommitted = ackpolicy.Unlimited
	unlimited.Kafka.NackResendSleep, unlimited.Kafka.ReconnectRetrySleep = kafka.NoSleep, kafka.NoSleep
	if _, err := ackpolicy.NewSubscriber(unlimited, nil); err != nil {
		t.Errorf("Unlimited and NoSleep: %v", err)
	}
}

// The application's configuration is copied, never changed.
func TestConfigIsNotChanged(t *testing.T) {
	t.Parallel()
	cfg := testkit.Config(brokertest.Group(t))
	before := *cfg.Kafka.OverwriteSaramaConfig
	topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.Ack.Middleware)
	s.Wait(t, 1)
	s.Stop()
	after := *cfg.Kafka.OverwriteSaramaConfig
	if before.Consumer.Offsets != after.Consumer.Offsets || before.ClientID != after.ClientID || before.Net.ReadTimeout != after.Net.ReadTimeout ||
		before.Consumer.MaxProcessingTime != after.Consumer.MaxProcessingTime || before.ChannelBufferSize != after.ChannelBufferSize ||
		before.Consumer.Return != after.Consumer.Return || before.Consumer.Group.Rebalance.Timeout != after.Consumer.Group.Rebalance.Timeout {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
}

// Watermill names a subscriber by its String method or its type, in logs and in the labels of metrics.
func TestSubscriberName(t *testing.T) {
	t.Parallel()
	stock := strings.TrimLeft(fmt.Sprintf("%T", &kafka.Subscriber{}), "*")
	sub := testkit.NewSubscriber(t, testkit.Config(""), nil)
	if got := sub.String(); got != stock {
		t.Errorf("String: %q, want %q", got, stock)
	}
	names := make(chan string, 1)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), testkit.NewTopic(t, 1, testkit.Numbered(1)...),
		func(msg *message.Message, _ *ackpolicy.Delivery) error {
			names <- message.SubscriberNameFromCtx(msg.Context())
			return nil
		}, ackpolicy.Ack.Middleware)
	if got := testkit.Await(t, "a message", names); got != stock {
		t.Errorf("the Router calls it %q, want %q", got, stock)
	}
	s.Stop()
}

// Guarantees states what the configuration promises.
func TestGuarantees(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change testkit.Option
		words  []string
	}{
		"default":   {func(*ackpolicy.SubscriberConfig) {}, []string{"at least once", "partition", "100000"}},
		"by key":    {testkit.Ordering(ackpolicy.OrderByKey, 0), []string{"at least once", "key"}},
		"bound":     {func(c *ackpolicy.SubscriberConfig) { c.MaxUncommitted = 1234 }, []string{"1234"}},
		"no group":  {func(c *ackpolicy.SubscriberConfig) { c.Kafka.ConsumerGroup = "" }, []string{"group"}},
		"unordered": {testkit.Ordering(ackpolicy.Unordered, 0), []string{"at least once", "order"}},
	} {
		got := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), c.change), nil).Guarantees()
		for _, word := range c.words {
			if !strings.Contains(got, word) {
				t.Errorf("%s: %q is not in %q", name, word, got)
			}
		}
	}
}

// The constructor dials nothing, the initializer does what upstream's does.
func TestSubscribeInitialize(t *testing.T) {
	t.Parallel()
	cfg := testkit.Config(brokertest.Group(t))
	if err := testkit.NewSubscriber(t, cfg, nil).SubscribeInitialize("topic"); err == nil {
		t.Error("without InitializeTopicDetails: no error")
	}
	cfg.Kafka.InitializeTopicDetails = &sarama.TopicDetail{NumPartitions: 3, ReplicationFactor: 1}
	sub, topic := testkit.NewSubscriber(t, cfg, nil), brokertest.Topic(t)
	testkit.Check(t, sub.SubscribeInitialize(topic))
	testkit.Check(t, sub.SubscribeInitializeWithContext(t.Context(), topic))
	offsets, err := sub.PartitionOffset(topic)
	testkit.Check(t, err)
	if want := []int64{0, 0, 0}; len(offsets) != 3 || !slices.Equal([]int64{offsets[0], offsets[1], offsets[2]}, want) {
		t.Errorf("PartitionOffset: %v", offsets)
	}
	cfg.Kafka.Brokers = []string{"127.0.0.1:1"}
	started := time.Now()
	unreachable := testkit.NewSubscriber(t, cfg, nil)
	testkit.Check(t, unreachable.Close())
	if took := time.Since(started); took > time.Second {
		t.Errorf("a subscriber that was never used took %v", took)
	}
}
