package consumer

import (
	"context"
	"errors"
	"fmt"
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
			d := &task.Delivery().Delivery
			verdict := partition.Verdict{Status: partition.Nacked, DueAt: Now() + int64(exitedPause), Fingerprint: c.print(d, partition.Nacked)}
			_, ok, w := c.part.FinishAndTake(d, verdict, Now(), &next.Delivery().Delivery)
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
			c.do(c.part.Abandon(d))
			task, ok = c.newTask(), false
			continue
		}
		now := int64(0) // a clock that nobody looks at: had a verb nacked it, it falls due by the timer
		if verdict.Status != partition.Acked {
			now = Now()
		}
		if c.needsPrint(d, verdict.Status) && (verdict.Status != partition.Pending || c.part.Status(d) == partition.Pending) {
			verdict.Fingerprint = c.fingerprint(d.Record())
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
		record, err := c.readAgain(c.draining, d.Offset())
		switch {
		case errors.Is(err, reread.ErrGone):
			c.part.Restore(d, &sarama.ConsumerMessage{Topic: c.topic, Partition: c.partition, Offset: d.Offset()}, true)
			task.Delivery().describe(d.Record(), copies)
			return task.Gone(err), true
		case err != nil: // draining
			return v, false
		}
		c.part.Restore(d, record, false)
	}
	task.Delivery().describe(d.Record(), copies)
	switch {
	case c.crashes.tries > 0 && d.Offset() == c.crashes.culprit && d.Attempt() == c.crashes.tries+1:
		c.part.Uncount(d)
		return task.Died(fmt.Errorf("%w, %d times", ErrDied, c.crashes.tries)), true
	case c.careful.Load():
		return c.runNamed(task, copies)
	}
	return task.Run(c.draining, copies)
}

// runNamed runs a task once a commit says that its record is in flight.
func (c *Claim) runNamed(task Task, copies *Copies) (v partition.Verdict, sent bool) {
	d := &task.Delivery().Delivery
	alone := c.part.Suspects()
	if !c.quarantine.enter(alone, c.draining) {
		return v, false
	}
	defer c.quarantine.leave()
	if c.source.WaitNamed(c.part.Name(d, c.fingerprint(d.Record()), alone)) != nil {
		return v, false
	}
	return task.Run(c.draining, copies)
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
	if c.source != nil && w.Moved {
		c.committer.Settled()
	}
	if c.source != nil && (w.Full || w.Moved && c.cfg.CommitEach) {
		c.committer.Urge()
	}
	if len(w.Doubted) > 0 {
		c.tellDoubted(w.Doubted)
	}
	w.Granted()
}

// Delivery is the handle of one handing out of a record.
type Delivery struct {
	partition.Delivery[*sarama.ConsumerMessage]
	claim     *Claim
	key       []byte
	timestamp stamp
}

// Settle settles the delivery unless it is settled; see partition.Settle.
func (d *Delivery) Settle(v partition.Verdict) (status partition.Status, first bool) {
	v.Fingerprint = d.claim.print(&d.Delivery, v.Status)
	status, first, w := d.claim.part.Settle(&d.Delivery, v, Now())
	d.claim.do(w)
	return status, first
}

// AckCumulative acks the record and every earlier one that no handler has.
func (d *Delivery) AckCumulative() (status partition.Status, first bool, others []partition.Acknowledged) {
	v := partition.Verdict{Status: partition.Acked, Fingerprint: d.claim.print(&d.Delivery, partition.Acked)}
	status, first, others, w := d.claim.part.AckCumulative(&d.Delivery, v, Now())
	d.claim.do(w)
	return status, first, others
}

// Release tells that a rejected record's dead letter is stored.
func (d *Delivery) Release() bool {
	ok, w := d.claim.part.Release(&d.Delivery)
	d.claim.do(w)
	return ok
}

// Status returns what became of the delivery.
func (d *Delivery) Status() partition.Status { return d.claim.part.Status(&d.Delivery) }

// Draining is closed when the partition's drain begins. Who asks for it may
// settle late: a drain waits for that.
func (d *Delivery) Draining() <-chan struct{} {
	d.claim.shared.late.Store(true)
	return d.claim.draining
}

// Ended returns why the assignment ended, once the status is Revoked.
func (d *Delivery) Ended() error { return d.claim.ended }

// Context is cancelled, with ErrRevoked or ErrClosing as its cause, when the
// partition is no longer ours.
func (d *Delivery) Context() context.Context { return d.claim.ctx }

// HasGroup reports whether offsets are committed.
func (d *Delivery) HasGroup() bool { return d.claim.source != nil }

// WaitStored returns once the broker stores that the record, which is settled, is.
func (d *Delivery) WaitStored(ctx context.Context) error {
	c := d.claim
	if c.source == nil {
		return ErrNoConsumerGroup
	}
	c.part.Want(&d.Delivery)
	return c.cause(c.source.Wait(ctx, d.Seq()))
}

// Confirm acks a record whose handler has not run, unless it is settled otherwise, and
// returns once that is stored. It ends only with the commit or the assignment. first reports
// whether it was not settled before, and sent, with an error, whether a commit that covers it
// was tried: if not, the record is left to the next owner.
func (d *Delivery) Confirm() (first, sent bool, err error) {
	c := d.claim
	v := partition.Verdict{Status: partition.Acked, Confirm: true, Fingerprint: c.print(&d.Delivery, partition.Acked)}
	err = c.source.Confirm(d.Seq(), func() (bool, func()) {
		var w partition.Work
		var status partition.Status
		status, first, w = c.part.Settle(&d.Delivery, v, Now())
		if !first {
			c.part.Want(&d.Delivery)
		}
		return status == partition.Acked, func() { c.do(w) }
	}, func() { c.part.Unconfirm(d.Seq()) })
	var not *commit.NotStored
	return first, errors.As(err, &not) && not.Sent, c.cause(err)
}

// cause turns the end of a wait into the end of the assignment, where it was that.
func (c *Claim) cause(err error) error {
	var not *commit.NotStored
	if !errors.As(err, &not) || errors.Is(err, ErrRevoked) || errors.Is(err, ErrClosing) {
		return err
	}
	return errors.Join(ErrRevoked, err) // fenced: the group went on without us
}
