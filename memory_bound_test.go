package ackpolicy_test

import (
	"crypto/rand"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// produceBatch writes a batch that inflates: of each record of a mebibyte, noise bytes are left once it is compressed.
func produceBatch(t *testing.T, topic string, partition int32, records, noise int) {
	t.Helper()
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.Return.Successes = true
	cfg.Producer.Compression = sarama.CompressionZSTD
	cfg.Producer.MaxMessageBytes = 2 * records * mebibyte
	cfg.Producer.Flush.Messages, cfg.Producer.Flush.Frequency = records, time.Minute
	producer, err := sarama.NewSyncProducer(shared.Addrs(), cfg)
	check(t, err)
	defer producer.Close()
	messages := make([]*sarama.ProducerMessage, records)
	for i := range messages {
		value := make([]byte, mebibyte)
		_, _ = rand.Read(value[:noise])
		messages[i] = &sarama.ProducerMessage{Topic: topic, Partition: partition, Value: sarama.ByteEncoder(value)}
	}
	check(t, producer.SendMessages(messages))
}

// Many partitions, each with batches that inflate to eight times their size, stay near MaxBufferedBytes while
// handlers are slow, and all of them get their turn.
func TestCompressedBatchesStayWithinTheBound(t *testing.T) {
	const partitions, batches, records, bound = 20, 2, 8, 20 * mebibyte // 320 MiB in all
	topic := newTopic(t, partitions)
	for p := range int32(partitions) {
		for range batches {
			produceBatch(t, topic, p, records, 120<<10)
		}
	}
	cfg := config(brokertest.Group(t))
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
	s := newService(t)
	var handled atomic.Int64
	s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.router.AddConsumerHandler("handler", topic, newSubscriber(t, cfg, s.log), func(msg *message.Message) error {
		began <- struct{}{}
		err := until(msg.Context(), release)
		handled.Add(1)
		return err
	})
	s.start(t)
	eventually(t, "all records", func() bool { return handled.Load() == partitions*batches*records })
	_ = await(t, "the measurements", release)
	t.Logf("the heap was larger by %.1f MiB", float64(most)/mebibyte)
	// Twice the bound; and as much again, because on a busy machine sarama's first fetch may begin before it is told that
	// a partition is paused, and for what decompressing takes.
	if most > 4*bound {
		t.Errorf("the heap was larger by %.1f MiB, want at most %d", float64(most)/mebibyte, 4*bound/mebibyte)
	}
}

// A partition whose handlers are slow, and which has more records than fit, leaves its sibling the memory it needs to go
// on: each of its records comes, though none of the earlier ones is settled.
func TestMemoryIsShared(t *testing.T) {
	t.Parallel()
	const slow, other, size, bound, atOnce = 0, 1, 10_000, 8 * mebibyte, 50
	topic := newTopic(t, 2)
	for range 2 {
		produce(t, topic, slow, sized(1000, size)...)
	}
	cfg := config(brokertest.Group(t), drainTimeout(time.Second), ordering(ackpolicy.Unordered, atOnce))
	cfg.MaxBufferedBytes = bound
	s := newService(t)
	var began [2]atomic.Int64
	s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.router.AddConsumerHandler("handler", topic, newSubscriber(t, cfg, s.log), func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		began[d.Partition()].Add(1)
		return until[any](msg.Context(), nil)
	})
	s.start(t)
	eventually(t, "the slow partition's memory to be used up", func() bool {
		return began[slow].Load() == atOnce && len(with(s.log.at("error"), "Partition paused: MaxBufferedBytes", "kafka_partition=0")) == 1
	})
	for n := range int64(atOnce) {
		produce(t, topic, other, sized(1, size)...)
		eventually(t, "the other partition's record", func() bool { return began[other].Load() == n+1 })
	}
}
