package testkit

import (
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Option changes a configuration.
type Option = func(*ackpolicy.SubscriberConfig)

// Config returns what tests run with: Watermill's own defaults, in a hurry, on the shared broker.
func Config(group string, options ...Option) ackpolicy.SubscriberConfig {
	cfg := kafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.MaxWaitTime = 100 * time.Millisecond
	cfg.Consumer.Group.Heartbeat.Interval = 200 * time.Millisecond
	cfg.Consumer.Group.Session.Timeout = 6 * time.Second
	cfg.Consumer.Group.Rebalance.Timeout = 20 * time.Second
	c := ackpolicy.SubscriberConfig{
		Kafka: kafka.SubscriberConfig{
			Brokers:               Shared.Addrs(),
			OverwriteSaramaConfig: cfg,
			ConsumerGroup:         group,
			NackResendSleep:       10 * time.Millisecond,
		},
		CommitInterval: 100 * time.Millisecond,
	}
	for _, option := range options {
		option(&c)
	}
	return c
}

// DrainTimeout sets DrainTimeout.
func DrainTimeout(d time.Duration) Option {
	return func(c *ackpolicy.SubscriberConfig) { c.DrainTimeout = d }
}

// Ordering sets Ordering and MaxInFlight.
func Ordering(o ackpolicy.Ordering, maxInFlight int) Option {
	return func(c *ackpolicy.SubscriberConfig) { c.Ordering, c.MaxInFlight = o, maxInFlight }
}

// InitialOffset sets where a group without a stored offset starts.
func InitialOffset(offset int64) Option {
	return func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Consumer.Offsets.Initial = offset }
}

// BalanceStrategy sets the group's only balance strategy.
func BalanceStrategy(s sarama.BalanceStrategy) Option {
	return func(c *ackpolicy.SubscriberConfig) {
		c.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{s}
	}
}

// Protocols returns the two ways in which a group rebalances.
func Protocols() map[string]Option {
	return map[string]Option{
		"eager":       BalanceStrategy(sarama.NewBalanceStrategyRange()),
		"cooperative": BalanceStrategy(sarama.NewBalanceStrategyCooperativeSticky()),
	}
}

// EachProtocol runs a test with each of them, in parallel.
func EachProtocol(t *testing.T, test func(t *testing.T, rebalance Option)) {
	t.Helper()
	for protocol, rebalance := range Protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			test(t, rebalance)
		})
	}
}

// CommitOnDemand leaves all commits to those who wait for one, and to the end.
func CommitOnDemand(c *ackpolicy.SubscriberConfig) { c.CommitInterval = time.Hour }
