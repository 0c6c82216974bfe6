package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/topic"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Subscriber reads Kafka topics. It is a drop-in replacement for watermill-kafka's
// Subscriber, and carries out what the Middleware decides.
type Subscriber struct {
	config   SubscriberConfig
	logger   watermill.LoggerAdapter
	upstream *kafka.Subscriber        // creates topics and returns their ends
	look     time.Duration            // of the watchdog; 0 but in tests
	watcher  *seam.Watcher            // of tests; nil otherwise
	stateful []sarama.BalanceStrategy // of the application, for one member each
	contract plan                     // what msg.Ack and msg.Nack mean where no middleware decides

	maxDeliveries atomic.Int64 // by SetLimits; 0: as configured

	closing context.Context // ends with Close
	close   context.CancelFunc

	mu            sync.Mutex
	topics        map[string]int       // as given to Subscribe, of subscriptions that have not ended
	subscriptions []*subscription      // those that run
	ends          map[string]time.Time // when subscriptions of a topic ended, and nobody had closed them
	done          sync.WaitGroup       // a subscription each; added to only while not closed
	maxInFlight   int                  // by SetLimits; 0: the configured one
	maxPerSecond  float64              // by SetLimits; 0: no limit
	ended         chan struct{}        // closed once they have all ended; made by the first Close
	bound         time.Time            // of Close
	producing     *sarama.Config       // of the Publishers; nil if there are none
	subscribed    bool                 // with Transactions: too late for a Publisher
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

func init() { // what only tests call
	seam.LookEvery = func(subscriber any, d time.Duration) { subscriber.(*Subscriber).look = d }
	seam.InstanceID = instanceID
}

// NewSubscriber validates the configuration and returns a Subscriber. It does not connect
// to Kafka. logger may be nil.
func NewSubscriber(config SubscriberConfig, logger watermill.LoggerAdapter) (*Subscriber, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	s := configured(config, logger)
	c := &s.config.Kafka
	//lint:ignore SA1019 an application that moves over may still set it
	if c.OTELEnabled && c.Tracer == nil {
		c.Tracer = kafka.NewOTELSaramaTracer()
	}
	var err error
	if s.upstream, err = kafka.NewSubscriber(*c, s.logger); err != nil {
		return nil, err
	}
	s.logger = s.logger.With(watermill.LogFields{"subscriber_uuid": watermill.NewShortUUID()})
	if c.ConsumerGroup != "" {
		s.stateful = statefulStrategies(c.OverwriteSaramaConfig)
	}
	if err := s.config.Connections.join(&s.config); err != nil {
		return nil, err
	}
	if memory, ok := inMemory(&s.config); ok {
		s.watcher = memory.Watcher()
	}
	s.closing, s.close = context.WithCancel(context.Background())
	return s, nil
}

// configured returns a Subscriber that cannot subscribe yet.
func configured(config SubscriberConfig, logger watermill.LoggerAdapter) *Subscriber {
	config.setDefaults()
	if config.Policy != nil {
		config.Policy = new(*config.Policy)
	}
	if logger == nil {
		logger = watermill.NopLogger{}
	}
	s := &Subscriber{
		config:   config,
		logger:   guardLogger(logger),
		contract: config.contract(),
		topics:   map[string]int{},
		ends:     map[string]time.Time{},
	}
	return s
}

// String returns "kafka.Subscriber", the name of watermill-kafka's Subscriber in
// Watermill's metrics and logs, so that their labels stay the same after a migration.
func (s *Subscriber) String() string { return "kafka.Subscriber" }

// Subscribe joins the consumer group and returns the channel of messages. Without a
// consumer group it reads every partition, from positions that are fixed when it returns.
// It returns an error if no broker can be reached.
//
// topic is the name of a topic, a pattern, or several of both with commas between them:
// "orders, invoices", "orders.*". They are read by one member of the group, and messages of all
// of them come over the channel; Delivery.Topic returns the topic of each. In a pattern "*" stands for
// any characters and "?" for one; it matches whole names, and is looked up again every
// Metadata.RefreshFrequency of the sarama configuration, so that topics may come and go. It does
// not match Kafka's own topics, nor those of dead letters.
//
// The channel is closed after Close was called or ctx has ended, once running handlers
// have finished, what is settled is committed, and the member has left the group. It is
// also closed when another process takes over the static member id
// (Consumer.Group.InstanceId).
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return s.subscribe(ctx, topic, nil)
}

// subscribe is Subscribe. Without batches, messages come one by one.
func (s *Subscriber) subscribe(ctx context.Context, text string, batches *BatchConfig) (<-chan *message.Message, error) {
	topics, err := topic.Select(text)
	if err != nil {
		return nil, fmt.Errorf("ackpolicy: Subscribe: %w", err)
	}
	instance, err := s.begin(&topics)
	if err != nil {
		return nil, err
	}
	started := false
	defer func() {
		if !started { // also after a panic in the application's code
			s.end(text, instance)
		}
	}()
	sub := &subscription{
		sub: s, topics: topics,
		logger: s.logger.With(watermill.LogFields{
			"provider": "kafka", topicsField(&topics): text,
			"consumer_group":      s.config.Kafka.ConsumerGroup,
			"kafka_consumer_uuid": watermill.NewShortUUID(),
		}),
		output: make(chan *message.Message),
	}
	sub.interceptors.all = s.config.Kafka.OverwriteSaramaConfig.Consumer.Interceptors
	sub.debug = debugging(s.logger)
	_, sub.defaultMarshaler = s.config.Kafka.Unmarshaler.(kafka.DefaultMarshaler)
	cfg := sub.consumerConfig()
	if batches != nil {
		sub.setBatches(&cfg, batches)
	}
	cfg.Sarama.Consumer.Group.InstanceId = instance
	if instance != "" {
		sub.logger = sub.logger.With(watermill.LogFields{"group_instance_id": instance})
		cfg.Logger = sub.logger
	}
	sub.logger.Info("Subscribing to Kafka topic", nil)

	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.closing, func() { cancel(errClosed) })()
	if err := interrupted(starting, sub.openLetters(starting)); err != nil {
		return nil, errors.Join(err, sub.closeLetters())
	}
	ending, end := context.WithCancel(ctx)
	stop := context.AfterFunc(s.closing, end)
	sub.hooks = sub.newHookCalls(ending)
	running, err := consumer.Start(ctx, s.closing, cfg)
	if err != nil {
		stop()
		end()
		sub.hooks.close(time.Now().Add(hookGrace))
		return nil, errors.Join(interrupted(starting, err), sub.closeLetters())
	}
	started = true
	sub.running = running
	s.mu.Lock()
	maxInFlight, perSecond := s.maxInFlight, s.maxPerSecond
	s.subscriptions = append(s.subscriptions, sub)
	delete(s.ends, text)
	s.mu.Unlock()
	running.SetPace(perSecond)
	if maxInFlight > 0 {
		running.SetMaxInFlight(maxInFlight)
	}
	go func() {
		defer s.end(text, instance)
		defer s.forget(sub)
		select {
		case <-ending.Done():
		case <-running.Done():
		}
		deadline := time.Now().Add(s.config.DrainTimeout + consumer.CloseGrace)
		<-running.Done()
		if ending.Err() == nil {
			s.lose(text)
		}
		stop()
		end()
		if err := sub.closeLetters(); err != nil {
			sub.logger.Error("Cannot close the dead letter destination", err, nil)
		}
		sub.hooks.close(deadline)
		close(sub.output) // last: Router.Run may return because of it, and the process end
		sub.logger.Debug("Kafka subscription closed", nil)
	}()
	return sub.output, nil
}

// closedError is the error of a Subscribe that came too late: ErrClosing, by errors.Is, without what that says of a record.
type closedError struct{}

func (closedError) Error() string        { return "ackpolicy: subscriber closed" }
func (closedError) Is(target error) bool { return target == ErrClosing }

var errClosed = closedError{}

// interrupted returns err while ctx lives, and otherwise why ctx has ended: then err only shows what that
// has interrupted.
func interrupted(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case ctx.Err() == nil:
		return err
	case errors.Is(cause, errClosed):
		return cause
	default:
		return fmt.Errorf("ackpolicy: Subscribe: its context has ended: %w", cause)
	}
}

// begin registers a subscription, for which Close then waits. It returns the static member
// id, or "" if there is none.
func (s *Subscriber) begin(topics *topic.Selection) (instance string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Err() != nil {
		return "", errClosed
	}
	if err := strategiesInUse.take(s.stateful); err != nil {
		return "", err
	}
	s.done.Add(1)
	s.topics[topics.Text]++
	group, id := s.config.Kafka.ConsumerGroup, s.config.Kafka.OverwriteSaramaConfig.Consumer.Group.InstanceId
	if group == "" || id == "" {
		return "", nil
	}
	return instances.take(group, id, topics.ID()), nil
}

func (s *Subscriber) end(topic, instance string) {
	strategiesInUse.release(s.stateful)
	instances.release(s.config.Kafka.ConsumerGroup, instance)
	s.mu.Lock()
	if s.topics[topic]--; s.topics[topic] == 0 {
		delete(s.topics, topic)
	}
	s.mu.Unlock()
	s.done.Done()
}

// forget takes a subscription that has ended out of the State.
func (s *Subscriber) forget(sub *subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscriptions = slices.DeleteFunc(s.subscriptions, func(other *subscription) bool { return other == sub })
}

// lose takes note that a subscription has ended by itself.
func (s *Subscriber) lose(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[topic] = time.Now()
}

// Close ends all subscriptions: nothing more is handed out, running handlers may finish
// within DrainTimeout, what is settled is committed, the members leave the group, and the
// channels are closed. Close returns when all of that is done, and at the latest
// DrainTimeout + 5 s after the first call, even if Kafka is gone or application code does
// not return. Such code is left behind: an error line names it, and nothing it does has an
// effect any more. Close returns an error if a subscription could not end because of it.
// It may be called more than once, and waits each time.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	if s.ended == nil {
		s.ended = make(chan struct{})
		s.bound = time.Now().Add(s.config.DrainTimeout + consumer.CloseGrace)
		s.close()
		go func() {
			defer close(s.ended)
			s.done.Wait()
		}()
	}
	s.mu.Unlock()
	if wait.For(time.Until(s.bound), s.ended) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.topics) == 0 {
			return nil // since an earlier call, or just now
		}
		return fmt.Errorf("ackpolicy: not closed after %v: subscriptions of %v have not ended: a call of the application's code does not return",
			s.config.DrainTimeout+consumer.CloseGrace, slices.Sorted(maps.Keys(s.topics)))
	}
	return nil
}

// SubscribeInitialize creates the topic, as watermill-kafka does; each name of a list, and none for a pattern.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	return s.SubscribeInitializeWithContext(context.Background(), topic)
}

// SubscribeInitializeWithContext is SubscribeInitialize with a context.
func (s *Subscriber) SubscribeInitializeWithContext(ctx context.Context, text string) error {
	topics, err := topic.Select(text)
	if err != nil {
		return fmt.Errorf("ackpolicy: SubscribeInitialize: %w", err)
	}
	for _, name := range topics.Names {
		if err := s.upstream.SubscribeInitializeWithContext(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// PartitionOffset returns the end of each partition of the topic.
func (s *Subscriber) PartitionOffset(topic string) (kafka.PartitionOffset, error) {
	return s.upstream.PartitionOffset(topic)
}

// subscription is the state of one call of Subscribe.
type subscription struct {
	sub              *Subscriber
	topics           topic.Selection
	running          *consumer.Subscription // set before State sees the subscription
	handler          atomic.Pointer[string] // that ran under our middleware; see handlerName
	firstTaken       atomic.Int64           // when a message was first taken; see ackTaken
	logger           watermill.LoggerAdapter
	hooks            *hookCalls
	debug            bool // somebody may read debug lines
	detached         bool // see detach: nothing stores letters
	output           chan *message.Message
	inBatches        int // how many records the batches that messages of output stand for may have; 0: no batches
	defaultMarshaler bool
	interceptors     interceptors
	deadLetter       *letters // nil: none
	settings         atomic.Pointer[[]*handlerSettings]
	undecoded        undecoded
	brokenBackoff    outage.Outage
	brokenKey        outage.Outage
	badDelays        outage.Outage // delay metadata that cannot be read
	longDelays       outage.Outage // delay metadata that asks for more than MaxDelay
	delayed          atomic.Bool   // a record was
}

func (s *subscription) consumerConfig() consumer.Config {
	c := &s.sub.config
	fetch, side := c.saramaConfigs()
	cfg := consumer.Config{
		Resources: c.Connections.resources, Brokers: c.Kafka.Brokers, Sarama: fetch, Side: side,
		Group: c.Kafka.ConsumerGroup, Topics: s.topics, Letters: s.letterTopics,
		Logger:           s.logger,
		Order:            c.Ordering.lanes(),
		MaxInFlight:      c.MaxInFlight,
		MaxBufferedBytes: c.MaxBufferedBytes,
		MaxDeliveries:    c.MaxDeliveries,
		CommitInterval:   max(c.CommitInterval, time.Millisecond), // less would keep a processor busy
		CommitEach:       !c.Kafka.OverwriteSaramaConfig.Consumer.Offsets.AutoCommit.Enable,
		DrainTimeout:     c.DrainTimeout,
		GiveUpLetters:    c.OnUnstorable == UnstorableGiveUp,
		ReconnectSleep:   max(10*time.Millisecond, c.Kafka.ReconnectRetrySleep), // NoSleep is negative
		Look:             s.sub.look,
		HandlerSlow:      c.HandlerSlow,
		LeftPending:      max(c.HandlerSlow, leastStill),
		Tracer:           c.Kafka.Tracer,
		Transactions:     s.sub.transactions(),
		NewDelivery:      s.newDelivery,
		Events:           s.events(),
	}
	if memory, ok := inMemory(c); ok {
		cfg.Memory = memory
	}
	if c.Key != nil {
		cfg.Key = s.orderKey
	}
	if s.delays() {
		cfg.Due = s.due
	}
	if c.MaxUncommitted != Unlimited {
		cfg.MaxUncommitted = uint64(c.MaxUncommitted)
	}
	return cfg
}

// inMemory returns the Kafka of package ackpolicytest, if that is what the configuration connects to.
func inMemory(c *SubscriberConfig) (seam.Kafka, bool) {
	memory, ok := c.Kafka.OverwriteSaramaConfig.Net.Proxy.Dialer.(seam.Kafka)
	return memory, ok
}
