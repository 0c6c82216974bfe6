package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"
)

// newTopic makes an empty topic; its name is unique.
func newTopic(brokers []string, name string, partitions int) (string, error) {
	topic := fmt.Sprintf("%s-%d", name, time.Now().UnixNano())
	return topic, createTopic(brokers, topic, partitions)
}

func createTopic(brokers []string, topic string, partitions int) error {
	admin, err := sarama.NewClusterAdmin(brokers, sarama.NewConfig())
	if err != nil {
		return err
	}
	defer admin.Close()
	return admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: int32(partitions), ReplicationFactor: 1}, false)
}

func newProducer(brokers []string, opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(900_000),
	}, opts...)...)
}

// fill produces n records as fast as it goes.
func fill(brokers []string, n int, record func(i int) *kgo.Record) error {
	cl, err := newProducer(brokers, kgo.ProducerLinger(5*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.Close()
	var once sync.Once
	var failed error
	for i := range n {
		cl.Produce(context.Background(), record(i), func(_ *kgo.Record, err error) {
			if err != nil {
				once.Do(func() { failed = err })
			}
		})
	}
	return errors.Join(cl.Flush(context.Background()), failed)
}

// Kinds of a stamp.
const (
	prime    = iota // sent until the consumer is known to read: not counted
	warmUp          // counted, not measured
	measured        // counted and measured
)

// stamp is what a timed record carries in its value.
type stamp struct {
	due  time.Time // when it was due to be sent, whenever it was: so a stalled producer hides no latency
	key  uint32
	kind byte
}

const stampSize = 13

func (s stamp) encode(size int) []byte {
	value := make([]byte, max(size, stampSize))
	binary.BigEndian.PutUint64(value, uint64(s.due.UnixNano()))
	binary.BigEndian.PutUint32(value[8:], s.key)
	value[12] = s.kind
	return value
}

func decodeStamp(value []byte) stamp {
	return stamp{time.Unix(0, int64(binary.BigEndian.Uint64(value))), binary.BigEndian.Uint32(value[8:]), value[12]}
}
