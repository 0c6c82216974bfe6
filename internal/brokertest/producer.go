package brokertest

import (
	"fmt"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

// WriteOnce has a producer write each record once and in order, to the partition that its message names, and on all replicas.
func WriteOnce(cfg *sarama.Config) {
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Return.Successes = true
	cfg.Producer.Retry.Max = 50
	cfg.Producer.Idempotent = true
	cfg.Net.MaxOpenRequests = 1 // sarama wants it for an idempotent producer
}

// Load is what a Producer writes.
type Load struct {
	Topic      string
	Partitions int
	Rate       float64 // records per second
	Key        func(partition int32, offset int64) string
	Stored     func(partition int32, offset int64, key string) // may be nil
}

// Producer produces at a constant rate. It fills the partitions in turn, each from offset 0 on without a gap.
type Producer struct {
	load     Load
	producer sarama.SyncProducer
	stopping chan struct{}
	done     chan struct{}
	finish   func() ([]int64, error)
	ends     []int64 // the next offset of each partition
	err      error
}

// StartProducer produces until Finish.
func StartProducer(addrs []string, load Load) (*Producer, error) {
	cfg := sarama.NewConfig()
	WriteOnce(cfg)
	producer, err := sarama.NewSyncProducer(addrs, cfg)
	if err != nil {
		return nil, err
	}
	p := &Producer{
		load: load, producer: producer,
		stopping: make(chan struct{}), done: make(chan struct{}), ends: make([]int64, load.Partitions),
	}
	p.finish = sync.OnceValues(p.end)
	go p.run()
	return p, nil
}

func (p *Producer) run() {
	defer close(p.done)
	ticker := time.NewTicker(25 * time.Millisecond)
	defer ticker.Stop()
	began, sent := time.Now(), 0
	for p.err == nil {
		select {
		case <-ticker.C:
		case <-p.stopping:
			return
		}
		var batch []*sarama.ProducerMessage
		for due := int(time.Since(began).Seconds() * p.load.Rate); sent < due; sent++ {
			at := int32(sent % len(p.ends))
			batch = append(batch, &sarama.ProducerMessage{
				Topic: p.load.Topic, Partition: at, Metadata: p.ends[at],
				Key: sarama.StringEncoder(p.load.Key(at, p.ends[at])), Value: sarama.StringEncoder(fmt.Sprint(sent)),
			})
			p.ends[at]++
		}
		p.err = p.send(batch)
	}
}

func (p *Producer) send(batch []*sarama.ProducerMessage) error {
	if err := p.producer.SendMessages(batch); err != nil {
		return err
	}
	for _, msg := range batch {
		if msg.Offset != msg.Metadata {
			return fmt.Errorf("partition %d: a record got offset %d, not %d", msg.Partition, msg.Offset, msg.Metadata)
		}
		if p.load.Stored != nil {
			p.load.Stored(msg.Partition, msg.Offset, string(msg.Key.(sarama.StringEncoder)))
		}
	}
	return nil
}

// Finish stops the producer and returns the partitions' ends.
func (p *Producer) Finish() (ends []int64, err error) { return p.finish() }

func (p *Producer) end() ([]int64, error) {
	close(p.stopping)
	<-p.done
	if err := p.producer.Close(); p.err == nil {
		p.err = err
	}
	return p.ends, p.err
}
