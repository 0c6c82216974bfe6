package memkafka

import (
	"sync"

	"github.com/IBM/sarama"
)

// consumer implements of sarama.Consumer what the library calls.
type consumer struct {
	sarama.Consumer
	client  sarama.Client
	cluster *Cluster
	reads   sync.WaitGroup
}

// Consumer stands in for sarama.NewConsumerFromClient.
func (l *Link) Consumer(client sarama.Client) (sarama.Consumer, error) {
	return &consumer{client: client, cluster: l.cluster}, nil
}

// Partitions implements sarama.Consumer.
func (c *consumer) Partitions(topic string) ([]int32, error) { return c.client.Partitions(topic) }

// ConsumePartition implements sarama.Consumer.
func (c *consumer) ConsumePartition(topic string, partition int32, offset int64) (sarama.PartitionConsumer, error) {
	oldest, err := c.client.GetOffset(topic, partition, sarama.OffsetOldest)
	if err != nil {
		return nil, err
	}
	newest, err := c.client.GetOffset(topic, partition, sarama.OffsetNewest)
	if err != nil {
		return nil, err
	}
	switch {
	case offset == sarama.OffsetOldest:
		offset = oldest
	case offset == sarama.OffsetNewest:
		offset = newest
	case offset < oldest || offset > newest:
		return nil, sarama.ErrOffsetOutOfRange
	}
	return &partitionConsumer{
		partitionReader: c.cluster.newReader(c.client, place{topic, partition}, offset),
		goes:            &c.reads, errors: make(chan *sarama.ConsumerError),
	}, nil
}

// Close implements sarama.Consumer.
func (c *consumer) Close() error {
	c.reads.Wait()
	return nil
}

// partitionConsumer implements sarama.PartitionConsumer.
type partitionConsumer struct {
	*partitionReader
	goes   *sync.WaitGroup
	errors chan *sarama.ConsumerError
	ended  sync.Once
}

// AsyncClose implements sarama.PartitionConsumer.
func (p *partitionConsumer) AsyncClose() {
	p.ended.Do(func() {
		p.close()
		p.start(p.goes) // so that the messages end, also if nobody has read them
		close(p.errors)
	})
}

// Close implements sarama.PartitionConsumer.
func (p *partitionConsumer) Close() error {
	p.AsyncClose()
	for range p.messages {
	}
	return nil
}

// Messages begins to read: what was paused before brings nothing.
func (p *partitionConsumer) Messages() <-chan *sarama.ConsumerMessage {
	p.start(p.goes)
	return p.messages
}

// Errors implements sarama.PartitionConsumer, as the methods below do.
func (p *partitionConsumer) Errors() <-chan *sarama.ConsumerError { return p.errors }
func (p *partitionConsumer) HighWaterMarkOffset() int64           { return p.end() }
func (p *partitionConsumer) Pause()                               { p.pause(true) }
func (p *partitionConsumer) Resume()                              { p.pause(false) }

// IsPaused implements sarama.PartitionConsumer.
func (p *partitionConsumer) IsPaused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}
