package consumer

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/budget"
	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/letters"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Claim is one assignment of a partition. Its goroutines are the one of its session, which
// calls run (see intake) and then drain; the watchdog; the slots, which hand records out; and
// the workers of its letters. Handlers, the committer and operators call it from theirs.
type Claim struct {
	*base

	// Set by newClaim, and not changed.
	claimStart
	began    time.Time
	logger   watermill.LoggerAdapter
	part     *partition.Partition[*sarama.ConsumerMessage, Task]
	portion  *budget.Portion // of MaxBufferedBytes
	topicID  sarama.Uuid     // of the topic that is read; zero: not known
	cluster  uint32          // see ledger.Ledger
	source   *commit.Source  // nil without a group
	letters  *letters.Queue
	crashes  crashes
	ctx      context.Context // of the handlers; the drain cancels it
	detached bool            // what is settled counts as stored, see Detach

	cancel context.CancelCauseFunc
	reader *reread.Reader // dropped once all that serves the claim has ended
	ended  error          // why it ended: set before the partition is closed, read after

	// Closed as the assignment continues.
	draining chan struct{} // by the drain, when it begins
	fenced   chan struct{} // by the committer: the group has continued without us
	spent    chan struct{} // by the drain, when the partition is no longer ours

	offers wait.Changes // the drain has begun, or a record was rejected whose message nobody may have taken

	// Whoever carries out the partition's Work sends; see do.
	wake  chan bool     // a token each for an idle slot: look for a record, or end
	kick  chan struct{} // slots to start, a timer or a low mark: the intake looks
	spawn atomic.Int32  // the slots to start

	looks     chan chan struct{} // from sarama's goroutine to the intake: look at what a fetch brought
	suspected chan struct{}      // to the watchdog: look whether what comes next can be decoded
	slots     sync.WaitGroup     // and the watchdog

	pausing  sync.Mutex   // of those that call pause
	doubted  sync.Once    // a line
	careful  atomic.Bool  // slots name records before they hand them out, see crash.go; the intake ends it
	unmarked atomic.Int64 // settled records for whose marks the last commit had no room; written by the committer, read by the drain
	calls    calls
	corrupt  corrupt // the watchdog's own
}

// claimStart is what a claim begins with.
type claimStart struct {
	place
	from      position
	committer *commit.Committer // nil without a group
	side      sarama.Client
	gate      *gate                   // pauses the partition; closed at first
	logEnd    func() int64            // where the log ended at the last fetch
	reconnect context.CancelCauseFunc // ends the session; the next has new connections
}

// position is where a claim begins.
type position struct {
	offset   int64  // of the first record
	stored   bool   // the group has that offset, or a later one, stored
	metadata string // with that
	stale    bool   // it is of an earlier topic
}

// newClaim returns the claim of a partition that was assigned.
func (s *Subscription) newClaim(start claimStart) *Claim {
	cfg := s.cfg
	c := &Claim{
		base: s.base, claimStart: start, began: time.Now(),
		logger:    s.logger(start.topic).With(watermill.LogFields{"kafka_partition": start.partition, "kafka_initial_offset": start.from.offset}),
		reader:    reread.New(start.side, start.topic, start.partition, s.side.AbortLate),
		draining:  make(chan struct{}),
		spent:     make(chan struct{}),
		fenced:    make(chan struct{}),
		wake:      make(chan bool, 2*cfg.MaxInFlight+1), // slots, and spare ones that have not ended
		kick:      make(chan struct{}, 1),
		looks:     make(chan chan struct{}),
		suspected: make(chan struct{}, 1),
	}
	reads := s.topics.of(start.topic)
	c.topicID, c.cluster = reads.read, reads.cluster
	c.portion = s.budget.Portion(start.from.offset, start.logEnd, func(room bool) { c.gate.mark(noRoom, !room) })
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(s.values))
	c.letters = s.mail.Queue(c.ctx, c.logger, cfg.GiveUpLetters)
	left := &ledger.Ledger{} // by an earlier owner
	if c.committer != nil && start.from.stored {
		left = c.inherit()
	}
	// A record handed out before the start is stored would be lost if we died now: the next
	// owner would begin at the newest offset again. And should it end the process, the next
	// owner must find that this assignment had begun.
	stored := start.from.stored && cfg.MaxDeliveries == 0
	c.part = c.newPartition(left, stored)
	c.part.OnGrant(func() { c.do(c.part.Poke()) })
	if c.committer != nil {
		c.source = c.newSource(stored)
		c.source.Open()
	}
	return c
}

// inherit reads what an earlier owner left. If processes died that had the partition, the
// claim is careful.
func (c *Claim) inherit() *ledger.Ledger {
	l := c.inherited(c.from.offset, c.from.metadata)
	if c.crashes = inheritCrashes(l, c.cfg.MaxDeliveries); c.crashes.deaths >= carefulAfter {
		c.careful.Store(true)
		c.logger.Error("Processes that had this partition died repeatedly: records are handed out in small groups, to find one that ends its process",
			fmt.Errorf("%d deaths in a row", c.crashes.deaths), watermill.LogFields{"group": carefulGroup})
	}
	return l
}

// newPartition returns the claim's window. Nothing is handed out of it before the start is stored.
func (c *Claim) newPartition(left *ledger.Ledger, stored bool) *partition.Partition[*sarama.ConsumerMessage, Task] {
	cfg := partition.Config[*sarama.ConsumerMessage]{
		Order:          c.cfg.Order,
		Key:            func(r *sarama.ConsumerMessage) []byte { return r.Key },
		OrderKey:       c.cfg.Key,
		Due:            c.cfg.Due,
		MaxInFlight:    c.cfg.MaxInFlight,
		MaxUncommitted: c.cfg.MaxUncommitted,
		Committed:      c.committer != nil,
		Limit:          c.limit,
		Bytes:          &c.portion.Bytes,
		Late:           &c.late,
		Clock:          &c.clock,
		Detach:         record.Detached,
		Start:          c.from.offset,
		Fingerprint:    c.fingerprint,
		Marks:          left.Blocks,
		Open:           opens(left),
		Unopened:       c.committer != nil && !stored,
		Output:         c.cfg.Transactions != nil,
	}
	if c.cfg.Batches != nil {
		cfg.Batches, cfg.Limit = true, nil
	}
	if c.careful.Load() {
		cfg.Careful = carefulGroup
	}
	return partition.New[Task](cfg)
}

// newSource returns the claim's side of the committer.
func (c *Claim) newSource(stored bool) *commit.Source {
	return c.committer.NewSource(commit.SourceConfig{
		Topic: c.topic, Partition: c.partition, Stored: stored,
		Mark:      c.part.Mark,
		Running:   func() int { return c.part.Load().Running },
		Snapshot:  c.snapshot,
		Reverted:  c.part.Reverted,
		Confirmed: func(s *partition.Snapshot, left bool) { c.do(c.part.Committed(s, left)) },
		Crowded:   func() { c.do(c.part.Crowded()) },
		Fenced: func(error) {
			_, w := c.part.Stop() // others may own the partition by now
			c.do(w)
			close(c.fenced)
		},
	})
}
