package consumer

import (
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
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
	var copies record.Copies
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
func (c *Claim) serveOne(task Task, copies *record.Copies) (v partition.Verdict, sent bool) {
	d := &task.Delivery().Delivery
	if d.Evicted() {
		read, err := c.readAgain(c.draining, d.Offset())
		switch {
		case errors.Is(err, reread.ErrGone):
			c.part.Restore(d, &sarama.ConsumerMessage{Topic: c.topic, Partition: c.partition, Offset: d.Offset()}, true)
			task.Delivery().describe(d.Record(), copies)
			return task.Gone(err), true
		case err != nil: // draining
			return v, false
		}
		c.part.Restore(d, read, false)
	}
	task.Delivery().describe(d.Record(), copies)
	switch {
	case c.crashes.tries > 0 && d.Offset() == c.crashes.culprit && d.Attempt() == c.crashes.tries+1:
		c.part.Uncount(d)
		task.GiveUp(fmt.Errorf("%w, %d times", ErrDied, c.crashes.tries))
		return v, true
	case d.Condemned() != nil:
		c.part.Uncount(d)
		task.GiveUp(d.Condemned())
		return v, true
	case c.careful.Load():
		return c.runNamed(task, copies)
	}
	return task.Run(c.draining, copies)
}

// runNamed runs a task once a commit says that its record is in flight.
func (c *Claim) runNamed(task Task, copies *record.Copies) (v partition.Verdict, sent bool) {
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
		read, err := c.reader.Read(stop, offset)
		if err == nil || errors.Is(err, reread.ErrGone) {
			c.health.works(rereading, c.partition)
			return read, err
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
