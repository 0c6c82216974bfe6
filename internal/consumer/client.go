package consumer

import (
	"errors"
	"sync"

	"github.com/IBM/sarama"
)

// clients are the two connections of a subscription: commits on the one that
// also fetches would wait behind the fetch.
type clients struct {
	fetch *positionClient
	side  sarama.Client // commits, and reads single records again
}

func open(cfg *Config) (*clients, error) {
	fetch, err := sarama.NewClient(cfg.Brokers, cfg.Sarama)
	if err != nil {
		return nil, err
	}
	c := &clients{fetch: &positionClient{Client: fetch, offsets: map[positionKey]int64{}}}
	if c.side, err = sarama.NewClient(cfg.Brokers, cfg.Side); err != nil {
		_ = fetch.Close()
		return nil, err
	}
	return c, nil
}

func (c *clients) close() error {
	return errors.Join(c.fetch.Client.Close(), c.side.Close())
}

// positionClient remembers what GetOffset answered. sarama resolves "newest" and
// "oldest" inside ConsumePartition and tells nobody the outcome; asking the broker
// once more, later, may answer beyond records that were fetched already.
type positionClient struct {
	sarama.Client

	mu      sync.Mutex
	offsets map[positionKey]int64
}

type positionKey struct {
	topic     string
	partition int32
	which     int64 // sarama.OffsetNewest or OffsetOldest
}

func (c *positionClient) GetOffset(topic string, partition int32, which int64) (int64, error) {
	offset, err := c.Client.GetOffset(topic, partition, which)
	if err == nil {
		c.mu.Lock()
		c.offsets[positionKey{topic, partition, which}] = offset
		c.mu.Unlock()
	}
	return offset, err
}

// position answers what sarama resolved for a partition it consumes.
func (c *positionClient) position(topic string, partition int32, which int64) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	offset, ok := c.offsets[positionKey{topic, partition, which}]
	return offset, ok
}
