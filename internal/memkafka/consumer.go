package memkafka

import (
	"sync"

	"github.com/IBM/sarama"
)

// consumer implements sarama.Consumer.
type consumer struct {
	sarama.Client
	cluster *Cluster
	reads   sync.WaitGroup

	mu      sync.Mutex
	readers map[place]*partitionConsumer
}

// Consumer stands in for sarama.NewConsumerFromClient.
func (l *Link) Consumer(client sarama.Client) (sarama.Consumer, error) {
	return &consumer{Client: client, cluster: l.cluster, readers: map[place]*partitionConsumer{}}, nil
}

// ConsumePartition implements sarama.Consumer.
func (c *consumer) ConsumePartition(topic string, partition int32, offset int64) (sarama.PartitionConsumer, error) {
	oldest, err := c.GetOffset(topic, partition, sarama.OffsetOldest)
	if err != nil {
		return nil, err
	}
	newest, err := c.GetOffset(topic, partition, sarama.OffsetNewest)
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
	at := place{topic, partition}
	p := &partitionConsumer{partitionReader: c.cluster.newReader(c.Client, at, offset), errors: make(chan *sarama.ConsumerError)}
	c.mu.Lock()
	c.readers[at] = p
	c.mu.Unlock()
	p.goes = &c.reads
	return p, nil
}

// HighWaterMarks implements sarama.Consumer.
func (c *consumer) HighWaterMarks() map[string]map[int32]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	marks := map[string]map[int32]int64{}
	for at, p := range c.readers {
		if marks[at.topic] == nil {
			marks[at.topic] = map[int32]int64{}
		}
		marks[at.topic][at.partition] = p.end()
	}
	return marks
}

// Close implements sarama.Consumer.
func (c *consumer) Close() error {
	c.reads.Wait()
	return nil
}

// Pause implements sarama.Consumer.
func (c *consumer) Pause(partitions map[string][]int32) { c.pause(partitions, true) }

// Resume implements sarama.Consumer.
func (c *consumer) Resume(partitions map[string][]int32) { c.pause(partitions, false) }

// PauseAll implements sarama.Consumer.
func (c *consumer) PauseAll() { c.pause(nil, true) }

// ResumeAll implements sarama.Consumer.
func (c *consumer) ResumeAll() { c.pause(nil, false) }

// pause pauses or resumes partitions; all of them if partitions is nil.
func (c *consumer) pause(partitions map[string][]int32, paused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, p := range c.readers {
		if partitions == nil {
			p.pause(paused)
		}
		for _, n := range partitions[at.topic] {
			if n == at.partition {
				p.pause(paused)
			}
		}
	}
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
