package ackpolicy

import (
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
)

// events turns what the consumer tells into log lines and hooks.
func (s *subscription) events() consumer.Events {
	h := s.sub.config.Hooks
	e := consumer.Events{
		Released: s.released,
		Stuck:    s.stuck,
	}
	if h.Assigned != nil {
		e.Assigned = func(topic string, p int32, start int64) { h.Assigned(AssignedEvent{topic, p, start}) }
	}
	if h.Committed != nil {
		e.Committed = func(topic string, p int32, offset int64) { h.Committed(CommittedEvent{topic, p, offset}) }
	}
	if h.CommitFailed != nil {
		e.CommitFailed = func(topic string, p int32, offset int64, err error, attempt int) {
			h.CommitFailed(CommitFailedEvent{topic, p, offset, attempt, err})
		}
	}
	if h.Stalled != nil {
		e.Stalled = func(topic string, p int32, s consumer.Stalled) {
			h.Stalled(StalledEvent{topic, p, s.Offset, s.End, s.For, s.Reconnect})
		}
	}
	if h.PositionReset != nil {
		e.Reset = func(topic string, p int32, stored, start int64) {
			h.PositionReset(PositionResetEvent{topic, p, stored, start})
		}
	}
	return e
}

func (s *subscription) stuck(topic string, p int32, by consumer.Stuck) {
	fields := watermill.LogFields{"kafka_partition": p, "kafka_partition_offset": by.Offset, "attempt": by.Attempt}
	if by.Commit == nil { // or the outage's line names it
		s.logger.Error("Partition paused: "+by.Bound+" is reached behind a record that is not settled", errors.New(by.State), fields)
	}
	if hook := s.sub.config.Hooks.Stuck; hook != nil {
		hook(StuckEvent{topic, p, by.Bound, by.Offset, by.Attempt, by.State, by.Commit})
	}
}

func (s *subscription) released(topic string, p int32, r consumer.Released) {
	s.undecoded.released(p)
	what := r.What()
	fields := func() watermill.LogFields {
		return watermill.LogFields{
			"kafka_partition": p, "cause": r.Cause.Error(), "watermark": r.Committed,
			"first_left_offset": r.Left.First, "handlers_running": r.Running,
			"pending": r.Left.Pending, "nacked": r.Left.Nacked, "letters": r.Left.Letters,
		}
	}
	switch {
	case r.TimedOut && what != "":
		s.logger.Error("Partition released before everything was settled: the next owner delivers again what was not",
			errors.New("drain timed out, records left: "+what), fields())
	case r.TimedOut && r.Running > 0:
		s.logger.Error("Partition released before all handlers finished: their records are settled, and do not come again",
			fmt.Errorf("drain timed out: %d handlers have not finished", r.Running), fields())
	case what != "":
		s.logger.Info("Partition released with unsettled records: the next owner delivers them again: "+what, fields())
	}
	if hook := s.sub.config.Hooks.Revoked; hook != nil {
		hook(RevokedEvent{
			Topic: topic, Partition: p, Cause: r.Cause, Offset: r.Committed, Err: r.Err, TimedOut: r.TimedOut,
			FirstLeft: r.Left.First, Running: r.Left.Running, Pending: r.Left.Pending, Nacked: r.Left.Nacked, Letters: r.Left.Letters,
		})
	}
}

// quiet tells whether a settlement of this kind needs no word to anybody.
func (s *subscription) quiet(status Status) bool {
	return status != Rejected && s.sub.config.Hooks.Settled == nil
}

// settled tells of a settlement, once a delivery.
func (s *subscription) settled(d *Delivery, status Status, reason error) {
	if status == Rejected {
		fields := watermill.LogFields{
			"kafka_partition": d.Partition(), "kafka_partition_offset": d.Offset(), "attempt": d.Attempt(),
		}
		if s.deadLetter == nil {
			s.logger.Error("Record rejected: it is given up, there is no dead letter destination", orNoReason(reason), fields)
		} else {
			fields["reason"] = orNoReason(reason).Error()
			s.logger.Info("Record rejected", fields)
		}
	}
	if hook := s.sub.config.Hooks.Settled; hook != nil {
		hook(SettledEvent{d.Topic(), d.Partition(), d.Offset(), d.Attempt(), status, reason})
	}
}

// unconfirmed tells of a record under ConfirmFirst that stays acked though its
// handler does not run.
func (s *subscription) unconfirmed(d *Delivery, err error) {
	s.logger.Error("ConfirmFirst: the commit was sent and its outcome is unknown: the handler does not run, and the record may not come again", err,
		watermill.LogFields{"kafka_partition": d.Partition(), "kafka_partition_offset": d.Offset()})
	if hook := s.sub.config.Hooks.Unconfirmed; hook != nil {
		hook(UnconfirmedEvent{d.Topic(), d.Partition(), d.Offset(), err})
	}
}
