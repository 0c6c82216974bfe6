package memory_test

import (
	"crypto/rand"
	"flag"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
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

// Many partitions, each with batches that inflate to eight times their size, stay near MaxBufferedBytes while
// handlers are slow, and all of them get their turn.
func TestCompressedBatchesStayWithinTheBound(t *testing.T) {
	partitions, batches, records, bound := 20, 2, 8, int64(20*testkit.MiB) // 320 MiB in all
	patience := testkit.Patience
	if *fullScale {
		partitions, records, bound = 100, 30, 64*testkit.MiB
		patience = 10 * time.Minute
	}
	topic := testkit.NewTopic(t, int32(partitions))
	for p := range int32(partitions) {
		for range batches {
			produceBatch(t, topic, p, records, 960<<10/records)
		}
	}
	cfg := testkit.Config(brokertest.Group(t))
	cfg.MaxBufferedBytes = bound
	before, most := heap(), int64(0)
	measure := func() { most = max(most, heap()-before) }
	began, release := make(chan struct{}, partitions*batches*records), make(chan struct{})
	go func() {
		<-began
		for range 150 { // all that is fetched while nobody gets on
			<-time.After(10 * time.Millisecond)
			measure()
		}
		for n := 0; n < partitions*batches*records; n++ {
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
	s.Router.AddConsumerHandler("handler", topic, testkit.NewSubscriber(t, cfg, s.Log), func(msg *message.Message) error {
		began <- struct{}{}
		err := testkit.Until(msg.Context(), release)
		handled.Add(1)
		return err
	})
	s.Start(t)
	if !testkit.PollFor(patience, func() bool { return handled.Load() == int64(partitions*batches*records) }) {
		t.Fatalf("%d records came", handled.Load())
	}
	_ = testkit.Await(t, "the measurements", release)
	t.Logf("the heap was larger by %.1f MiB", float64(most)/testkit.MiB)
	// Twice the bound; and as much again, because on a busy machine sarama's first fetch may begin before it learns that
	// a partition is paused, and for what decompressing takes.
	if most > 4*bound {
		t.Errorf("the heap was larger by %.1f MiB, want at most %d", float64(most)/testkit.MiB, 4*bound/testkit.MiB)
	}
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
