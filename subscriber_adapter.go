package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Subscriber reads Kafka topics. It stands in for watermill-kafka's Subscriber
// and carries out what the Middleware decides.
type Subscriber struct {
	config   SubscriberConfig
	logger   watermill.LoggerAdapter
	upstream *kafka.Subscriber // creates topics and tells their ends

	mu     sync.Mutex
	closed bool
	subs   map[*consumer.Subscription]string // with the static member id it uses
	done   sync.WaitGroup
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
	_ fmt.Stringer                 = (*Subscriber)(nil)
	_ message.HandlerMiddleware    = Middleware{}.Middleware
	_ message.HandlerMiddleware    = NackOnError.Middleware
	_ consumer.Task                = (*task)(nil)
	_ context.Context              = (*deliveryContext)(nil)
)

// NewSubscriber checks the configuration and makes a Subscriber. It does not
// connect. logger may be nil.
func NewSubscriber(config SubscriberConfig, logger watermill.LoggerAdapter) (*Subscriber, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.setDefaults()
	if logger == nil {
		logger = watermill.NopLogger{}
	}
	if config.Kafka.OTELEnabled && config.Kafka.Tracer == nil {
		config.Kafka.Tracer = kafka.NewOTELSaramaTracer()
	}
	upstream, err := kafka.NewSubscriber(config.Kafka, logger)
	if err != nil {
		return nil, err
	}
	return &Subscriber{
		config:   config,
		logger:   logger.With(watermill.LogFields{"subscriber_uuid": watermill.NewShortUUID()}),
		upstream: upstream,
		subs:     map[*consumer.Subscription]string{},
	}, nil
}

// String answers "kafka.Subscriber", as watermill-kafka's Subscriber is known to
// Watermill's metrics and logs: their labels do not change under an application that moves over.
func (s *Subscriber) String() string { return "kafka.Subscriber" }

// Subscribe joins the consumer group, or without one reads every partition, and
// returns the channel of messages. It fails if no broker can be reached. The
// channel closes after Close, or after ctx has ended, once the handlers in flight
// have finished, what is settled is committed and the group left.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("ackpolicy: subscriber closed")
	}
	sub := &subscription{
		sub: s,
		logger: s.logger.With(watermill.LogFields{
			"provider": "kafka", "topic": topic,
			"consumer_group":      s.config.Kafka.ConsumerGroup,
			"kafka_consumer_uuid": watermill.NewShortUUID(),
		}),
		output: make(chan *message.Message),
	}
	_, sub.defaultMarshaler = s.config.Kafka.Unmarshaler.(kafka.DefaultMarshaler)
	cfg := sub.consumerConfig(topic)
	instance := s.instanceID(topic)
	cfg.Sarama.Consumer.Group.InstanceId = instance
	sub.logger.Info("Subscribing to Kafka topic", nil)
	running, err := consumer.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.subs[running] = instance
	s.done.Go(func() {
		<-running.Done()
		close(sub.output)
		s.mu.Lock()
		delete(s.subs, running)
		s.mu.Unlock()
		sub.logger.Debug("Kafka subscription closed", nil)
	})
	return sub.output, nil
}

// instanceID answers the static member id of one more subscription: members with
// one id fence each other. The first keeps the id, others get a suffix that is the same at the next start.
func (s *Subscriber) instanceID(topic string) string {
	id := s.config.Kafka.OverwriteSaramaConfig.Consumer.Group.InstanceId
	if id == "" {
		return ""
	}
	used := map[string]bool{}
	for _, u := range s.subs {
		used[u] = true
	}
	candidate := id
	for n := 1; used[candidate]; n++ {
		candidate = fmt.Sprintf("%s-%s-%d", id, topic, n)
	}
	return candidate
}

// Close ends all subscriptions: it hands out nothing more, lets handlers in flight
// finish within DrainTimeout, commits, leaves the group and closes the channels. It
// returns when all of that is done, DrainTimeout + 5 s later at most, also if
// Kafka is gone. It may be called more than once, and waits each time.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	for running := range s.subs {
		running.Stop()
	}
	s.mu.Unlock()
	s.done.Wait()
	return nil
}

// SubscribeInitialize creates the topic, as watermill-kafka does.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	return s.upstream.SubscribeInitialize(topic)
}

// SubscribeInitializeWithContext creates the topic, as watermill-kafka does.
func (s *Subscriber) SubscribeInitializeWithContext(ctx context.Context, topic string) error {
	return s.upstream.SubscribeInitializeWithContext(ctx, topic)
}

// PartitionOffset answers the end of each partition of the topic.
func (s *Subscriber) PartitionOffset(topic string) (kafka.PartitionOffset, error) {
	return s.upstream.PartitionOffset(topic)
}

// Guarantees says in words what this configuration promises.
func (s *Subscriber) Guarantees() string {
	c := &s.config
	parts := []string{"under every policy but AckFirst: at least once"}
	switch c.Ordering {
	case OrderByKey:
		parts = append(parts, "order per key")
	case Unordered:
		parts = append(parts, "no order")
	default:
		parts = append(parts, "order per partition")
	}
	group := c.Kafka.ConsumerGroup != ""
	switch {
	case !group:
		parts = append(parts, "no consumer group: nothing is committed, a restart begins at the configured position")
	case c.MaxUncommitted == Unlimited:
		parts = append(parts, "any number of records replayed a partition after a crash")
	default:
		parts = append(parts, fmt.Sprintf("at most %d records replayed a partition after a crash", c.MaxUncommitted))
	}
	if group {
		parts = append(parts,
			fmt.Sprintf("none replayed after Close, a revocation or a restart whose handlers finish within %v", c.DrainTimeout),
			"under AckFirst: at most once but for acks that a crash leaves uncommitted; with ConfirmFirst: at most once")
	} else {
		parts = append(parts, "under AckFirst: at most once a subscription")
	}
	return strings.Join(parts, "; ")
}

// subscription is what one Subscribe has of its own.
type subscription struct {
	sub              *Subscriber
	logger           watermill.LoggerAdapter
	output           chan *message.Message
	defaultMarshaler bool
}

func (s *subscription) consumerConfig(topic string) consumer.Config {
	c := &s.sub.config
	fetch, side := c.saramaConfigs()
	cfg := consumer.Config{
		Brokers: c.Kafka.Brokers, Sarama: fetch, Side: side,
		Group: c.Kafka.ConsumerGroup, Topic: topic,
		Logger:           s.logger,
		Order:            c.Ordering.lanes(),
		MaxInFlight:      c.MaxInFlight,
		MaxInFlightTotal: c.MaxInFlightTotal,
		MaxBufferedBytes: c.MaxBufferedBytes,
		CommitInterval:   c.CommitInterval,
		CommitEach:       !c.Kafka.OverwriteSaramaConfig.Consumer.Offsets.AutoCommit.Enable,
		DrainTimeout:     c.DrainTimeout,
		ReconnectSleep:   max(0, c.Kafka.ReconnectRetrySleep),
		NewTask:          s.newTask,
		Events:           s.events(),
	}
	if c.MaxUncommitted != Unlimited {
		cfg.MaxUncommitted = uint64(c.MaxUncommitted)
	}
	if c.Kafka.Tracer != nil {
		cfg.Tracer = c.Kafka.Tracer
	}
	return cfg
}

// undecodable keeps a record that no message can be made of: it is tried again
// with backoff, so that a fixed Unmarshaler, or a person, finds it.
func (s *subscription) undecodable(d *Delivery, err error) partition.Verdict {
	delay := min(100*time.Millisecond<<min(d.Attempt()-1, 10), 30*time.Second)
	if s.sub.config.Backoff != nil {
		delay = s.backoff(d.Attempt(), err)
	}
	r := d.kafka.Record()
	s.logger.Error("Record cannot be decoded, it is kept and tried again: nothing is committed past it", err, watermill.LogFields{
		"kafka_partition": r.Partition, "kafka_partition_offset": r.Offset, "attempt": d.Attempt(), "retry_in": delay.String(),
	})
	if hook := s.sub.config.Hooks.Undecodable; hook != nil {
		hook(UndecodableEvent{r.Topic, r.Partition, r.Offset, d.Attempt(), err})
	}
	return partition.Verdict{Status: partition.Nacked, DueAt: consumer.Now() + int64(delay)}
}

// backoff answers how long a record waits that was nacked without a delay.
func (s *subscription) backoff(attempt int, err error) (delay time.Duration) {
	delay = s.sub.config.Kafka.NackResendSleep // NoSleep is negative
	if b := s.sub.config.Backoff; b != nil {
		defer func() {
			if r := recover(); r != nil {
				s.logger.Error("SubscriberConfig.Backoff panicked, Kafka.NackResendSleep is used instead", panicError(r), nil)
			}
		}()
		delay = b(attempt, err)
	}
	return max(0, delay)
}
