package transact

import (
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Config returns the configuration of a Sender: the user's, with what transactions need.
func Config(user *sarama.Config, id string, timeout time.Duration) *sarama.Config {
	c := *user
	c.Producer.Idempotent = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Return.Successes, c.Producer.Return.Errors = true, true
	c.Producer.Transaction.ID, c.Producer.Transaction.Timeout = id, timeout
	c.Producer.Partitioner = placing(user.Producer.Partitioner)
	// A transaction waits for all of its messages: one that waits for more of them would wait forever.
	c.Producer.Flush.Bytes, c.Producer.Flush.Messages, c.Producer.Flush.Frequency = 0, 0, 0
	c.Net.MaxOpenRequests = 1
	c.Net.ReadTimeout = min(c.Net.ReadTimeout, timeout)
	c.Metadata.Full = false
	c.Consumer.IsolationLevel = sarama.ReadCommitted
	// Whoever calls the Sender tries again: each call ends soon, or nobody could stop it.
	c.Producer.Retry.Max = min(max(1, c.Producer.Retry.Max), 3)
	c.Metadata.Retry.Max = min(c.Metadata.Retry.Max, 3)
	c.Producer.Transaction.Retry.Max = 20
	return &c
}

// mostPause is the longest pause before sarama tries again.
const mostPause = 100 * time.Millisecond

// setPauses sets the pauses before sarama tries again. There are none once over returns true.
func setPauses(c *sarama.Config, over func() bool) {
	metadata, producer := min(c.Metadata.Retry.Backoff, mostPause), min(c.Producer.Retry.Backoff, mostPause)
	c.Metadata.Retry.BackoffFunc = wait.Unless(over, func(int, int) time.Duration { return metadata })
	c.Producer.Retry.BackoffFunc = wait.Unless(over, func(int, int) time.Duration { return producer })
	c.Producer.Transaction.Retry.BackoffFunc = wait.Unless(over, func(retries, _ int) time.Duration {
		return min(5*time.Millisecond<<min(retries, 5), mostPause) // the markers of the last transaction take a moment
	})
}

// Placement as a message's Metadata is the partition that it goes to, whatever the partitioner says.
type Placement int32

func placing(user sarama.PartitionerConstructor) sarama.PartitionerConstructor {
	return func(topic string) sarama.Partitioner { return placer{user(topic)} }
}

type placer struct{ sarama.Partitioner }

func (p placer) Partition(m *sarama.ProducerMessage, partitions int32) (int32, error) {
	if at, ok := m.Metadata.(Placement); ok {
		return int32(at), nil
	}
	return p.Partitioner.Partition(m, partitions)
}

func (p placer) MessageRequiresConsistency(m *sarama.ProducerMessage) bool {
	if _, ok := m.Metadata.(Placement); ok {
		return true
	}
	if d, ok := p.Partitioner.(sarama.DynamicConsistencyPartitioner); ok {
		return d.MessageRequiresConsistency(m)
	}
	return p.RequiresConsistency()
}
