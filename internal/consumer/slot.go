package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// slot carries records to the application, one at a time, until the claim drains.
func (c *Claim) slot() {
	task := c.newTask()
	w, ok := c.part.Take(&task.Delivery().Delivery)
	c.serveAll(task, w, ok)
}

// exitedPause is how long a record waits whose attempt ended its goroutine.
const exitedPause = 100 * time.Millisecond

// serveAll goes on with a task that may hold a record, and what the partition asks for.
func (c *Claim) serveAll(task Task, w partition.Work, ok bool) {
	var copies Copies
	running := false
	defer func() {
		if running { // the application's code ended this goroutine (runtime.Goexit): another one takes its place
			next := c.newTask()
			verdict := partition.Verdict{Status: partition.Nacked, DueAt: Now() + int64(exitedPause)}
			_, ok, w := c.part.FinishAndTake(&task.Delivery().Delivery, verdict, Now(), &next.Delivery().Delivery)
			task.Finished()
			c.slots.Add(1)
			go c.serveAll(next, w, ok)
		}
		c.slots.Done()
	}()
	c.do(w)
	for {
		for !ok {
			select {
			case <-c.wake:
			case <-c.spent:
				return
			}
			w, ok = c.part.Take(&task.Delivery().Delivery)
			c.do(w)
		}
		d := &task.Delivery().Delivery
		running = true
		verdict, sent := c.serveOne(task, &copies)
		running = false
		if !sent {
			next := c.newTask()
			w, ok = c.part.Abandon(d, &next.Delivery().Delivery)
			c.do(w)
			task = next
			continue
		}
		now := int64(0) // a clock that nobody looks at: had a verb nacked it, it falls due by the timer
		if verdict.Status != partition.Acked {
			now = Now()
			verdict.Check = c.check(d)
		}
		next := c.newTask()
		_, ok, w = c.part.FinishAndTake(d, verdict, now, &next.Delivery().Delivery)
		task.Finished()
		c.do(w)
		task = next
	}
}

// serveOne runs a task, after reading its record again where memory no longer holds it.
func (c *Claim) serveOne(task Task, copies *Copies) (v partition.Verdict, sent bool) {
	d := &task.Delivery().Delivery
	if d.Evicted() {
		stop := c.draining
		if d.Last() {
			stop = c.quit
		}
		record, err := c.readAgain(stop, d.Offset())
		switch {
		case errors.Is(err, reread.ErrGone):
			c.part.Restore(d, &sarama.ConsumerMessage{Topic: c.topic, Partition: c.partition, Offset: d.Offset()})
			task.Delivery().describe(d.Record(), copies)
			return task.Gone(err), true
		case err != nil: // draining
			return v, false
		}
		c.part.Restore(d, record)
	}
	task.Delivery().describe(d.Record(), copies)
	if !d.Last() {
		return task.Run(c.draining, copies)
	}
	offer := task.Delivery()
	offer.offered = true
	c.offering.Add(1)
	defer offer.Sent() // or it went nowhere: not decoded, or no longer ours
	return task.Run(c.quit, copies)
}

// Sent tells that the application has taken the message. The slot calls it.
func (d *Delivery) Sent() {
	if d.offered {
		d.offered = false
		d.claim.offering.Add(-1)
	}
}

// readAgain tries until it has an answer or the claim drains.
func (c *Claim) readAgain(stop <-chan struct{}, offset int64) (*sarama.ConsumerMessage, error) {
	for attempt := 1; ; attempt++ {
		record, err := c.reader.Read(stop, offset)
		if err == nil || errors.Is(err, reread.ErrGone) {
			c.health.works(rereading, c.partition)
			return record, err
		}
		c.health.failed(rereading, c.partition, failure{err: err, fields: watermill.LogFields{"kafka_partition_offset": offset}})
		if !wait.For(wait.Backoff(attempt, 20*time.Millisecond, time.Second), stop) {
			return nil, err
		}
	}
}

func (c *Claim) newTask() Task {
	task := c.cfg.NewTask()
	d := task.Delivery()
	d.claim = c
	d.Owner = task
	return task
}

// do carries out what the partition asked for. Slots are started by the claim's
// own goroutine only.
func (c *Claim) do(w partition.Work) {
	for range w.Wake {
		c.wake <- struct{}{} // has room for every slot
	}
	if w.Spawn > 0 {
		c.spawn.Add(int32(w.Spawn))
	}
	if w.Spawn > 0 || w.Timer || w.Low {
		select {
		case c.kick <- struct{}{}:
		default:
		}
	}
	if c.source != nil && (w.Full || (w.Moved && (c.cfg.CommitEach || c.source.Waiting()))) {
		c.committer.Urge()
	}
	w.Granted()
}

// Delivery is the handle of one handing out of a record.
type Delivery struct {
	partition.Delivery[*sarama.ConsumerMessage]
	claim     *Claim
	key       []byte
	timestamp stamp
	offered   bool // counted in offering: handed out in a drain, taken by nobody yet
}

// Settle settles the delivery unless it is settled; see partition.Settle.
func (d *Delivery) Settle(v partition.Verdict) (status partition.Status, first bool) {
	if v.Status != partition.Acked {
		v.Check = d.claim.check(&d.Delivery)
	}
	status, first, w := d.claim.part.Settle(&d.Delivery, v, Now())
	d.claim.do(w)
	return status, first
}

// AckCumulative acks the record and every earlier one that no handler has.
func (d *Delivery) AckCumulative() (status partition.Status, first bool, others []partition.Acknowledged) {
	status, first, others, w := d.claim.part.AckCumulative(&d.Delivery, Now())
	d.claim.do(w)
	return status, first, others
}

// Release tells that a rejected record's dead letter is stored.
func (d *Delivery) Release() bool {
	ok, w := d.claim.part.Release(&d.Delivery)
	d.claim.do(w)
	return ok
}

// Status answers what became of the delivery.
func (d *Delivery) Status() partition.Status { return d.claim.part.Status(&d.Delivery) }

// Draining is closed when the partition's drain begins. Who asks for it may
// settle late: a drain waits for that.
func (d *Delivery) Draining() <-chan struct{} {
	d.claim.shared.late.Store(true)
	return d.claim.draining
}

// Ended answers why the assignment ended, once the status is Revoked.
func (d *Delivery) Ended() error { return d.claim.ended }

// Context is cancelled, with ErrRevoked or ErrClosing as its cause, when the
// partition is no longer ours.
func (d *Delivery) Context() context.Context { return d.claim.ctx }

// HasGroup tells whether offsets are committed.
func (d *Delivery) HasGroup() bool { return d.claim.source != nil }

// WaitStored returns once the broker stores an offset that covers the record.
func (d *Delivery) WaitStored(ctx context.Context) error {
	return d.await(func() error { return d.claim.source.Wait(ctx, d.Seq()) })
}

// Confirm is WaitStored for a record whose handler has not run. It ends only with
// the commit or the assignment. sent tells whether a commit that covers it was tried.
func (d *Delivery) Confirm() (sent bool, err error) {
	own := partition.Mark{Offset: d.Offset(), Seq: d.Seq()}
	err = d.await(func() error { return d.claim.source.Confirm(context.Background(), own) })
	var not *commit.NotStored
	return errors.As(err, &not) && not.Sent, err
}

// await lends the record's lane to the oldest unsettled record, which the commit waits for.
func (d *Delivery) await(wait func() error) error {
	c := d.claim
	if c.source == nil {
		return ErrNoConsumerGroup
	}
	c.do(c.part.Wait(&d.Delivery, +1))
	err := wait()
	c.do(c.part.Wait(&d.Delivery, -1))
	return c.cause(err)
}

// cause turns the end of a wait into the end of the assignment, where it was that.
func (c *Claim) cause(err error) error {
	var not *commit.NotStored
	if !errors.As(err, &not) || errors.Is(err, ErrRevoked) || errors.Is(err, ErrClosing) {
		return err
	}
	return errors.Join(ErrRevoked, err) // fenced: the group went on without us
}
