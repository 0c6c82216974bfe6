package consumer

import (
	"errors"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
)

// newCommitter starts the committer of a session.
func (h *groupHandler) newCommitter(session commit.Session) *commit.Committer {
	s, endSession := h.s, h.endSession
	var instance *string
	if id := s.cfg.Sarama.Consumer.Group.InstanceId; id != "" {
		instance = &id
	}
	abort := s.side.Abort
	var transact func(<-chan struct{}, commit.Transaction) error
	if s.transactions != nil {
		abort = func() {
			s.side.Abort()
			s.transactions.Abort()
		}
		transact = s.transactions.Send
	}
	return commit.New(commit.Config{
		Client:      h.clients.side,
		Group:       s.cfg.Group,
		InstanceID:  instance,
		Interval:    s.cfg.CommitInterval,
		Cooperative: s.cooperative,
		Abort:       abort,
		Transact:    transact,
		PutBack:     s.putBack,
		Fenced: func(topic string, partition int32, offset int64, err error) {
			if errors.Is(err, sarama.ErrFencedInstancedId) {
				h.reconnect(err)
				return
			}
			s.commitFailed(refused, place{topic, partition}, offset, err)
			// The heartbeat may not notice it, and nothing can be committed any more: join again.
			endSession(err)
		},
		Committed: func(topic string, partition int32, offset int64, took time.Duration) {
			s.health.works(committing, place{topic, partition})
			s.cfg.Events.Committed(topic, partition, offset, took)
		},
		Failed: func(topic string, partition int32, offset int64, err error, attempt int, took time.Duration) {
			if attempt > 0 {
				s.commitFailed(committing, place{topic, partition}, offset, err)
			}
			s.cfg.Events.CommitFailed(topic, partition, offset, err, attempt, took)
		},
	}, session)
}

func (s *Subscription) commitFailed(as symptom, at place, offset int64, err error) {
	s.health.failed(as, at, failure{err: err, fields: watermill.LogFields{"kafka_partition_offset": offset}})
}

func (s *Subscription) putBack(topic string, partition int32, found, wanted int64) {
	s.logger(topic).Info("A commit without a response was processed after a later one and put the stored offset back: it is stored again",
		watermill.LogFields{"kafka_partition": partition, "kafka_partition_offset": wanted, "stored_offset": found})
}
