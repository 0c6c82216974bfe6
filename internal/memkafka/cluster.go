package memkafka

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

// Address is where the broker is.
const Address = "kafka:9092"

// Cluster is a Kafka of one broker.
type Cluster struct {
	conns  chan connection
	closed chan struct{}
	serves sync.WaitGroup

	mu      sync.Mutex
	topics  map[string]*topic
	groups  map[string]*group
	members int           // so far, for their ids
	changed chan struct{} // closed and replaced when a log grows
}

type topic struct {
	partitions []*partitionLog
}

// partitionLog has the records of a partition, the first of which has offset 0.
type partitionLog struct {
	records []*sarama.ConsumerMessage
}

type place struct {
	topic     string
	partition int32
}

// New starts a cluster. It must be closed.
func New() *Cluster {
	c := &Cluster{
		conns: make(chan connection), closed: make(chan struct{}),
		topics: map[string]*topic{}, groups: map[string]*group{}, changed: make(chan struct{}),
	}
	c.serves.Go(c.accept)
	return c
}

// Close ends all connections.
func (c *Cluster) Close() {
	close(c.closed)
	c.serves.Wait()
}

// CreateTopic creates a topic, or adds partitions to it.
func (c *Cluster) CreateTopic(name string, partitions int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grow(name, partitions)
}

// grow returns a topic that has at least so many partitions. The caller holds the lock.
func (c *Cluster) grow(name string, partitions int) *topic {
	t := c.topics[name]
	if t == nil {
		t = &topic{}
		c.topics[name] = t
	}
	if len(t.partitions) >= partitions {
		return t
	}
	for len(t.partitions) < partitions {
		t.partitions = append(t.partitions, &partitionLog{})
	}
	for _, g := range c.groups {
		if slices.ContainsFunc(slices.Collect(maps.Values(g.members)), func(m *member) bool { return slices.Contains(m.topics, name) }) {
			g.rebalance()
		}
	}
	return t
}

// log returns the log of a partition, or nil. The caller holds the lock.
func (c *Cluster) log(name string, partition int32) *partitionLog {
	t := c.topics[name]
	if t == nil || partition < 0 || int(partition) >= len(t.partitions) {
		return nil
	}
	return t.partitions[partition]
}

// Append writes a record and returns its offset. It creates the topic, or the partition.
func (c *Cluster) Append(r *sarama.ConsumerMessage) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.append(r)
}

func (c *Cluster) append(r *sarama.ConsumerMessage) int64 {
	log := c.grow(r.Topic, int(r.Partition)+1).partitions[r.Partition]
	r.Offset = int64(len(log.records))
	if r.Timestamp.IsZero() {
		r.Timestamp = time.Now()
	}
	r.Timestamp = r.Timestamp.Truncate(time.Millisecond)
	log.records = append(log.records, r)
	close(c.changed)
	c.changed = make(chan struct{})
	return r.Offset
}

// Records returns copies of all records of a topic, partition by partition.
func (c *Cluster) Records(name string) []*sarama.ConsumerMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[name]
	if t == nil {
		return nil
	}
	var all []*sarama.ConsumerMessage
	for _, log := range t.partitions {
		for _, r := range log.records {
			all = append(all, record.Detached(r))
		}
	}
	return all
}

// Ends returns the end of each partition of a topic.
func (c *Cluster) Ends(name string) []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[name]
	if t == nil {
		return nil
	}
	var ends []int64
	for _, log := range t.partitions {
		ends = append(ends, int64(len(log.records)))
	}
	return ends
}

// Committed returns the offset that a group has stored, or -1.
func (c *Cluster) Committed(name, topic string, partition int32) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.group(name).position(place{topic, partition}).offset
}

// group returns a group. The caller holds the lock.
func (c *Cluster) group(name string) *group {
	g := c.groups[name]
	if g == nil {
		g = &group{
			cluster: c, members: map[string]*member{}, positions: map[place]position{}, taken: map[place]bool{},
		}
		c.groups[name] = g
	}
	return g
}

// Topics returns the names of all topics.
func (c *Cluster) Topics() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.topics))
}
