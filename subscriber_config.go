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

// Ordering says which records are handled one after the other.
type Ordering uint8

const (
	// OrderByPartition handles the records of a partition one after the other. A
	// nacked record holds back all records behind it.
	OrderByPartition Ordering = iota
	// OrderByKey handles records with the same key one after the other, and records
	// with different keys concurrently. A nacked record holds back only the records
	// with its key. A record without a key waits for no other.
	OrderByKey
	// Unordered handles records concurrently. A nacked record holds back no other.
	Unordered
)

var orderingNames = [...]string{"partition", "key", "none"}

// String returns "partition", "key" or "none".
func (o Ordering) String() string { return nameOf("Ordering", orderingNames[:], o) }

// Undecodable says what happens to a record that the Unmarshaler cannot decode.
type Undecodable uint8

const (
	// UndecodableAuto rejects the record if there is a DeadLetter. Otherwise it is
	// UndecodableRetry.
	UndecodableAuto Undecodable = iota
	// UndecodableRetry keeps the record and tries again with backoff, without a limit.
	// Nothing is committed past it.
	UndecodableRetry
	// UndecodableReject rejects the record.
	UndecodableReject
)

// Unlimited turns a limit off.
const Unlimited = -1

const (
	defaultMaxInFlight      = 64
	defaultMaxUncommitted   = 100_000
	defaultMaxBufferedBytes = 64 << 20
	defaultDrainTimeout     = 10 * time.Second
	defaultHandlerSlow      = time.Minute
)

// SubscriberConfig configures a Subscriber. Only Kafka.Brokers is required: the
// zero value of every other field is a working default.
type SubscriberConfig struct {
	// Kafka is watermill-kafka's configuration. Each of its fields is honoured.
	//
	// Its sarama configuration is copied, not changed. If Consumer.Offsets.AutoCommit
	// is disabled there, every ack is committed at once instead of within
	// CommitInterval. Its Consumer.Interceptors are called for each delivery with a
	// copy of the record, from the goroutines that deliver.
	//
	// Each subscription has its own instance of sarama's balance strategies. A
	// strategy of the application's own type is called for one subscription of the
	// process at a time. A strategy with an OnAssignment method remembers its member
	// and serves one subscription only: Subscribe returns an error for a second one.
	Kafka kafka.SubscriberConfig
	// Policy says what becomes of the records of handlers without a Middleware. It changes
	// the meaning of msg.Ack and msg.Nack, whoever calls them: the Router, one of Watermill's
	// components, or a Subscribe loop. With Manual they settle nothing. If it is nil they ack
	// and nack, as with NackOnError.
	//
	//	Policy: new(ackpolicy.RejectOnError),
	//
	// A Middleware takes precedence, unless its own Policy is the zero value. Only a
	// Middleware knows the handler's error: without one there are no signals, and the reason
	// of a reject is only that the message was nacked.
	Policy *Policy
	// Ordering says which records are handled one after the other. The default is
	// OrderByPartition.
	Ordering Ordering
	// Key returns the key by which OrderByKey orders a record, nil if it waits for no other:
	// a header, for example, or a part of the record's key. If Key is nil, that is the
	// record's own key. Only the order is affected: Delivery.Key and the letter's key remain
	// the record's. Key is called once for each record that is fetched. It must return the
	// same key for the same record, must not change the record, and must not block.
	Key func(*sarama.ConsumerMessage) []byte
	// MaxInFlight is how many handlers run at once per partition. The default, 0, is
	// 1 with OrderByPartition, where more is an error, and 64 with OrderByKey and
	// Unordered.
	MaxInFlight int
	// MaxInFlightTotal is how many handlers run at once over all subscriptions of the
	// Subscriber, or of all Subscribers with the same Connections; 0 means no limit.
	MaxInFlightTotal int
	// MaxUncommitted limits the delivered records of a partition that no confirmed commit
	// covers, by its offset or by a mark. A crash replays at most that many. A record that
	// waits for a long time counts as one; those that are settled and stored behind it do
	// not count. Without a consumer group it is how
	// many records may lie between the oldest unsettled record and the last delivered
	// one. 0 means 100,000; Unlimited turns the limit off.
	MaxUncommitted int
	// MaxBufferedBytes is how many bytes of records all subscriptions of the Subscriber, or of
	// all Subscribers with the same Connections, hold before they pause fetching. Each record
	// counts 160 bytes more than its content, and each header 56. Half of it is divided evenly
	// among the assigned partitions. The other half goes to the partitions that need more, in
	// turn.
	//
	// A fetch counts as a whole, with its decompressed size. So memory may reach
	// twice the limit, or two fetches if those are larger, also when many partitions are
	// assigned at once. Each running handler has a copy of its record's key and value in
	// addition. 0 means 64 MiB.
	MaxBufferedBytes int64
	// CommitInterval is the longest time until what is settled is committed. Most
	// commits come sooner, the sooner the more is settled: after a fifth of the
	// interval for one record, after half of that for two, but not more often than every
	// 50 ms.
	// 0 means sarama's Consumer.Offsets.AutoCommit.Interval (1 s).
	CommitInterval time.Duration
	// Backoff returns how long a nacked record waits for its next delivery. It is
	// called if the nack itself has no delay. attempt is the delivery that was just
	// nacked, starting at 1. err says why: the handler's error, that of the Unmarshaler, or
	// that publishing failed; nil for a nack without a reason. If Backoff is nil, the delay
	// is Kafka.NackResendSleep (100 ms).
	Backoff func(attempt int, err error) time.Duration
	// MaxDeliveries is how often a record is delivered: a nack of the last delivery
	// becomes a reject, with the handler's error as its reason. 0 means no limit.
	// The count continues over restarts and revocations, see Delivery.Attempt.
	//
	// The limit says nothing about time. Five deliveries with the defaults of
	// ExponentialBackoff take 0.75 s on average, so a longer outage of whatever the
	// handler needs rejects the records it meets; MaxAge does not.
	//
	// A record whose handler ends the process is detected too, after MaxDeliveries + 2 deaths
	// (at least 5), and rejected with ErrProcessDied. For this, each assignment starts with a
	// commit.
	MaxDeliveries int
	// MaxAge is for how long a record is delivered: once this much time has passed
	// since its first delivery began, a nack becomes a reject, with the handler's
	// error as its reason. 0 means no limit. A shorter outage rejects nothing. If
	// MaxDeliveries is set too, whichever limit is reached first applies. The age
	// continues over restarts and revocations, as the count of deliveries does.
	MaxAge time.Duration
	// MaxDelay limits the delay that Watermill's delay metadata (components/delay) may ask for
	// before the first delivery of a record, counted from its timestamp. A record that asks
	// for more is delivered after MaxDelay, which is logged. The delay of a nack has no limit.
	// 0 means 24 hours; a negative value ignores the metadata, as watermill-kafka does.
	//
	// A record that waits holds back what its Ordering puts behind it: with the default
	// order, its whole partition. So set a negative value if producers are not trusted, and
	// a retention of the topic well above MaxDelay.
	MaxDelay time.Duration
	// DeadLetter stores rejected records. Without one they are logged at error level.
	// The offset of a rejected record is not committed before its letter is stored.
	DeadLetter DeadLetter
	// OnUndecodable says what happens to a record that the Unmarshaler cannot decode.
	OnUndecodable Undecodable
	// OnUnstorable says what happens to a rejected record whose letter DeadLetter
	// refuses for good.
	OnUnstorable Unstorable
	// DrainTimeout is how long running handlers may take to finish on Close and on a
	// revocation; on a revocation it is cut to what Rebalance.Timeout allows. After it
	// their contexts end, with ErrClosing or ErrRevoked as the cause. A drain does not
	// wait for nacked records. 0 means 10 s.
	DrainTimeout time.Duration
	// Transactions makes what handlers publish through Subscriber.Publisher appear exactly
	// once. nil does not.
	Transactions *Transactions
	// HandlerSlow is how long a handler may run before the log and Hooks.HandlerSlow
	// report it, at growing intervals, and once more when all slow handlers have
	// returned. Under ConfirmFirst it begins when the commit is confirmed. Nothing else
	// happens to the handler. The log also reports a record that holds its partition
	// because its handler returned without settling it, after as long, a minute at least.
	// 0 means 1 minute; a negative value turns the reports off.
	HandlerSlow time.Duration
	// Hooks are called with what happens.
	Hooks Hooks
	// Connections are shared by all Subscribers whose configurations have the same
	// pointer. If it is nil, only the subscriptions of this Subscriber share theirs.
	Connections *Connections
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
	if c.Transactions != nil {
		c.Transactions = c.Transactions.setDefaults(c.DrainTimeout)
		c.CommitInterval = c.Transactions.Interval
	}
	if c.HandlerSlow == 0 {
		c.HandlerSlow = defaultHandlerSlow
	}
	if c.MaxDelay == 0 {
		c.MaxDelay = defaultMaxDelay
	}
	if c.Connections == nil {
		c.Connections = &Connections{}
	}
}

// Validate returns one error that joins every problem of the configuration. Each
// names the field, its value and what to set. NewSubscriber calls Validate.
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
	if c.Policy != nil {
		switch {
		case !c.Policy.valid():
			bad("Policy: %d: no such policy", uint8(*c.Policy))
		case *c.Policy == AckFirst && c.MaxAge > 0:
			bad("MaxAge: %v: with the Policy AckFirst no record is delivered again: choose another Policy, or leave MaxAge at 0", c.MaxAge)
		}
	}
	if c.Transactions != nil {
		c.Transactions.validate(&c, bad)
	}
	if int(c.Ordering) >= len(orderingNames) {
		bad("Ordering: %d: want OrderByPartition, OrderByKey or Unordered", uint8(c.Ordering))
	}
	if c.Key != nil && c.Ordering != OrderByKey {
		bad("Key: with %v no record is ordered by key: choose OrderByKey, or leave Key nil", c.Ordering)
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
	if c.DeadLetter == DeadLetter((*DeadLetterTopic)(nil)) || c.DeadLetter == DeadLetter((*DeadLetterPublisher)(nil)) {
		bad("DeadLetter: a nil %T: give one, or leave DeadLetter nil", c.DeadLetter)
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

// saramaConfigs returns two copies of the user's configuration: one for the client
// that is a member of the group and fetches, and one for the client that commits.
func (c *SubscriberConfig) saramaConfigs() (fetch, side *sarama.Config) {
	fetch = copySarama(c.Kafka.OverwriteSaramaConfig)
	side = copySarama(c.Kafka.OverwriteSaramaConfig)
	// Commits and re-reads take milliseconds; a drain must not wait longer.
	if c.Transactions != nil {
		fetch.Consumer.IsolationLevel = sarama.ReadCommitted // also for what the group has stored
	}
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
	// and refuses its commits. So the pauses are shorter, and there are more of them.
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
