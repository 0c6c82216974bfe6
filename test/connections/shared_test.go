package connections_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func handled(*message.Message, *ackpolicy.Delivery) error { return nil }

// Subscribers with the same Connections share them. Those that the first one's end leaves continue with them, and the
// last one closes them.
func TestSubscribersShareConnections(t *testing.T) {
	t.Parallel()
	const subscribers = 8
	network := &brokertest.Network{}
	var shared ackpolicy.Connections
	var services []*testkit.Service
	var topics []string
	for range subscribers {
		topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
		cfg := testkit.Config(brokertest.Group(t), testkit.DeadLetterTopic)
		cfg.Connections = &shared
		network.Use(cfg.Kafka.OverwriteSaramaConfig)
		services = append(services, testkit.Consume(t, cfg, topic, handled, ackpolicy.NackOnError.Middleware))
		topics = append(topics, topic)
	}
	for _, s := range services {
		s.Wait(t, 1)
	}
	services[0].Stop()
	for i, s := range services[1:] {
		testkit.Produce(t, topics[i+1], 0, testkit.Numbered(1)...)
		s.Wait(t, 2)
	}
	for _, s := range services[1:] {
		s.Stop()
		s.Want(t, "0#1", "1#1")
	}
	testkit.Eventually(t, "the end of all connections", func() bool { return network.OpenConns() == 0 })
	again := testkit.Config(brokertest.Group(t))
	again.Connections = &shared
	network.Use(again.Kafka.OverwriteSaramaConfig)
	s := testkit.Consume(t, again, topics[0], handled, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 1)
}

// The start of a Router is not the sum of round trips: a Subscribe after the first one waits for no broker.
func TestSubscribeDoesNotWaitForTheBrokers(t *testing.T) {
	t.Parallel()
	const subscriptions = 10
	network := &brokertest.Network{}
	cfg := testkit.Config(brokertest.Group(t))
	network.Use(cfg.Kafka.OverwriteSaramaConfig)
	var topics []string
	for range subscriptions {
		topics = append(topics, testkit.NewTopic(t, 1, testkit.Numbered(1)...))
	}
	sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	var outputs []<-chan *message.Message
	for i, topic := range topics {
		messages, err := sub.Subscribe(context.Background(), topic)
		testkit.Check(t, err)
		outputs = append(outputs, messages)
		if i == 0 {
			network.Delay(time.Hour)
		}
	}
	network.Heal()
	for _, messages := range outputs {
		testkit.Await(t, "a message", messages).Ack()
	}
}

// Subscribers can share connections only if they would make the same ones.
func TestSharedConnectionsMustBeTheSame(t *testing.T) {
	t.Parallel()
	var shared ackpolicy.Connections
	first := testkit.Config(brokertest.Group(t))
	first.Connections = &shared
	testkit.NewSubscriber(t, first, nil)
	same := testkit.Config("another group")
	same.Connections = &shared
	testkit.NewSubscriber(t, same, nil)
	for setting, change := range map[string]testkit.Option{
		"Kafka.Brokers":                        func(c *ackpolicy.SubscriberConfig) { c.Kafka.Brokers = []string{"elsewhere:9092"} },
		"MaxBufferedBytes":                     func(c *ackpolicy.SubscriberConfig) { c.MaxBufferedBytes = 1 << 20 },
		"MaxInFlightTotal":                     func(c *ackpolicy.SubscriberConfig) { c.MaxInFlightTotal = 3 },
		"Kafka.OverwriteSaramaConfig.ClientID": func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.ClientID = "me" },
		"Kafka.OverwriteSaramaConfig.Version":  func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Version = sarama.V3_6_0_0 },
		"Kafka.OverwriteSaramaConfig.Net":      func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Net.SASL.User = "me" },
		"Kafka.OverwriteSaramaConfig.Metadata": func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Metadata.Full = false },
	} {
		other := testkit.Config(brokertest.Group(t), change)
		other.Connections = &shared
		if _, err := ackpolicy.NewSubscriber(other, nil); err == nil || !strings.Contains(err.Error(), setting+":") {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

// MaxInFlightTotal counts the handlers of all subscriptions of a Subscriber.
func TestMaxInFlightTotalOfASubscriber(t *testing.T) {
	t.Parallel()
	const most, subscriptions, records = 3, 4, 5
	cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.Unordered, 16))
	cfg.MaxInFlightTotal = most
	s := testkit.NewService(t)
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	sub := testkit.NewSubscriber(t, cfg, s.Log)
	finish := make(chan struct{})
	for range subscriptions {
		topic := testkit.NewTopic(t, 1, testkit.Numbered(records)...)
		s.Router.AddConsumerHandler(topic, topic, sub, s.Recorded(func(*message.Message, *ackpolicy.Delivery) error {
			<-finish
			return nil
		}))
	}
	s.Start(t)
	s.Wait(t, most)
	state := sub.State()
	testkit.Eventually(t, "all partitions", func() bool {
		state = sub.State()
		for _, of := range state.Subscriptions {
			if len(of.Partitions) == 0 || of.Partitions[0].Next < records {
				return false
			}
		}
		return true
	})
	if n := len(s.All()); n != most {
		t.Errorf("%d handlers run, want %d", n, most)
	}
	close(finish)
	s.Wait(t, subscriptions*records)
}

// The end of one subscription, while its requests get no response, does not end the others.
func TestOneSubscriptionEndsAmongOthers(t *testing.T) {
	t.Parallel()
	const others = 10 // some of which commit over the same connection
	sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t)), testkit.NewLog(t))
	var outputs []<-chan *message.Message
	var topics []string
	for range others {
		topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
		messages, err := sub.Subscribe(context.Background(), topic)
		testkit.Check(t, err)
		outputs, topics = append(outputs, messages), append(topics, topic)
	}
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		messages, err := sub.Subscribe(ctx, testkit.NewTopic(t, 1, testkit.Numbered(1)...))
		testkit.Check(t, err)
		testkit.Await(t, "a message", messages).Ack()
		cancel()
		for range messages { //nolint:revive // to its end
		}
	}
	for i, messages := range outputs {
		testkit.Await(t, "a message", messages).Ack()
		testkit.Produce(t, topics[i], 0, testkit.Numbered(1)...)
		testkit.Await(t, "another message", messages).Ack()
	}
}
