package consumer

import (
	"errors"
	"time"

	"github.com/IBM/sarama"
)

// A partition without a leader, or whose leader does not respond, must not end the session
// of all the others: sarama begins a session with the metadata of the topic, which is an
// error as long as one of its partitions has no leader; and to begin a partition that
// cannot be reached fails, which ends the session. But before it begins one it asks the
// client whether the partition can be read, and if not, asks again every five seconds.

// leaderless are the partitions that sarama is kept from beginning, and when.
type leaderless map[place]time.Time

// askedAgain is how long after such a response a partition is still ours: sarama has asked
// again by then, or it was revoked.
const askedAgain = 15 * time.Second

// errLeaderless is why a partition is not begun.
var errLeaderless = errors.New("the partition has no leader: its broker is down, and no other one has a replica in sync")

// refresh refreshes the metadata of topics. It is no error that some partitions have no leader, or
// that some of the topics do not exist.
func (c *fetchClient) refresh(topics []string) error {
	err := c.Client.RefreshMetadata(topics...)
	if !errors.Is(err, sarama.ErrLeaderNotAvailable) && (len(topics) == 1 || !errors.Is(err, sarama.ErrUnknownTopicOrPartition)) {
		return err
	}
	for _, topic := range topics {
		partitions, unknown := c.Client.Partitions(topic)
		if unknown != nil {
			continue
		}
		for _, p := range partitions {
			if !c.Client.PartitionNotReadable(topic, p) {
				return nil
			}
		}
	}
	return err
}

// PartitionNotReadable reports whether sarama should not begin a partition yet.
func (c *fetchClient) PartitionNotReadable(topic string, partition int32) bool {
	err := c.readable(topic, partition)
	c.base.unreadable(place{topic, partition}, err)
	return err != nil
}

func (c *fetchClient) readable(topic string, partition int32) error {
	if c.Client.PartitionNotReadable(topic, partition) {
		_ = c.Client.RefreshMetadata(topic) // it may be long ago
		if c.Client.PartitionNotReadable(topic, partition) {
			return errLeaderless
		}
	}
	if !c.base.health.failing.Load() {
		return nil // a fetch under way would delay the question
	}
	leader, err := c.Client.Leader(topic, partition)
	if err != nil {
		return err
	}
	if _, err = leader.Connected(); err != nil { // waits for it
		_ = leader.Close()
		_ = c.Client.RefreshMetadata(topic)
	}
	return err
}

// unreadable takes note of whether a partition can be begun.
func (s *base) unreadable(at place, err error) {
	s.claimsMu.Lock()
	last, was := s.leaderless[at]
	if err != nil {
		s.leaderless[at] = time.Now()
	} else {
		delete(s.leaderless, at)
	}
	s.claimsMu.Unlock()
	switch {
	case err != nil && time.Since(last) > examine: // sarama asks twice at first
		s.health.failed(fetching, at, failure{err: err})
	case err == nil && was:
		s.health.works(fetching, at)
	}
}
