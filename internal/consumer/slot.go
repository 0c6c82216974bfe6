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

// slot carries records to the application, one at a time, until the claim drains or it is spare.
func (c *Claim) slot() {
	d := c.newDelivery()
	w, ok := c.part.Take(&d.Delivery)
	c.serveAll(d, w, ok)
}

// exitedPause is the delay of a record whose attempt ended its goroutine.
const exitedPause = 100 * time.Millisecond

// serveAll serves a delivery that may have a record, and then what the partition hands out.
func (c *Claim) serveAll(d *Delivery, w partition.Work, ok bool) {
	var copies record.Copies
	running := false
	defer func() {
		if running { // application code ended this goroutine (runtime.Goexit): start another one in its place
			next := c.newDelivery()
			w, ok := c.finishAndTake(d, &partition.Verdict{Status: partition.Nacked, DueAt: Now() + int64(exitedPause)}, next)
			c.slots.Add(1)
			go c.serveAll(next, w, ok)
		}
		c.slots.Done()
	}()
	c.do(w)
	for {
		for !ok {
			select {
			case look := <-c.wake:
				if !look {
					return
				}
			case <-c.spent:
				return
			}
			w, ok = c.part.Take(&d.Delivery)
			c.do(w)
		}
		running = true
		v, sent := c.serveOne(d, &copies)
		running = false
		if !sent {
			c.do(c.part.Abandon(&d.Delivery, Now()))
			d, ok = c.newDelivery(), false
			continue
		}
		next := c.newDelivery()
		w, ok = c.finishAndTake(d, v, next)
		c.do(w)
		d = next
	}
}

// finishAndTake finishes a delivery and takes the next record, both under one lock. verdict, if it
// is not nil, settles the delivery unless it is settled.
func (c *Claim) finishAndTake(d *Delivery, verdict *partition.Verdict, next *Delivery) (w partition.Work, ok bool) {
	now := int64(0) // not needed: if a verb has nacked it, the timer makes it due
	if verdict == nil || verdict.Status != partition.Acked {
		now = Now()
	}
	_, ok, w = c.part.FinishAndTake(&d.Delivery, verdict, now, &next.Delivery)
	d.Handle.Finished()
	return w, ok
}

// serveOne runs a task.
func (c *Claim) serveOne(d *Delivery, copies *record.Copies) (v *partition.Verdict, sent bool) {
	if over, ok := c.load(d, copies); over || !ok {
		return nil, ok
	}
	if c.careful.Load() {
		leave, ok := c.name(&d.Delivery)
		if !ok {
			return nil, false
		}
		defer leave()
	}
	if over, ok := c.admit(d); over || !ok {
		return nil, ok
	}
	return d.Handle.Run(c.draining, copies)
}

// doomed returns why a record is given up without a handler, or nil.
func (c *Claim) doomed(d *Delivery) error {
	switch reason := c.part.Condemned(&d.Delivery); {
	case reason != nil:
		return reason
	case c.crashes.tries > 0 && d.Offset() == c.crashes.culprit && d.Attempt() == c.crashes.tries+1:
		return fmt.Errorf("%w, %d times", ErrDied, c.crashes.tries)
	}
	return nil
}

// load describes a delivery, after reading its record again if it was pushed out of memory. over
// reports that the record is settled: Kafka no longer has it, or it is given up. ok is false if the
// claim drains.
func (c *Claim) load(d *Delivery, copies *record.Copies) (over, ok bool) {
	if d.Evicted() {
		read, err := c.readAgain(c.draining, d.Offset())
		switch {
		case errors.Is(err, reread.ErrGone):
			c.part.Restore(&d.Delivery, &sarama.ConsumerMessage{Topic: c.topic, Partition: c.partition, Offset: d.Offset()}, true)
			d.describe(copies)
			d.Handle.Gone(err)
			return true, true
		case err != nil: // draining
			return false, false
		}
		c.part.Restore(&d.Delivery, read, false)
	}
	d.describe(copies)
	if reason := c.doomed(d); reason != nil {
		c.giveUp(d, reason)
		return true, true
	}
	return false, true
}

// admit waits until the pace allows a delivery. over reports that somebody has had the record
// rejected before. ok is false if the claim drains.
func (c *Claim) admit(d *Delivery) (over, ok bool) {
	if !c.pace.wait(c.draining, d) {
		return false, false
	}
	if reason := d.handOut(); reason != nil {
		c.giveUp(d, reason)
		return true, true
	}
	return false, true
}

// giveUp rejects a record without a handler.
func (c *Claim) giveUp(d *Delivery, reason error) {
	c.part.Uncount(&d.Delivery, reason)
	d.Handle.GiveUp(reason)
}

// name waits until a commit says that the records are in flight, see crash.go. leave ends that. ok
// is false if the claim drains.
func (c *Claim) name(ds ...*handle) (leave func(), ok bool) {
	alone := c.part.Suspects()
	if !c.quarantine.enter(alone, c.draining) {
		return nil, false
	}
	var last partition.Mark
	for _, d := range ds {
		last = c.part.Name(d, alone)
	}
	if c.source.WaitNamed(last) != nil {
		c.quarantine.leave()
		return nil, false
	}
	return c.quarantine.leave, true
}

// readAgain tries until there is a response or the claim drains.
func (c *Claim) readAgain(stop <-chan struct{}, offset int64) (*sarama.ConsumerMessage, error) {
	for attempt := 1; ; attempt++ {
		read, err := c.reader.Read(stop, offset)
		if err == nil || errors.Is(err, reread.ErrGone) {
			c.health.works(rereading, c.place)
			return read, err
		}
		c.health.failed(rereading, c.place, failure{err: err, fields: watermill.LogFields{"kafka_partition_offset": offset}})
		if !wait.For(wait.Backoff(attempt, 20*time.Millisecond, time.Second), stop) {
			return nil, err
		}
	}
}

// endSpare ends the slots that have been idle since it was last called.
func (c *Claim) endSpare() {
	for range c.part.Spare() {
		c.wake <- false
	}
}

func (c *Claim) newDelivery() *Delivery {
	d := c.cfg.NewDelivery()
	d.claim = c
	return d
}

// do carries out what the partition requests. Only the intake starts slots.
func (c *Claim) do(w partition.Work) {
	for range w.Wake {
		c.wake <- true // the channel has room for every slot, also at the end, when nobody receives
	}
	if w.Spawn > 0 {
		c.spawn.Add(w.Spawn)
	}
	if w.Spawn > 0 || w.Has(partition.Timer|partition.Low) {
		wait.Wake(c.kick)
	}
	if w.Has(partition.Ready) {
		wait.Wake(c.batching.more)
	}
	if c.source != nil && w.Has(partition.Moved) {
		c.committer.Settled()
	}
	if c.source != nil && (w.Has(partition.Full) || w.Has(partition.Moved) && c.cfg.CommitEach) {
		c.committer.Urge()
	}
	if doubted := w.Doubted(); len(doubted) > 0 {
		c.tellDoubted(doubted)
	}
	w.Granted()
}
