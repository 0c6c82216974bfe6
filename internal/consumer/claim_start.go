package consumer

import (
	"context"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// claimStart is what a claim begins with.
type claimStart struct {
	topic     string
	partition int32
	offset    int64       // of the first record
	stored    bool        // the group has that offset, or a later one, stored
	metadata  string      // what is stored with it
	topicID   sarama.Uuid // zero: not known
	cluster   uint32      // see ledger.Ledger
	committer *commit.Committer
	side      sarama.Client
	gate      *gate                                    // closed
	end       func() int64                             // where the log ended at the last fetch
	abortLate func(stop <-chan struct{}) (done func()) // of the side's requests
	reconnect context.CancelCauseFunc                  // ends the session; the next has new connections
	ctx       context.Context                          // for its values
}

func (s *shared) newClaim(start claimStart) *Claim {
	cfg := s.cfg
	c := &Claim{
		shared: s, topic: start.topic, partition: start.partition,
		reconnect: start.reconnect, gate: start.gate, logEnd: start.end,
		committer: start.committer,
		topicID:   start.topicID, cluster: start.cluster,
		began: time.Now(), startOffset: start.offset, startStored: start.stored,
		reader:    reread.New(start.side, start.topic, start.partition, start.abortLate),
		draining:  make(chan struct{}),
		spent:     make(chan struct{}),
		fenced:    make(chan struct{}),
		wake:      make(chan struct{}, cfg.MaxInFlight+1),
		kick:      make(chan struct{}, 1),
		looks:     make(chan chan struct{}),
		suspected: make(chan struct{}, 1),
	}
	c.portion = s.budget.Portion(start.offset, start.end, func(room bool) { c.gate.mark(noRoom, !room) })
	c.logger = cfg.Logger.With(watermill.LogFields{"kafka_partition": start.partition, "kafka_initial_offset": start.offset})
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(start.ctx))
	c.letters = s.mail.Queue(c.ctx, c.logger, cfg.GiveUpLetters)
	var marks []ledger.Block
	var open []partition.Open
	careful := 0
	if c.committer != nil && start.stored {
		l := c.inherited(start.offset, start.metadata)
		if l != nil {
			marks, open = l.Blocks, opens(l)
		}
		if c.crashes = inheritCrashes(l, cfg.MaxDeliveries); c.crashes.deaths >= carefulAfter {
			careful = carefulGroup
			c.careful.Store(true)
			c.tellCareful()
		}
	}
	// A record handed out before the start is stored would be lost if we died now: the next
	// owner would begin at the newest offset again. And should it end the process, the next
	// owner must find that this assignment had begun.
	stored := start.stored && cfg.MaxDeliveries == 0
	c.part = partition.New[*Delivery](partition.Config[*sarama.ConsumerMessage]{
		Order:          cfg.Order,
		Key:            func(r *sarama.ConsumerMessage) []byte { return r.Key },
		MaxInFlight:    cfg.MaxInFlight,
		MaxUncommitted: cfg.MaxUncommitted,
		Committed:      c.committer != nil,
		Limit:          s.limit,
		Bytes:          &c.portion.Bytes,
		Late:           &s.late,
		Clock:          &s.clock,
		Detach:         record.Detached,
		Start:          start.offset,
		Fingerprint:    s.fingerprint,
		Marks:          marks,
		Open:           open,
		Careful:        careful,
		Held:           c.committer != nil && !stored,
	})
	c.part.OnGrant(func() { c.do(c.part.Poke()) })
	if c.committer != nil {
		c.source = c.committer.NewSource(commit.SourceConfig{
			Topic: c.topic, Partition: c.partition, Stored: stored,
			Mark:      c.part.Mark,
			Running:   func() int { return c.part.Load().Running },
			Snapshot:  c.snapshot,
			Reverted:  c.part.Reverted,
			Confirmed: func(s *partition.Snapshot, left bool) { c.do(c.part.Committed(s, left)) },
			Fenced: func(error) {
				_, w := c.part.Stop() // others may own the partition by now
				c.do(w)
				close(c.fenced)
			},
		})
		c.source.Open()
	}
	return c
}
