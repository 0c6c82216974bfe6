package chaos

import (
	"fmt"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// The protocols by which a group rebalances.
const (
	Eager       = "eager"
	Cooperative = "cooperative"
)

const (
	partitions    = 6
	maxInFlight   = 16
	maxDeliveries = 4
	session       = 3 * time.Second
	drain         = 3 * time.Second
	rebalance     = 6 * time.Second
	resendSleep   = 20 * time.Millisecond
)

// Spec is what all members of a run are given. AckFirst is with ConfirmFirst.
type Spec struct {
	Seed           uint64
	Protocol       string
	Ordering       ackpolicy.Ordering
	Policy         ackpolicy.Policy
	Stock          bool    // watermill-kafka's own Subscriber, without a policy
	Fake           bool    // the broker is kfake
	Calm           bool    // no handler nacks: then a clean end leaves nothing
	Output         string  // ExactlyOnce or AtLeastOnce: each record is copied to another topic; "": none is
	Cluster        []Fault // what befalls the brokers
	MaxUncommitted int
	Brokers        []string
	Group, Topic   string
	Dir            string // of the ledgers
}

// NewSpec chooses ordering and policy by seed: five seeds in a row have all policies, and all orderings.
func NewSpec(seed uint64, protocol string) Spec {
	n := seed
	if protocol == Cooperative {
		n++
	}
	return Spec{
		Seed: seed, Protocol: protocol, MaxUncommitted: 50, Cluster: []Fault{SlowCommits},
		Ordering: ackpolicy.Ordering(n % 3),
		Policy: []ackpolicy.Policy{
			ackpolicy.NackOnError, ackpolicy.Manual, ackpolicy.RejectOnError, ackpolicy.AckFirst, ackpolicy.Ack,
		}[seed%5],
	}
}

func (s Spec) String() string {
	what := fmt.Sprintf("seed=%d protocol=%s", s.Seed, s.Protocol)
	if s.Stock {
		return what + " stock watermill-kafka"
	}
	if s.Output != "" {
		what += " output=" + strings.ReplaceAll(s.Output, " ", "-")
	}
	return what + fmt.Sprintf(" ordering=%v policy=%v", s.Ordering, s.Policy)
}

// lane names the records that are handled one after another; empty: it is in none.
func (s Spec) lane(id ID) string {
	switch {
	case s.Stock || s.Ordering == ackpolicy.OrderByPartition:
		return fmt.Sprint(id.Partition)
	case s.Ordering == ackpolicy.OrderByKey:
		return s.key(id)
	}
	return ""
}

func (s Spec) maxInFlight() int {
	switch {
	case s.Ordering == ackpolicy.OrderByPartition:
		return 1
	case s.Output != "":
		return 4 * maxInFlight
	}
	return maxInFlight
}

// rate is how many records are produced per second.
func (s Spec) rate() float64 {
	if s.Output != "" {
		return 300
	}
	return 150
}

// letters reports whether rejected records go to a dead letter topic.
func (s Spec) letters() bool { return !s.Stock }

func (s Spec) saramaConfig() *sarama.Config {
	c := kafka.DefaultSaramaSubscriberConfig()
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.MaxWaitTime = 100 * time.Millisecond
	c.Consumer.Group.Heartbeat.Interval = session / 12
	c.Consumer.Group.Session.Timeout = session
	c.Consumer.Group.Rebalance.Timeout = rebalance
	c.Net.ReadTimeout = rebalance + 4*time.Second
	c.Metadata.Retry.Max = 5
	strategy := sarama.NewBalanceStrategyRange()
	if s.Protocol == Cooperative {
		strategy = sarama.NewBalanceStrategyCooperativeSticky()
	}
	c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy}
	return c
}

func (s Spec) kafkaConfig() kafka.SubscriberConfig {
	return kafka.SubscriberConfig{
		Brokers:               s.Brokers,
		OverwriteSaramaConfig: s.saramaConfig(),
		ConsumerGroup:         s.Group,
		NackResendSleep:       resendSleep,
		ReconnectRetrySleep:   100 * time.Millisecond,
	}
}

func (s Spec) config() ackpolicy.SubscriberConfig {
	cfg := ackpolicy.SubscriberConfig{
		Kafka:          s.kafkaConfig(),
		Ordering:       s.Ordering,
		MaxInFlight:    s.maxInFlight(),
		MaxUncommitted: s.MaxUncommitted,
		CommitInterval: 200 * time.Millisecond,
		MaxDeliveries:  maxDeliveries,
		DeadLetter:     ackpolicy.DeadLetterTopic{},
		DrainTimeout:   drain,
	}
	if s.Output == ExactlyOnce {
		cfg.Transactions = &ackpolicy.Transactions{}
	}
	return cfg
}

func (s Spec) middleware() message.HandlerMiddleware {
	return ackpolicy.Middleware{Policy: s.Policy, ConfirmFirst: s.Policy == ackpolicy.AckFirst}.Middleware
}

func (s Spec) letterTopic() string { return s.Topic + ".dlq" }

// key is that of a record: a partition has as many as are half of MaxInFlight, so that records wait for their keys.
func (s Spec) key(id ID) string {
	keys := int64(maxInFlight / 2)
	if s.Output != "" {
		keys *= 4
	}
	return fmt.Sprintf("%d-%d", id.Partition, id.Offset%keys)
}
