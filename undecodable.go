package ackpolicy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// undecodable decides what happens to a record that cannot be decoded. One that is kept is
// tried again with backoff, until a deploy fixes the Unmarshaler or somebody skips it.
func (s *subscription) undecodable(d *Delivery, err error) partition.Verdict {
	c := &s.sub.config
	r := d.kafka.Record()
	d.likeTheSubscriber()
	tell(s, "Hooks.Undecodable", c.Hooks.Undecodable, UndecodableEvent{d.ref(), err})
	if c.OnUndecodable == UndecodableReject || (c.OnUndecodable == UndecodableAuto && s.deadLetter != nil) {
		err = fmt.Errorf("cannot be decoded: %w", err)
		d.settle(d.verdict(doReject, noDelay, err))
		return partition.Verdict{}
	}
	delay := wait.Backoff(d.Attempt(), 100*time.Millisecond, 30*time.Second)
	if c.Backoff != nil {
		delay = s.backoff(d, nil, err)
	}
	const text = "Record cannot be decoded, retrying: it is kept, and nothing is committed past it"
	fields := watermill.LogFields{
		"kafka_partition": r.Partition, "kafka_partition_offset": r.Offset, "retry_in": delay.String(),
	}
	others, report, due := s.undecoded.failed(r.Partition, r.Offset)
	if others > 0 {
		fields["others"] = others
	}
	fields = report.AddTo(fields)
	fields["attempt"] = d.Attempt() // the report also counts those of the partition's other records
	if due {
		s.logger.Error(text, err, fields)
	} else {
		fields["err"] = textOf(err)
		s.logger.Debug(text, fields)
	}
	return partition.Verdict{Status: partition.Nacked, DueAt: s.dueIn(delay), Reason: err}
}

// decoded logs that a record that was kept has been decoded.
func (s *subscription) decoded(d *Delivery) {
	if report, over := s.undecoded.over(d.Partition(), d.Offset()); over {
		fields := report.AddTo(watermill.LogFields{"kafka_partition": d.Partition(), "kafka_partition_offset": d.Offset()})
		fields["attempt"] = d.Attempt()
		s.logger.Info("Record decoded", fields)
	}
}

// undecoded has the records of a subscription that are kept because they cannot be decoded.
type undecoded struct {
	some atomic.Bool

	mu         sync.Mutex
	partitions map[int32]*undecodedOf
}

// undecodedOf has those of one partition. They share log lines: there may be thousands.
type undecodedOf struct {
	outage  outage.Outage
	offsets map[int64]struct{}
}

func (u *undecoded) failed(p int32, offset int64) (others int, report outage.Report, due bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.some.Store(true)
	of := u.partitions[p]
	if of == nil {
		of = &undecodedOf{offsets: map[int64]struct{}{}}
		if u.partitions == nil {
			u.partitions = map[int32]*undecodedOf{}
		}
		u.partitions[p] = of
	}
	of.offsets[offset] = struct{}{}
	report, due = of.outage.Failed()
	return len(of.offsets) - 1, report, due
}

// over removes a record. It reports whether it was the last one of its partition, and a
// line was written about them.
func (u *undecoded) over(p int32, offset int64) (outage.Report, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	of := u.partitions[p]
	if of == nil {
		return outage.Report{}, false
	}
	delete(of.offsets, offset)
	if len(of.offsets) > 0 {
		return outage.Report{}, false
	}
	u.remove(p)
	return of.outage.Over()
}

// released removes a partition that is released.
func (u *undecoded) released(p int32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.remove(p)
}

func (u *undecoded) remove(p int32) {
	delete(u.partitions, p)
	u.some.Store(len(u.partitions) > 0)
}
