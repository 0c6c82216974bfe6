package ackpolicytest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

// inGroup is a configuration with a consumer group.
func inGroup(options ...func(*ackpolicy.SubscriberConfig)) ackpolicy.SubscriberConfig {
	c := ackpolicy.SubscriberConfig{Kafka: kafka.SubscriberConfig{ConsumerGroup: "shop"}}
	for _, option := range options {
		option(&c)
	}
	return c
}

// service is a Router with one handler, and a journal of its deliveries.
type service struct {
	router *message.Router

	mu      sync.Mutex
	journal []string // partition/offset#attempt
}

// start runs a service that reads orders.
func start(t *testing.T, k *ackpolicytest.Kafka, config ackpolicy.SubscriberConfig, h message.NoPublishHandlerFunc, middlewares ...message.HandlerMiddleware) *service {
	t.Helper()
	return startOn(t, k, "orders", config, h, middlewares...)
}

func startOn(t *testing.T, k *ackpolicytest.Kafka, topics string, config ackpolicy.SubscriberConfig, h message.NoPublishHandlerFunc, middlewares ...message.HandlerMiddleware) *service {
	t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, k.Logger())
	if err != nil {
		t.Fatal(err)
	}
	s := &service{router: router}
	router.AddMiddleware(middlewares...)
	router.AddConsumerHandler("ship", topics, k.Subscriber(config), func(msg *message.Message) error {
		d := delivery(msg)
		s.mu.Lock()
		s.journal = append(s.journal, fmt.Sprintf("%d/%d#%d", d.Partition(), d.Offset(), d.Attempt()))
		s.mu.Unlock()
		return h(msg)
	})
	k.Start(router)
	return s
}

func (s *service) want(t *testing.T, deliveries ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.journal, deliveries) {
		t.Errorf("deliveries: got %v, want %v", s.journal, deliveries)
	}
}

func delivery(msg *message.Message) *ackpolicy.Delivery {
	d, ok := ackpolicy.FromMessage(msg)
	if !ok {
		panic("a message without a Delivery")
	}
	return d
}

// onceThen fails at the first attempt, and succeeds at the others.
func onceThen(err error) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		if delivery(msg).Attempt() == 1 {
			return err
		}
		return nil
	}
}

func wantCommitted(t *testing.T, k *ackpolicytest.Kafka, partition int32, want int64) {
	t.Helper()
	if got := k.Committed("shop", "orders", partition); got != want {
		t.Errorf("partition %d: committed %d, want %d", partition, got, want)
	}
}

// An hour passes in no time.
func TestNackAfterAnHour(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		k.Produce("orders", newMessage(), newMessage())
		start(t, k, inGroup(), onceThen(ackpolicy.NackAfter(time.Hour)), ackpolicy.NackOnError.Middleware)
		k.Advance(time.Minute)
		k.Settlement("shop", "orders", 0, 0).WantNacked(t, 1, time.Hour)
		wantCommitted(t, k, 0, 0)
		k.Advance(time.Hour - time.Minute)
		k.Settlement("shop", "orders", 0, 0).WantAcked(t, 2)
		k.WaitSettled("shop", "orders")
		wantCommitted(t, k, 0, 2)
	})
}

// However short CommitInterval is, nothing is busy while nothing happens. Otherwise this minute would not end.
func TestShortestCommitInterval(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		k.Produce("orders", newMessage())
		config := inGroup(func(c *ackpolicy.SubscriberConfig) { c.CommitInterval = time.Nanosecond })
		start(t, k, config, onceThen(nil), ackpolicy.NackOnError.Middleware)
		k.WaitSettled("shop", "orders")
		k.Advance(time.Minute)
		wantCommitted(t, k, 0, 1)
	})
}

// A message passes the Router as it was produced, and what its handler produces is published.
func TestProducedMessages(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		router, err := message.NewRouter(message.RouterConfig{}, k.Logger())
		if err != nil {
			t.Fatal(err)
		}
		sent := newMessage()
		sent.Metadata.Set("header", "value")
		router.AddMiddleware(ackpolicy.NackOnError.Middleware)
		router.AddHandler("ship", "orders", k.Subscriber(inGroup()), "shipped", k.Publisher(),
			func(msg *message.Message) ([]*message.Message, error) {
				if !msg.Equals(sent) {
					t.Errorf("got %s, %s, %v", msg.UUID, msg.Payload, msg.Metadata)
				}
				return []*message.Message{message.NewMessage("2", []byte("shipped"))}, nil
			})
		k.Start(router)
		k.Produce("orders", sent)
		k.WaitSettled("shop", "orders")
		if out := k.Records("shipped"); len(out) != 1 || string(out[0].Value) != "shipped" {
			t.Errorf("published %v", out)
		}
	})
}

// Two Subscribers of a group share its partitions; the one that closes leaves its own to the other.
func TestTwoMembers(t *testing.T) {
	for name, strategy := range map[string]func() sarama.BalanceStrategy{
		"eager": sarama.NewBalanceStrategyRange, "cooperative": sarama.NewBalanceStrategyCooperativeSticky,
	} {
		t.Run(name, func(t *testing.T) { testTwoMembers(t, strategy) })
	}
}

func testTwoMembers(t *testing.T, strategy func() sarama.BalanceStrategy) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		config := inGroup(func(c *ackpolicy.SubscriberConfig) {
			cfg := sarama.NewConfig()
			cfg.Consumer.Return.Errors = true
			cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
			cfg.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy()}
			c.Kafka.OverwriteSaramaConfig = cfg
		})
		k.CreateTopic("orders", 4)
		first := start(t, k, config, returns(nil), ackpolicy.NackOnError.Middleware)
		second := start(t, k, config, returns(nil), ackpolicy.NackOnError.Middleware)
		k.Advance(time.Second)
		produce := func() {
			for p := range int32(4) {
				k.ProduceRecord(&sarama.ProducerMessage{Topic: "orders", Partition: p})
			}
			k.WaitSettled("shop", "orders")
		}
		produce()
		for _, s := range []*service{first, second} {
			if len(s.journal) != 2 {
				t.Errorf("a member got %v", s.journal)
			}
		}
		if err := second.router.Close(); err != nil {
			t.Error(err)
		}
		produce()
		if len(first.journal) != 6 || len(second.journal) != 2 {
			t.Errorf("the members got %v and %v", first.journal, second.journal)
		}
	})
}

// Subscribers may share their connections.
func TestSharedConnections(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		var shared ackpolicy.Connections
		router, err := message.NewRouter(message.RouterConfig{}, k.Logger())
		if err != nil {
			t.Fatal(err)
		}
		router.AddMiddleware(ackpolicy.NackOnError.Middleware)
		topics := []string{"orders", "returns"}
		for _, topic := range topics {
			sub := k.Subscriber(inGroup(func(c *ackpolicy.SubscriberConfig) { c.Connections = &shared }))
			router.AddConsumerHandler(topic, topic, sub, returns(nil))
		}
		k.Start(router)
		for _, topic := range topics {
			k.Produce(topic, newMessage())
			k.WaitSettled("shop", topic)
		}
	})
}

// Rejected records reach a DeadLetter of the test's, and the topic of a DeadLetterTopic.
func TestDeadLetters(t *testing.T) {
	var letters ackpolicytest.Letters
	for name, dead := range map[string]ackpolicy.DeadLetter{
		"Letters": &letters, "DeadLetterTopic": ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}},
	} {
		t.Run(name, func(t *testing.T) {
			ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
				k.ProduceRecord(&sarama.ProducerMessage{
					Topic: "orders", Key: sarama.StringEncoder("key"), Value: sarama.StringEncoder("poison"),
					Headers: []sarama.RecordHeader{{Key: []byte("header"), Value: []byte("value")}},
				})
				start(t, k, inGroup(func(c *ackpolicy.SubscriberConfig) {
					c.DeadLetter, c.MaxDeliveries = dead, 3
				}), returns(errBoom), ackpolicy.NackOnError.Middleware)
				k.WaitSettled("shop", "orders")
				k.Settlement("shop", "orders", 0, 0).WantRejected(t, 3, errBoom)
				if n := len(k.Settlements("shop", "orders", 0, 0)); n != 3 {
					t.Errorf("%d settlements", n)
				}
				if name == "Letters" {
					letters.Want(t, "orders", 0, 0, errBoom)
					return
				}
				stored := k.Records("orders.dlq")
				if len(stored) != 1 || string(stored[0].Key) != "key" || string(stored[0].Value) != "poison" || string(stored[0].Headers[0].Value) != "value" {
					t.Errorf("stored: %v", stored)
				}
			})
		})
	}
}

// Without a group, a Subscriber reads everything, and settles without storing it.
func TestNoGroup(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		k.Produce("orders", newMessage())
		s := start(t, k, ackpolicy.SubscriberConfig{}, onceThen(errBoom), ackpolicy.NackOnError.Middleware)
		k.WaitSettled("", "orders")
		s.want(t, "0/0#1", "0/0#2")
		k.Settlement("", "orders", 0, 0).WantAcked(t, 2)
	})
}

// Partitions that are added are read.
func TestAddedPartitions(t *testing.T) {
	for _, group := range []string{"shop", ""} {
		t.Run(fmt.Sprintf("group %q", group), func(t *testing.T) {
			ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
				k.Produce("orders", newMessage())
				s := start(t, k, ackpolicy.SubscriberConfig{Kafka: kafka.SubscriberConfig{ConsumerGroup: group}}, returns(nil), ackpolicy.NackOnError.Middleware)
				k.WaitSettled(group, "orders")
				k.CreateTopic("orders", 2)
				k.ProduceRecord(&sarama.ProducerMessage{Topic: "orders", Partition: 1})
				k.WaitSettled(group, "orders")
				s.want(t, "0/0#1", "1/0#1")
			})
		})
	}
}

// What waits for a commit gets it.
func TestCommitsThatAreAwaited(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		config := inGroup(func(c *ackpolicy.SubscriberConfig) { c.CommitInterval = time.Hour })
		k.Produce("orders", newMessage())
		start(t, k, config, func(msg *message.Message) error {
			wantCommitted(t, k, 0, 1)
			return nil
		}, ackpolicy.Middleware{ConfirmFirst: true}.Middleware)
		k.Advance(time.Second)
		k.Crash()
		k.Produce("orders", newMessage())
		start(t, k, config, func(msg *message.Message) error {
			err := delivery(msg).AckSync(context.Background())
			wantCommitted(t, k, 0, 2)
			return err
		}, ackpolicy.Manual.Middleware)
		k.Advance(time.Second)
		k.Settlement("shop", "orders", 0, 1).WantAcked(t, 1)
	})
}

// Records that were pushed out of memory are read again.
func TestReadAgain(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		const records = 100
		for i := range records {
			msg := message.NewMessage(fmt.Sprint(i), make([]byte, 100_000))
			msg.Payload[0] = byte(i)
			k.Produce("orders", msg)
		}
		start(t, k, inGroup(func(c *ackpolicy.SubscriberConfig) {
			c.Ordering, c.MaxInFlight, c.MaxBufferedBytes = ackpolicy.Unordered, records, 1<<20
		}), func(msg *message.Message) error {
			d := delivery(msg)
			if int(msg.Payload[0]) != int(d.Offset()) || msg.UUID != fmt.Sprint(d.Offset()) {
				return errors.New("another record")
			}
			if d.Attempt() == 1 {
				return ackpolicy.NackAfter(time.Minute)
			}
			return nil
		}, ackpolicy.RejectOnError.Middleware)
		k.WaitSettled("shop", "orders")
		for offset := range int64(records) {
			k.Settlement("shop", "orders", 0, offset).WantAcked(t, 2)
		}
	})
}
