package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// job is what a consumer is given in a separate process.
type job struct {
	Consumer    string
	Brokers     []string
	Topic       string
	Output      string // the topic that is published to
	Group       string
	Records     int64
	Work        time.Duration // of waiting in the handler
	Spin        time.Duration // of computing in the handler
	Concurrency int           // handlers at once, per partition
	Partitions  int
	Size        int
	Keys        int
	Session     time.Duration // the session timeout of a member in Go; 0: the default
	Warm        time.Duration // of an unmeasured run before, in a JVM
	WarmTopic   string        // what that reads; empty: Topic
	Limit       time.Duration // the run's end, should its records take longer; 0: none
	Profile     string        // a file for the CPU profile; empty: none
	Serve       bool          // until standard input ends: serveChild
	Trace       bool          // report each record
}

// meter counts records, and knows when the first and the last one came.
type meter struct {
	job   job
	each  func(m *meter, value []byte) // the handler, where it is not serve
	count atomic.Int64
	first sync.Once
	begin func()
	last  sync.Once
	done  chan struct{}
}

func (m *meter) start() {
	m.begin()
	if m.job.Limit > 0 {
		time.AfterFunc(m.job.Limit, m.finish)
	}
}

func (m *meter) finish() { m.last.Do(func() { close(m.done) }) }

func (m *meter) handled() int64 { return min(m.count.Load(), m.job.Records) }

// handle is the handler, the same in every consumer.
func (m *meter) handle(value []byte) {
	if m.each != nil {
		m.each(m, value)
		return
	}
	m.serve()
}

// serve does the job's work and counts the record.
func (m *meter) serve() {
	m.first.Do(m.start)
	if m.job.Work > 0 {
		time.Sleep(m.job.Work)
	}
	if m.job.Spin > 0 {
		for began := time.Now(); time.Since(began) < m.job.Spin; {
		}
	}
	if m.count.Add(1) == m.job.Records {
		m.finish()
	}
}

// consumer runs until the meter is done.
type consumer struct {
	name      string
	guarantee string
	run       func(ctx context.Context, j job, m *meter) error
	peer      *language // instead of run: what its program is written in
}

var consumers = []consumer{
	{name: "memory loop", guarantee: "none: the limit of a Subscribe loop", run: memoryLoop},
	{name: "memory router", guarantee: "none: the limit of a Router", run: memoryRouter},
	{name: "sarama group", guarantee: "at least once, auto-commit", run: saramaGroup},
	{name: "franz-go group", guarantee: "at least once, auto-commit", run: franzGroup},
	{name: "franz-go share", guarantee: "at least once, no order", run: franzShare},
	{name: "stock loop", guarantee: "at least once, order per partition", run: stock(loop)},
	{name: "stock router", guarantee: "at least once, order per partition", run: stock(router())},
	{name: "ackpolicy loop", guarantee: "at least once, order per partition", run: ours(ackpolicy.OrderByPartition, loop)},
	{name: "ackpolicy router", guarantee: "at least once, order per partition", run: ours(ackpolicy.OrderByPartition, router(ackpolicy.NackOnError.Middleware))},
	{name: "ackpolicy key", guarantee: "at least once, order per key", run: ours(ackpolicy.OrderByKey, router(ackpolicy.NackOnError.Middleware))},
	{name: "ackpolicy key loop", guarantee: "at least once, order per key", run: ours(ackpolicy.OrderByKey, concurrentLoop)},
	{name: "ackpolicy unordered", guarantee: "at least once", run: ours(ackpolicy.Unordered, router(ackpolicy.NackOnError.Middleware))},
	{name: "ackpolicy ack_first", guarantee: "at most once but for a crash's uncommitted acks", run: ours(ackpolicy.Unordered, router(ackpolicy.AckFirst.Middleware))},
	{name: "ackpolicy confirm_first", guarantee: "at most once", run: ours(ackpolicy.Unordered, router(ackpolicy.Middleware{ConfirmFirst: true}.Middleware))},
	{name: "ackpolicy router metered", guarantee: "that of ackpolicy router", run: metered(ackpolicy.OrderByPartition)},
	{name: "ackpolicy router traced", guarantee: "that of ackpolicy router", run: traced(ackpolicy.OrderByPartition, 1, 0)},
	{name: "ackpolicy router traced 1%", guarantee: "that of ackpolicy router", run: traced(ackpolicy.OrderByPartition, 0.01, 0)},
	{name: "ackpolicy router share 1%", guarantee: "that of ackpolicy router", run: traced(ackpolicy.OrderByPartition, 1, 0.01)},
	{name: "ackpolicy key metered", guarantee: "that of ackpolicy key", run: metered(ackpolicy.OrderByKey)},
	{name: "ackpolicy key traced", guarantee: "that of ackpolicy key", run: traced(ackpolicy.OrderByKey, 1, 0)},
	{name: "ackpolicy key traced 1%", guarantee: "that of ackpolicy key", run: traced(ackpolicy.OrderByKey, 0.01, 0)},
	{name: "ackpolicy key share 1%", guarantee: "that of ackpolicy key", run: traced(ackpolicy.OrderByKey, 1, 0.01)},
	{name: "ackpolicy batch", guarantee: "at least once, order per partition", run: batches(ackpolicy.OrderByPartition, batchLoop)},
	{name: "ackpolicy batch router", guarantee: "at least once, order per partition", run: batches(ackpolicy.OrderByPartition, batchRouter)},
	{name: "ackpolicy batch key", guarantee: "at least once, order per key", run: batches(ackpolicy.OrderByKey, batchLoop)},
	{name: "ackpolicy router cooperative", guarantee: "at least once, order per partition", run: ours(ackpolicy.OrderByPartition, router(ackpolicy.NackOnError.Middleware), cooperative)},
	{name: "stock router published", guarantee: "at least once, order per partition", run: stock(copies(published))},
	{name: "ackpolicy key published", guarantee: "at least once, order per key", run: ours(ackpolicy.OrderByKey, copies(published, ackpolicy.NackOnError.Middleware))},
	{name: "ackpolicy key async", guarantee: "at least once, order per key", run: ours(ackpolicy.OrderByKey, copies(newAsynchronous, ackpolicy.Manual.Middleware))},
	{name: "ackpolicy key transactions", guarantee: "exactly once, order per key", run: ours(ackpolicy.OrderByKey, copies(joined, ackpolicy.NackOnError.Middleware), transactions)},
	{name: "hash lanes", guarantee: "order per key; a crash loses what slower lanes hold", run: hashLanes},
	{name: "ppc key", guarantee: "at least once, order per key", peer: java},
	{name: "ppc unordered", guarantee: "at least once", peer: java},
	{name: "spring record", guarantee: "at least once, order per partition, one commit per record", peer: java},
	{name: "spring batch", guarantee: "at least once, order per partition", peer: java},
	{name: "ppc key transactions", guarantee: "exactly once, order per key", peer: java},
	{name: "spring record transactions", guarantee: "exactly once, order per partition, one transaction per record", peer: java},
	{name: "spring batch transactions", guarantee: "exactly once, order per partition, one transaction per poll", peer: java},
	{name: "share java", guarantee: "at least once, no order", peer: java},
	{name: "faststream ack", guarantee: "at least once, order per partition, one commit per record", peer: python},
	{name: "faststream ack_first", guarantee: "none: loses what a crash interrupts, repeats what was not committed", peer: python},
}

func find(name string) (consumer, error) {
	for _, c := range consumers {
		if c.name == name {
			return c, nil
		}
	}
	return consumer{}, fmt.Errorf("no consumer %q", name)
}

func saramaConfig() *sarama.Config {
	cfg := kafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	return cfg
}

func kafkaConfig(j job) kafka.SubscriberConfig {
	cfg := saramaConfig()
	if group := &cfg.Consumer.Group; j.Session > 0 {
		group.Session.Timeout, group.Heartbeat.Interval = j.Session, j.Session/5
	}
	return kafka.SubscriberConfig{Brokers: j.Brokers, ConsumerGroup: j.Group, OverwriteSaramaConfig: cfg}
}

type reader func(ctx context.Context, sub message.Subscriber, j job, m *meter) error

func stock(read reader) func(context.Context, job, *meter) error {
	return func(ctx context.Context, j job, m *meter) error {
		sub, err := kafka.NewSubscriber(kafkaConfig(j), watermill.NopLogger{})
		if err != nil {
			return err
		}
		return read(ctx, sub, j, m)
	}
}

func ours(o ackpolicy.Ordering, read reader, change ...func(*ackpolicy.SubscriberConfig)) func(context.Context, job, *meter) error {
	return func(ctx context.Context, j job, m *meter) error {
		cfg := ackpolicy.SubscriberConfig{Kafka: kafkaConfig(j), Ordering: o}
		if o != ackpolicy.OrderByPartition {
			cfg.MaxInFlight = j.Concurrency
		}
		for _, c := range change {
			c(&cfg)
		}
		sub, err := ackpolicy.NewSubscriber(cfg, watermill.NopLogger{})
		if err != nil {
			return err
		}
		return read(ctx, sub, j, m)
	}
}

func cooperative(c *ackpolicy.SubscriberConfig) {
	c.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
}

func loop(ctx context.Context, sub message.Subscriber, j job, m *meter) error {
	messages, err := sub.Subscribe(ctx, j.Topic)
	if err != nil {
		return err
	}
	go func() {
		for msg := range messages {
			m.handle(msg.Payload)
			msg.Ack()
		}
	}()
	<-m.done
	return sub.Close()
}

func concurrentLoop(ctx context.Context, sub message.Subscriber, j job, m *meter) error {
	messages, err := sub.Subscribe(ctx, j.Topic)
	if err != nil {
		return err
	}
	for range j.Concurrency * j.Partitions {
		go func() {
			for msg := range messages {
				m.handle(msg.Payload)
				msg.Ack()
			}
		}()
	}
	<-m.done
	return sub.Close()
}

func router(mw ...message.HandlerMiddleware) reader {
	return func(ctx context.Context, sub message.Subscriber, j job, m *meter) error {
		r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		r.AddMiddleware(mw...)
		r.AddConsumerHandler("bench", j.Topic, sub, func(msg *message.Message) error {
			m.handle(msg.Payload)
			return nil
		})
		go func() {
			<-m.done
			_ = r.Close()
		}()
		return r.Run(ctx)
	}
}

// memory feeds Watermill's message contract without a broker: each lane sends the
// next message once the last one is acked.
type memory struct {
	j    job
	done <-chan struct{}
}

func (s memory) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	payload := make([]byte, s.j.Size)
	var lanes sync.WaitGroup
	for range s.j.Concurrency * s.j.Partitions {
		lanes.Go(func() {
			for {
				msg := message.NewMessage("", payload)
				ctx, cancel := context.WithCancel(ctx)
				msg.SetContext(ctx)
				select {
				case out <- msg:
				case <-s.done:
					cancel()
					return
				}
				select {
				case <-msg.Acked():
				case <-msg.Nacked():
				}
				cancel()
			}
		})
	}
	go func() {
		lanes.Wait()
		close(out)
	}()
	return out, nil
}

func (memory) Close() error { return nil }

func memoryLoop(ctx context.Context, j job, m *meter) error {
	return concurrentLoop(ctx, memory{j, m.done}, j, m)
}

func memoryRouter(ctx context.Context, j job, m *meter) error {
	return router()(ctx, memory{j, m.done}, j, m)
}

type saramaHandler struct{ m *meter }

func (saramaHandler) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (saramaHandler) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (h saramaHandler) ConsumeClaim(s sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	for msg := range c.Messages() {
		h.m.handle(msg.Value)
		s.MarkMessage(msg, "")
	}
	return nil
}

func saramaGroup(ctx context.Context, j job, m *meter) error {
	group, err := sarama.NewConsumerGroup(j.Brokers, j.Group, saramaConfig())
	if err != nil {
		return err
	}
	go func() {
		for range group.Errors() {
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		<-m.done
		cancel()
	}()
	for ctx.Err() == nil {
		if err := group.Consume(ctx, []string{j.Topic}, saramaHandler{m}); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return group.Close()
}

func franzGroup(ctx context.Context, j job, m *meter) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(j.Brokers...), kgo.ConsumerGroup(j.Group), kgo.ConsumeTopics(j.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		<-m.done
		cancel()
	}()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		var parts sync.WaitGroup
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			parts.Go(func() {
				for _, r := range p.Records {
					m.handle(r.Value)
				}
			})
		})
		parts.Wait()
	}
	return nil
}
