package testkit

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
)

// Producer is a producer at a constant rate. It fills the partitions in turn, each from offset 0 on without a gap.
type Producer struct {
	topic    string
	key      func(partition int32, offset int64) string
	producer sarama.SyncProducer
	stopping chan struct{}
	once     sync.Once
	done     chan struct{}
	ends     []int64 // the next offset of each partition
	err      error
}

// StartProducer produces at a rate per second, over a number of keys per partition.
func StartProducer(t testing.TB, topic string, partitions, rate int, keys int64) *Producer {
	t.Helper()
	return StartKeyedProducer(t, topic, partitions, rate, func(partition int32, offset int64) string { return KeyOf(partition, offset, keys) })
}

// StartKeyedProducer is StartProducer with keys of the test's choice.
func StartKeyedProducer(t testing.TB, topic string, partitions, rate int, key func(partition int32, offset int64) string) *Producer {
	t.Helper()
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Return.Successes = true
	cfg.Producer.Retry.Max = 50
	cfg.Producer.Idempotent = true
	cfg.Net.MaxOpenRequests = 1
	producer, err := sarama.NewSyncProducer(Shared.Addrs(), cfg)
	Check(t, err)
	s := &Producer{
		topic: topic, key: key, producer: producer,
		stopping: make(chan struct{}), done: make(chan struct{}), ends: make([]int64, partitions),
	}
	go s.run(rate)
	t.Cleanup(func() {
		s.stop()
		if err := producer.Close(); err != nil {
			t.Error("closing the producer:", err)
		}
	})
	return s
}

func (s *Producer) run(rate int) {
	defer close(s.done)
	ticker := time.NewTicker(25 * time.Millisecond)
	defer ticker.Stop()
	began, sent := time.Now(), 0
	for {
		select {
		case <-ticker.C:
		case <-s.stopping:
			return
		}
		var batch []*sarama.ProducerMessage
		for due := int(time.Since(began).Seconds() * float64(rate)); sent < due; sent++ {
			p := sent % len(s.ends)
			batch = append(batch, &sarama.ProducerMessage{
				Topic: s.topic, Partition: int32(p), Offset: s.ends[p], Metadata: s.ends[p],
				Key: sarama.StringEncoder(s.key(int32(p), s.ends[p])), Value: sarama.StringEncoder(fmt.Sprint(sent)),
			})
			s.ends[p]++
		}
		if s.err = s.produce(batch); s.err != nil {
			return
		}
	}
}

func (s *Producer) produce(batch []*sarama.ProducerMessage) error {
	if err := s.producer.SendMessages(batch); err != nil {
		return err
	}
	for _, msg := range batch {
		if msg.Offset != msg.Metadata {
			return fmt.Errorf("partition %d: a record got offset %d, not %d", msg.Partition, msg.Offset, msg.Metadata)
		}
	}
	return nil
}

// KeyOf names the lane of a record.
func KeyOf(partition int32, offset, keys int64) string {
	return fmt.Sprintf("%d-%d", partition, offset%keys)
}

// stop returns the partitions' ends.
func (s *Producer) stop() []int64 {
	s.once.Do(func() { close(s.stopping) })
	<-s.done
	return s.ends
}

// Finish stops the producer and returns the partitions' ends.
func (s *Producer) Finish(t testing.TB) []int64 {
	t.Helper()
	ends := s.stop()
	Check(t, s.err)
	return ends
}
