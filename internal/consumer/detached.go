package consumer

import (
	"context"
	"sync"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

// Detached is the end of an assignment that no broker knows of. See Detach.
type Detached struct {
	claim *Claim
	drain func()
	close sync.Once
}

// Detach fills a delivery, which has its Handle, as if its record had just been handed out, and every commit were
// stored at once. Nothing runs: it is for tests of handlers. attempts is how often the record
// was delivered before, and first is when that began, see Now. ctx is the parent of the
// handler's context.
func Detach(ctx context.Context, d *Delivery, cfg Config, r *sarama.ConsumerMessage, attempts int, first int64) *Detached {
	c := &Claim{
		base: newBase(&cfg), claimStart: claimStart{place: place{r.Topic, r.Partition}}, logger: cfg.Logger, detached: cfg.Group != "",
		draining: make(chan struct{}), spent: make(chan struct{}),
		wake: make(chan bool, 2), kick: make(chan struct{}, 1),
	}
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	c.part = partition.New[Task](partition.Config[*sarama.ConsumerMessage]{
		MaxInFlight: 1, Late: &c.late, Clock: &c.clock, Start: r.Offset, Committed: true, Fingerprint: c.fingerprint,
		Open: []partition.Open{{Offset: r.Offset, Attempts: attempts, First: first, Check: uint16(c.fingerprint(r))}},
	})
	_, _ = c.part.Push(r.Offset, r, record.Size(r)) // the first one is in order
	d.claim = c
	c.part.Take(&d.Delivery)
	d.describe(&record.Copies{})
	_ = d.handOut()
	return &Detached{claim: c, drain: sync.OnceFunc(func() {
		c.part.Stop()
		close(c.draining)
	})}
}

// Drain begins the drain.
func (t *Detached) Drain() { t.drain() }

// Close ends the assignment: what is not settled is left to the next owner.
func (t *Detached) Close(cause error) {
	t.Drain()
	t.close.Do(func() { t.claim.close(&Released{Cause: cause}) })
}
