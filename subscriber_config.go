package ackpolicy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/strategy"
)

// Ordering says which records wait for each other.
type Ordering uint8

const (
	// OrderByPartition handles a partition's records one after the other. A
	// nacked one holds all behind it.
	OrderByPartition Ordering = iota
	// OrderByKey handles records with the same key one after the other and
	// others at the same time. A nacked one holds its key only. A record without a key waits for none.
	OrderByKey
	// Unordered handles all records at the same time; a nacked one holds nothing.
	Unordered
)

var orderingNames = [...]string{"partition", "key", "none"}

// String returns "partition", "key" or "none".
func (o Ordering) String() string {
	if int(o) < len(orderingNames) {
		return orderingNames[o]
	}
	return fmt.Sprintf("Ordering(%d)", uint8(o))
}

// Undecodable says what becomes of a record that the Unmarshaler refuses.
type Undecodable uint8

const (
	// UndecodableAuto rejects it where there is a DeadLetter, and else is UndecodableRetry.
	UndecodableAuto Undecodable = iota
	// UndecodableRetry keeps it and tries again with backoff, without a limit.
	// Nothing is committed past it.
	UndecodableRetry
	// UndecodableReject gives it up.
	UndecodableReject
)

// Unlimited is a bound that is none.
const Unlimited = -1

const (
	defaultMaxInFlight      = 64
	defaultMaxUncommitted   = 100_000
	defaultMaxBufferedBytes = 64 << 20
	defaultDrainTimeout     = 10 * time.Second
	defaultHandlerSlow      = time.Minute
)

// SubscriberConfig configures a Subscriber. The zero value of every field but
// Kafka.Brokers is a working default.
type SubscriberConfig struct {
	// Kafka is watermill-kafka's own configuration; each of its fields is
	// honoured. With Consumer.Offsets.AutoCommit disabled in its sarama
	// configuration, which is copied and never changed, every ack is committed at
	// once rather than at CommitInterval. Its Consumer.Interceptors are called for each
	// delivery of a record, with a copy of it, from the goroutines that deliver.
	// Each subscription has its own instance of sarama's balance
	// strategies. A strategy of the application's own type is called for one subscription of the process at a
	// time; one with an OnAssignment, which remembers its member, serves one subscription only: Subscribe returns an error for a second.
	Kafka kafka.SubscriberConfig
	// Ordering: OrderByPartition by default.
	Ordering Ordering
	// MaxInFlight is how many handlers run at once, a partition; 0 is 1, or 64 with
	// OrderByKey and Unordered. Above 1 is an error with OrderByPartition.
	MaxInFlight int
	// MaxInFlightTotal is the same bound over all partitions of a subscription; 0 is no bound.
	MaxInFlightTotal int
	// MaxUncommitted is how many delivered records of a partition no confirmed commit may
	// cover, by its offset or by a mark behind it: the most that a crash replays. A record
	// that waits for long counts as one, not what is settled and stored behind it. Without a
	// group it is how many records may lie between the oldest unsettled one and the highest
	// delivered one. 0 is 100,000; Unlimited is no bound.
	MaxUncommitted int
	// MaxBufferedBytes is how many bytes of records, with 160 more for each and 56
	// for each header, a subscription holds before it pauses fetching. Half of it is divided
	// evenly among the assigned partitions, the other half goes to those that need more, in
	// turn. A fetch counts as it is once it is decompressed, and as a whole: expect up to twice
	// the bound in memory, or two fetches if those are larger. Each running handler has a copy
	// of its record's key and value beside that. 0 is 64 MiB.
	MaxBufferedBytes int64
	// CommitInterval is the longest time until a commit that nobody waits for. One comes
	// sooner the more is settled: after a fifth of it for one record, half of that for
	// two, and 50 ms after the last one at the soonest. 0 is sarama's
	// Consumer.Offsets.AutoCommit.Interval (1 s).
	CommitInterval time.Duration
	// Backoff returns how long a nacked record waits for its next delivery, where
	// the nack itself brought no delay. attempt is the delivery that was just
	// nacked, 1 the first; err is the handler's error, nil for a nack without one.
	// nil: Kafka.NackResendSleep (100 ms) each time.
	Backoff func(attempt int, err error) time.Duration
	// MaxDeliveries is how often a record is delivered at most: a nack of the last
	// delivery becomes a reject, with the handler's error as its reason. 0 is no
	// limit. The count goes on over restarts and revocations, see Delivery.Attempt. It says nothing about
	// time: five deliveries with ExponentialBackoff's defaults are over in 0.75 s on average, and
	// an outage that is longer rejects what it meets. MaxAge bears one. A record whose handler
	// ends the process is found, too, and rejected with ErrProcessDied, after as many deaths and two
	// more; for that, an assignment begins with a commit.
	MaxDeliveries int
	// MaxAge is for how long a record is delivered: a nack becomes a reject once so
	// much time has passed since the record's first delivery began, with the handler's
	// error as its reason. 0 is no limit. An outage that is shorter rejects nothing. Where
	// MaxDeliveries is set, too, the limit that is reached first counts. The age goes on
	// over restarts and revocations, as the count of deliveries does.
	MaxAge time.Duration
	// DeadLetter takes rejected records; nil logs them at error level. A record's
	// offset is not committed before its letter is stored.
	DeadLetter DeadLetter
	// OnUndecodable says what becomes of a record that the Unmarshaler refuses.
	OnUndecodable Undecodable
	// OnUnstorable says what becomes of a rejected record whose letter the DeadLetter
	// refuses for good.
	OnUnstorable Unstorable
	// DrainTimeout is how long running handlers may take to finish on Close and
	// on a revocation; there it is cut to what Rebalance.Timeout leaves. After it their contexts
	// end with ErrClosing or ErrRevoked as the cause. Nacked records are not waited for. 0 is 10 s.
	DrainTimeout time.Duration
	// HandlerSlow is how long a handler may run before the log and Hooks.HandlerSlow say so, ever
	// more rarely, and once more when all have returned. Nothing is done about it. 0 is 1
	// minute; a negative value turns it off.
	HandlerSlow time.Duration
	// Hooks tell what happens.
	Hooks Hooks
}

func (c *SubscriberConfig) setDefaults() {
	if c.Kafka.OverwriteSaramaConfig == nil {
		c.Kafka.OverwriteSaramaConfig = kafka.DefaultSaramaSubscriberConfig()
	}
	if c.Kafka.Unmarshaler == nil {
		c.Kafka.Unmarshaler = kafka.DefaultMarshaler{}
	}
	if c.Kafka.NackResendSleep == 0 {
		c.Kafka.NackResendSleep = 100 * time.Millisecond
	}
	if c.Kafka.ReconnectRetrySleep == 0 {
		c.Kafka.ReconnectRetrySleep = time.Second
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = defaultMaxInFlight
		if c.Ordering == OrderByPartition {
			c.MaxInFlight = 1
		}
	}
	if c.MaxUncommitted == 0 {
		c.MaxUncommitted = defaultMaxUncommitted
	}
	if c.MaxBufferedBytes == 0 {
		c.MaxBufferedBytes = defaultMaxBufferedBytes
	}
	if c.CommitInterval == 0 {
		c.CommitInterval = c.Kafka.OverwriteSaramaConfig.Consumer.Offsets.AutoCommit.Interval
		if c.CommitInterval <= 0 {
			c.CommitInterval = time.Second
		}
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = defaultDrainTimeout
	}
	if c.HandlerSlow == 0 {
		c.HandlerSlow = defaultHandlerSlow
	}
}

// Validate returns every problem of the configuration in one error; each names
// its field, its value and what to set. NewSubscriber calls it.
func (c SubscriberConfig) Validate() error {
	c.setDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if len(c.Kafka.Brokers) == 0 {
		bad("Kafka.Brokers: missing brokers: give at least one address, host:port")
	}
	for i, b := range c.Kafka.Brokers {
		if b == "" {
			bad("Kafka.Brokers[%d]: empty: want host:port", i)
		}
	}
	if d := c.Kafka.NackResendSleep; d < 0 && d != kafka.NoSleep {
		bad("Kafka.NackResendSleep: %v: want 0 (100ms), a positive duration or kafka.NoSleep", d)
	}
	if d := c.Kafka.ReconnectRetrySleep; d < 0 && d != kafka.NoSleep {
		bad("Kafka.ReconnectRetrySleep: %v: want 0 (1s), a positive duration or kafka.NoSleep", d)
	}
	if d := c.Kafka.WaitForTopicCreationTimeout; d < 0 {
		bad("Kafka.WaitForTopicCreationTimeout: %v: want 0 (10s) or a positive duration", d)
	}
	if err := c.Kafka.OverwriteSaramaConfig.Validate(); err != nil {
		bad("Kafka.OverwriteSaramaConfig: %w", err)
	}
	if v := c.Kafka.OverwriteSaramaConfig.Version; c.Kafka.ConsumerGroup != "" && !v.IsAtLeast(sarama.V0_11_0_0) {
		bad("Kafka.OverwriteSaramaConfig.Version: %v: consumer groups need at least %v", v, sarama.V0_11_0_0)
	}
	if int(c.Ordering) >= len(orderingNames) {
		bad("Ordering: %d: want OrderByPartition, OrderByKey or Unordered", uint8(c.Ordering))
	}
	switch {
	case c.MaxInFlight < 0:
		bad("MaxInFlight: %d: want 0 (the default) or a positive number", c.MaxInFlight)
	case c.MaxInFlight > 1 && c.Ordering == OrderByPartition:
		bad("MaxInFlight: %d: with OrderByPartition only 1 keeps the order: choose OrderByKey or Unordered", c.MaxInFlight)
	}
	if c.MaxInFlightTotal < 0 {
		bad("MaxInFlightTotal: %d: want 0 (no bound) or a positive number", c.MaxInFlightTotal)
	}
	if c.MaxUncommitted < Unlimited {
		bad("MaxUncommitted: %d: want 0 (100,000), a positive number or Unlimited", c.MaxUncommitted)
	}
	if c.MaxBufferedBytes < 0 {
		bad("MaxBufferedBytes: %d: want 0 (64 MiB) or a positive number", c.MaxBufferedBytes)
	}
	if c.MaxDeliveries < 0 {
		bad("MaxDeliveries: %d: want 0 (no limit) or a positive number", c.MaxDeliveries)
	}
	if c.MaxAge < 0 {
		bad("MaxAge: %v: want 0 (no limit) or a positive duration", c.MaxAge)
	}
	if c.OnUndecodable > UndecodableReject {
		bad("OnUndecodable: %d: want UndecodableAuto, UndecodableRetry or UndecodableReject", uint8(c.OnUndecodable))
	}
	switch c.OnUnstorable {
	case UnstorableKeep, UnstorableGiveUp:
	case UnstorableReduce:
		switch c.DeadLetter.(type) {
		case nil, DeadLetterTopic, *DeadLetterTopic:
		default:
			bad("OnUnstorable: UnstorableReduce: only a DeadLetterTopic can, the DeadLetter is a %T: choose UnstorableKeep or UnstorableGiveUp", c.DeadLetter)
		}
	default:
		bad("OnUnstorable: %d: want UnstorableKeep, UnstorableReduce or UnstorableGiveUp", uint8(c.OnUnstorable))
	}
	if c.CommitInterval < 0 {
		bad("CommitInterval: %v: want 0 (sarama's auto-commit interval) or a positive duration", c.CommitInterval)
	}
	if c.DrainTimeout < 0 {
		bad("DrainTimeout: %v: want 0 (10s) or a positive duration", c.DrainTimeout)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("ackpolicy: bad SubscriberConfig: %w", errors.Join(errs...))
}

func (o Ordering) lanes() partition.Order {
	switch o {
	case OrderByKey:
		return partition.ByKey
	case Unordered:
		return partition.Unordered
	}
	return partition.ByPartition
}

// saramaConfigs returns two copies of the user's configuration: for the client
// that is a member of the group and fetches, and for the coordinator's own.
func (c *SubscriberConfig) saramaConfigs() (fetch, side *sarama.Config) {
	fetch = copySarama(c.Kafka.OverwriteSaramaConfig)
	side = copySarama(c.Kafka.OverwriteSaramaConfig)
	// Commits and re-reads answer in milliseconds; a drain must not wait for more.
	side.Net.ReadTimeout = min(side.Net.ReadTimeout, 10*time.Second)
	return fetch, side
}

func copySarama(user *sarama.Config) *sarama.Config {
	c := *user
	c.Consumer.Offsets.AutoCommit.Enable = false // we commit
	c.Consumer.Return.Errors = true              // we read them
	c.Consumer.Interceptors = nil                // we call them, for each delivery
	rebalance := &c.Consumer.Group.Rebalance
	// While sarama waits to rejoin, the group is a generation ahead of the session
	// and refuses its commits: shorter pauses, and as many more of them.
	const pause = 100 * time.Millisecond
	if b := rebalance.Retry.Backoff; b > pause {
		rebalance.Retry.Max *= int(b / pause)
		rebalance.Retry.Backoff = pause
	}
	rebalance.Strategy = strategy.Own(rebalance.Strategy)
	rebalance.GroupStrategies = slices.Clone(rebalance.GroupStrategies)
	for i, s := range rebalance.GroupStrategies {
		rebalance.GroupStrategies[i] = strategy.Own(s)
	}
	return &c
}
