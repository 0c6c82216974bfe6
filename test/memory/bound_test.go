package memory_test

import (
	"crypto/rand"
	"flag"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var fullScale = flag.Bool("full-scale", false, "TestCompressedBatchesStayWithinTheBound with 100 partitions and 6 GB of records, some minutes")

// produceBatch writes a batch that inflates: of each record of a mebibyte, noise bytes are left once it is compressed.
func produceBatch(t *testing.T, topic string, partition int32, records, noise int) {
	t.Helper()
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.Return.Successes = true
	cfg.Producer.Compression = sarama.CompressionZSTD
	cfg.Producer.MaxMessageBytes = 2 * records * testkit.MiB
	cfg.Producer.Flush.Messages, cfg.Producer.Flush.Frequency = records, time.Minute
	producer, err := sarama.NewSyncProducer(testkit.Shared.Addrs(), cfg)
	testkit.Check(t, err)
	defer producer.Close()
	messages := make([]*sarama.ProducerMessage, records)
	for i := range messages {
		value := make([]byte, testkit.MiB)
		_, _ = rand.Read(value[:noise])
		messages[i] = &sarama.ProducerMessage{Topic: topic, Partition: partition, Value: sarama.ByteEncoder(value)}
	}
	testkit.Check(t, producer.SendMessages(messages))
}

// batches is what partitions have: each some batches of records of a mebibyte.
type batches struct{ partitions, each, records, noise int }

// produce writes the batches to a topic.
func (b batches) produce(t *testing.T, topic string) {
	t.Helper()
	for p := range int32(b.partitions) {
		for range b.each {
			produceBatch(t, topic, p, b.records, b.noise)
		}
	}
}

// stayWithin consumes the batches, of a topic that has them, and asserts by how much the heap is larger meanwhile.
func (b batches) stayWithin(t *testing.T, patience time.Duration, cfg ackpolicy.SubscriberConfig) {
	t.Helper()
	topic := testkit.NewTopic(t, int32(b.partitions))
	b.produce(t, topic)
	b.consume(t, patience, cfg, topic, func(*testkit.Service) {}, func(s *testkit.Service) { s.Start(t) })
}

// consume makes a service, which is prepared and then begins to consume the batches: first by handlers that do not
// return, and then by slow ones. It asserts by how much the heap is larger than before the beginning.
func (b batches) consume(t *testing.T, patience time.Duration, cfg ackpolicy.SubscriberConfig, topics string, prepare, begin func(*testkit.Service)) {
	t.Helper()
	all := b.partitions * b.each * b.records
	before, most := int64(0), int64(0)
	measure := func() { most = max(most, heap()-before) }
	began, release := make(chan struct{}, all), make(chan struct{})
	go func() {
		<-began
		for range 150 { // all that is fetched while nobody gets on
			<-time.After(10 * time.Millisecond)
			measure()
		}
		for n := range all {
			release <- struct{}{}
			if n%20 == 0 {
				measure()
			}
		}
		close(release)
	}()
	s := testkit.NewService(t)
	var handled atomic.Int64
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.Sub = testkit.NewSubscriber(t, cfg, s.Log)
	s.Router.AddConsumerHandler("handler", topics, s.Sub, func(msg *message.Message) error {
		began <- struct{}{}
		err := testkit.Until(msg.Context(), release)
		handled.Add(1)
		return err
	})
	prepare(s)
	before = heap()
	begin(s)
	if !testkit.PollFor(patience, func() bool { return handled.Load() == int64(all) }) {
		t.Fatalf("%d records came", handled.Load())
	}
	_ = testkit.Await(t, "the measurements", release)
	t.Logf("the heap was larger by %.1f MiB", float64(most)/testkit.MiB)
	// Twice the bound, and once more for what decompressing takes.
	if limit := 3 * cfg.MaxBufferedBytes; most > limit {
		t.Errorf("the heap was larger by %.1f MiB, want at most %d", float64(most)/testkit.MiB, limit/testkit.MiB)
	}
}

// Many partitions, each with batches that inflate to eight times their size, stay near MaxBufferedBytes while
// handlers are slow, and all of them get their turn.
func TestCompressedBatchesStayWithinTheBound(t *testing.T) {
	b, bound, patience := batches{partitions: 20, each: 2, records: 8}, int64(20*testkit.MiB), testkit.Patience // 320 MiB in all
	if *fullScale {
		b.partitions, b.records, bound = 100, 30, 64*testkit.MiB
		patience = 10 * time.Minute
	}
	b.noise = 960 << 10 / b.records
	cfg := testkit.Config(brokertest.Group(t))
	cfg.MaxBufferedBytes = bound
	b.stayWithin(t, patience, cfg)
}

// lateTracer keeps claims from beginning until something was fetched, as a busy machine may.
type lateTracer struct {
	kafka.SaramaTracer
	fetched atomic.Bool
}

func (l *lateTracer) WrapConsumerGroupHandler(h sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler {
	return lateHandler{h, l}
}

type lateHandler struct {
	sarama.ConsumerGroupHandler
	l *lateTracer
}

func (h lateHandler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	testkit.PollFor(testkit.Patience, func() bool { return h.l.fetched.Load() || len(claim.Messages()) > 0 })
	h.l.fetched.Store(true)
	return h.ConsumerGroupHandler.ConsumeClaim(session, claim)
}

// An assignment of many partitions that sarama fetches before their claims have begun stays within the bound, though
// its first fetches are so small, compressed, that one of them could bring everything.
func TestFirstFetchesStayWithinTheBound(t *testing.T) {
	const bound = 20 * testkit.MiB
	cfg := testkit.Config(brokertest.Group(t))
	cfg.MaxBufferedBytes = bound
	cfg.Kafka.Tracer = &lateTracer{SaramaTracer: kafka.NewOTELSaramaTracer()}
	batches{partitions: 40, each: 1, records: 8, noise: 1 << 10}.stayWithin(t, testkit.Patience, cfg)
}

// lateConsumer keeps partitions of a topic from beginning, likewise.
type lateConsumer struct {
	sarama.Consumer
	l     *lateTracer
	topic string
}

func (c lateConsumer) ConsumePartition(topic string, partition int32, offset int64) (sarama.PartitionConsumer, error) {
	pc, err := c.Consumer.ConsumePartition(topic, partition, offset)
	if err == nil && topic == c.topic {
		testkit.PollFor(testkit.Patience, func() bool { return c.l.fetched.Load() || len(pc.Messages()) > 0 })
		c.l.fetched.Store(true)
	}
	return pc, err
}

// lateWithoutAGroup is a lateTracer for one topic that is read without a group.
type lateWithoutAGroup struct {
	lateTracer
	topic string
}

func (l *lateWithoutAGroup) WrapConsumer(c sarama.Consumer) sarama.Consumer {
	return lateConsumer{c, &l.lateTracer, l.topic}
}

// So does a topic of many partitions that comes later, without a group. Those that are there at the start are read one
// after the other.
func TestFirstFetchesWithoutAGroupStayWithinTheBound(t *testing.T) {
	const bound = 20 * testkit.MiB
	b := batches{partitions: 40, each: 1, records: 8, noise: 1 << 10}
	prefix := brokertest.Topic(t)
	topic := prefix + ".b"
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), prefix+".a", 1))
	cfg := testkit.Config("")
	cfg.MaxBufferedBytes = bound
	cfg.Kafka.Tracer = &lateWithoutAGroup{lateTracer{SaramaTracer: kafka.NewOTELSaramaTracer()}, topic}
	cfg.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = 300 * time.Millisecond
	var network brokertest.Network
	network.Use(cfg.Kafka.OverwriteSaramaConfig)
	b.consume(t, testkit.Patience, cfg, prefix+".*", func(s *testkit.Service) {
		s.Start(t)
		network.Cut()
		testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), topic, int32(b.partitions)))
		b.produce(t, topic)
	}, func(*testkit.Service) { network.Heal() })
}

// A partition whose handlers are slow, and which has more records than fit, leaves its sibling the memory it needs to go
// on: each of its records comes, though none of the earlier ones is settled.
func TestMemoryIsShared(t *testing.T) {
	t.Parallel()
	const slow, other, size, bound, atOnce = 0, 1, 10_000, 8 * testkit.MiB, 50
	topic := testkit.NewTopic(t, 2)
	for range 2 {
		testkit.Produce(t, topic, slow, testkit.Sized(1000, size)...)
	}
	cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(time.Second), testkit.Ordering(ackpolicy.Unordered, atOnce))
	cfg.MaxBufferedBytes = bound
	s := testkit.NewService(t)
	var began [2]atomic.Int64
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.Router.AddConsumerHandler("handler", topic, testkit.NewSubscriber(t, cfg, s.Log), func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		began[d.Partition()].Add(1)
		return testkit.Until[any](msg.Context(), nil)
	})
	s.Start(t)
	testkit.Eventually(t, "the slow partition's memory to be used up", func() bool {
		return began[slow].Load() == atOnce && len(testkit.Containing(s.Log.At("error"), "Partition paused: MaxBufferedBytes", "kafka_partition=0")) == 1
	})
	for n := range int64(atOnce) {
		testkit.Produce(t, topic, other, testkit.Sized(1, size)...)
		testkit.Eventually(t, "the other partition's record", func() bool { return began[other].Load() == n+1 })
	}
}

// A partition that a bound has paused is not fetched any more, and all of it comes once there is room.
func TestPausedPartitionIsNotFetched(t *testing.T) {
	t.Parallel()
	const bound, records = 10, 400
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopicOf(t, broker, 1)
	for i := 0; i < records; i += 20 { // batches that a fetch can distinguish
		_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Sized(20, 5_000)...)
		testkit.Check(t, err)
	}
	var asked atomic.Int64 // the highest offset
	broker.Kfake().ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Kfake().KeepControl()
		for _, topic := range request.(*kmsg.FetchRequest).Topics {
			for _, p := range topic.Partitions {
				asked.Store(max(asked.Load(), p.FetchOffset))
			}
		}
		return nil, nil, false
	})
	stuck, release := make(chan ackpolicy.BlockedEvent, 10), make(chan struct{})
	group := brokertest.Group(t)
	cfg := testkit.Config(group, at)
	cfg.MaxUncommitted = bound
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Fetch.Default = 100_000
	cfg.Kafka.OverwriteSaramaConfig.ChannelBufferSize = 0
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { stuck <- e }
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		return testkit.Until(msg.Context(), release)
	}, ackpolicy.NackOnError.Middleware)
	testkit.Await(t, "the hook", stuck) // after seconds in which all could have come
	if at := asked.Load(); at == records {
		t.Error("fetched to the end though paused")
	}
	close(release)
	testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, records, testkit.Patience))
	s.Stop()
}
