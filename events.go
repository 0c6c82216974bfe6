package ackpolicy

import (
	"cmp"
	"errors"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/topic"
)

// events returns functions that turn what happens in the consumer into log lines and hooks.
func (s *subscription) events() consumer.Events {
	h := &s.sub.config.Hooks
	return consumer.Events{
		Released: s.released,
		Slow:     s.slow,
		SlowOver: func(after time.Duration) {
			s.logger.Info("Handlers have returned: none has run for longer than HandlerSlow", watermill.LogFields{
				"handler_slow": s.sub.config.HandlerSlow.String(), "after": after.Round(time.Second).String(),
			})
		},
		Pending: s.leftPending,
		PendingOver: func(after time.Duration) {
			s.logger.Info("Records that handlers left unsettled no longer hold a partition", watermill.LogFields{"after": after.Round(time.Second).String()})
		},
		Failing: s.failing,
		FailingOver: func(after time.Duration) {
			s.logger.Info("Records that failed each time no longer hold a partition", watermill.LogFields{"after": after.Round(time.Second).String()})
		},
		Blocked: s.blocked,
		Assigned: func(topic string, p int32, start int64) {
			tell(s, "Hooks.Assigned", h.Assigned, AssignedEvent{s.at(topic, p), start})
		},
		Committed: func(topic string, p int32, offset int64, took time.Duration) {
			tellLatest(s, "Hooks.Committed", h.Committed, topic, p, CommittedEvent{s.at(topic, p), offset, took})
		},
		CommitFailed: func(topic string, p int32, offset int64, err error, attempt int, took time.Duration) {
			tellLatest(s, "Hooks.CommitFailed", h.CommitFailed, topic, p, CommitFailedEvent{s.at(topic, p), offset, attempt, err, took})
		},
		FetchStalled: func(topic string, p int32, by consumer.FetchStalled) {
			tell(s, "Hooks.FetchStalled", h.FetchStalled, FetchStalledEvent{s.at(topic, p), by.Offset, by.End, by.For, by.Reconnect})
		},
		Reset: func(topic string, p int32, stored, start int64) {
			tell(s, "Hooks.PositionReset", h.PositionReset, PositionResetEvent{s.at(topic, p), stored, start})
		},
	}
}

// topicsField returns the name of the field that all lines have. With several topics, each line about
// one of them has its name too.
func topicsField(topics *topic.Selection) string {
	if _, single := topics.Single(); single {
		return "topic"
	}
	return "topics"
}

// loggerOf returns the logger for lines about a topic.
func (s *subscription) loggerOf(topic string) watermill.LoggerAdapter {
	if _, single := s.topics.Single(); single {
		return s.logger // its lines name it
	}
	return s.logger.With(watermill.LogFields{"topic": topic})
}

func (s *subscription) blocked(topic string, p int32, by consumer.Blocked) {
	fields := watermill.LogFields{"kafka_partition": p, "kafka_partition_offset": by.Offset, "attempt": by.Attempt}
	if by.Commit == nil { // otherwise the line of the outage names it
		s.loggerOf(topic).Error("Partition paused: "+by.Bound+" is reached behind a record that is not settled", errors.New(by.State), fields)
	}
	tell(s, "Hooks.Blocked", s.sub.config.Hooks.Blocked, BlockedEvent{s.at(topic, p), by.Bound, by.Offset, by.Attempt, by.State, by.Commit})
}

// slow reports handlers that do not return: one line, about the one that has run longest.
func (s *subscription) slow(all []consumer.Slow) {
	handlers := 0
	for _, by := range all {
		handlers += by.Handlers
		tell(s, "Hooks.HandlerSlow", s.sub.config.Hooks.HandlerSlow, HandlerSlowEvent{
			RecordRef{s.at(by.Topic, by.Partition), by.Oldest.Offset, by.Oldest.Attempt, keyHash(by.Oldest.Key)}, by.Oldest.Key, by.For, by.Handlers,
		})
	}
	oldest := all[0]
	s.loggerOf(oldest.Topic).Error("Handler has not returned for longer than HandlerSlow: its record is held until it does", errors.New("the handler is slow, or hangs"), s.withHandler(watermill.LogFields{
		"kafka_partition": oldest.Partition, "kafka_partition_offset": oldest.Oldest.Offset, "attempt": oldest.Oldest.Attempt,
		"running_for": oldest.For.Round(time.Second).String(), "handlers_slow": handlers, "partitions_slow": len(all),
	}))
}

// leftPending reports records that hold their partitions because their handlers did not settle
// them: one line, about the one that has waited longest.
func (s *subscription) leftPending(all []consumer.Slow) {
	oldest := all[0]
	s.loggerOf(oldest.Topic).Error("Record holds its partition: its handler returned without settling it", errors.New("nobody has acked, nacked or rejected it"), s.withHandler(watermill.LogFields{
		"kafka_partition": oldest.Partition, "kafka_partition_offset": oldest.Oldest.Offset, "attempt": oldest.Oldest.Attempt,
		"pending_for": oldest.For.Round(time.Second).String(), "partitions_pending": len(all),
	}))
}

// failing reports records that hold their partitions because each delivery fails: one line,
// about the one with the most deliveries.
func (s *subscription) failing(all []consumer.Slow) {
	worst := slices.MaxFunc(all, func(a, b consumer.Slow) int { return cmp.Compare(a.Oldest.Attempt, b.Oldest.Attempt) })
	var last error
	if tries := worst.Oldest.Tries; len(tries) > 0 {
		last = tries[len(tries)-1].Err
	}
	s.loggerOf(worst.Topic).Error("Record holds its partition: its deliveries fail", orNoReason(last), s.withHandler(watermill.LogFields{
		"kafka_partition": worst.Partition, "kafka_partition_offset": worst.Oldest.Offset, "attempt": worst.Oldest.Attempt,
		"partitions_failing": len(all),
	}))
}

// withHandler adds the handler's name to the fields of a line, once it is known.
func (s *subscription) withHandler(fields watermill.LogFields) watermill.LogFields {
	if name := s.handlerName(); name != "" {
		fields["handler_name"] = name
	}
	return fields
}

func (s *subscription) released(topic string, p int32, r consumer.Released) {
	s.undecoded.released(topic, p)
	tell(s, "Hooks.Revoked", s.sub.config.Hooks.Revoked, RevokedEvent{
		PartitionRef: s.at(topic, p), Cause: r.Cause, Offset: r.Committed, Err: r.Err, TimedOut: r.TimedOut,
		FirstLeft: r.Left.First, Running: r.Left.Running, Pending: r.Left.Pending, Nacked: r.Left.Nacked, Letters: r.Left.Letters,
		Unmarked: r.Left.Unmarked,
	})
}

// quiet reports whether a settlement of this kind is neither logged nor passed to a hook.
func (s *subscription) quiet(status partition.Status) bool {
	switch {
	case s.sub.config.Hooks.Settled != nil, s.sub.watcher != nil, status == partition.Rejected:
		return false
	case status == partition.Nacked:
		return !s.debug
	}
	return true
}

// settled logs a settlement and calls the hook: of d's record, or of another one that was
// acked with it.
func (s *subscription) settled(d *Delivery, offset int64, attempt int, v partition.Verdict) {
	status, reason := Status(v.Status), v.Reason
	if w := s.sub.watcher; w != nil {
		w.Settled(seam.Place{Group: d.Group(), Topic: d.Topic(), Partition: d.Partition(), Offset: offset}, attempt, v)
	}
	switch {
	case status == Nacked && s.debug:
		fields := watermill.LogFields{
			"kafka_partition": d.Partition(), "kafka_partition_offset": offset, "attempt": attempt,
			"retry_in": time.Duration(max(0, v.DueAt-consumer.Now())).Round(time.Millisecond).String(),
		}
		if reason != nil {
			fields["err"] = textOf(reason)
		}
		s.loggerOf(d.Topic()).Debug("Record nacked: it is delivered again", fields)
	case status == Rejected:
		fields := watermill.LogFields{
			"kafka_partition": d.Partition(), "kafka_partition_offset": offset, "attempt": attempt,
		}
		switch {
		case errors.Is(reason, ErrRecordGone):
			s.loggerOf(d.Topic()).Error("Record lost: it was pushed out of memory, and removed from Kafka before its next delivery. There is no dead letter", reason, fields)
		case s.destination(d.settings()) == nil:
			s.loggerOf(d.Topic()).Error("Record rejected: it is given up, there is no dead letter destination", orNoReason(reason), fields)
		default:
			fields["reason"] = textOf(orNoReason(reason))
			s.loggerOf(d.Topic()).Info("Record rejected", fields)
		}
	}
	if s.sub.config.Hooks.Settled == nil {
		return
	}
	event := SettledEvent{RecordRef: RecordRef{PartitionRef: s.at(d.Topic(), d.Partition()), Offset: offset, Attempt: attempt}, Status: status, Letter: v.Hold, Reason: reason}
	if offset == d.Offset() {
		event.KeyHash = keyHash(d.Key())
		if began := d.began.Load(); began != 0 {
			event.Duration = max(1, time.Duration(consumer.Now()-began))
		}
	}
	s.tellSettled(&event)
}

// at returns what events say of a partition.
func (s *subscription) at(topic string, p int32) PartitionRef {
	return PartitionRef{s.sub.config.Kafka.ConsumerGroup, s.handlerName(), topic, p}
}

// ref returns what events say of the record.
func (d *Delivery) ref() RecordRef {
	return RecordRef{d.sub.at(d.Topic(), d.Partition()), d.Offset(), d.Attempt(), keyHash(d.Key())}
}

func keyHash(key []byte) uint64 {
	if key == nil {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write(key[:min(len(key), 256)]) // State keeps no more of it, either
	return h.Sum64()
}

// unconfirmed reports a record under ConfirmFirst that stays acked although its handler
// does not run.
func (s *subscription) unconfirmed(d *Delivery, err error) {
	s.loggerOf(d.Topic()).Error("ConfirmFirst: the commit was sent and its outcome is unknown: the handler does not run, and the record may not come again", err,
		watermill.LogFields{"kafka_partition": d.Partition(), "kafka_partition_offset": d.Offset()})
	tell(s, "Hooks.Unconfirmed", s.sub.config.Hooks.Unconfirmed, UnconfirmedEvent{d.ref(), err})
}

// tell queues the call of a hook if it is set. It does not wait.
func tell[E any](s *subscription, name string, hook func(E), event E) {
	if hook != nil {
		s.hooks.put(hookCall{name: name, event: event, call: callOf(hook)}, nil)
	}
}

// tellLatest queues the call of a hook for commits, of which only the latest of a partition are kept.
func tellLatest[E any](s *subscription, name string, hook func(E), topic string, p int32, event E) {
	if hook != nil {
		s.hooks.put(hookCall{name: name, event: event, call: callOf(hook), of: topicPartition{topic, p}}, nil)
	}
}

// callOf returns a call of a hook. It is the event that is kept while it waits, once.
func callOf[E any](hook func(E)) func(any) {
	return func(event any) { hook(event.(E)) }
}

// tellSettled waits for room, so that a Settled hook that is slower than the records slows
// them down. If a hook does not return at all, only the first record waits for it.
func (s *subscription) tellSettled(event *SettledEvent) {
	h := s.hooks
	c := hookCall{name: "Hooks.Settled", settled: 1, placed: h.awaitPlace()}
	if !h.put(c, event) && c.placed {
		h.places.Add(-1)
	}
}

// tellAndWait waits until the hook has returned. It is used by goroutines that only store
// letters: a record is not committed before DeadLettered has returned.
func tellAndWait[E any](s *subscription, name string, hook func(E), event E) {
	if hook == nil {
		return
	}
	h, done := s.hooks, make(chan struct{})
	if !h.put(hookCall{name: name, event: event, call: callOf(hook), done: done}, nil) || h.blocked.Load() {
		return
	}
	timer := time.NewTimer(hookPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-h.ending.Done():
	case <-timer.C:
		h.block()
	}
}

// short is a hook's name in log fields.
func short(name string) string { return strings.TrimPrefix(name, "Hooks.") }

// commitRoom is how many events of a partition's commits wait for a slow hook.
const commitRoom = 16

// hookQueue has events in their order. Settled ones, of which there is one for each record, are
// kept by value.
type hookQueue struct {
	calls   []hookCall
	settled []SettledEvent
	commits map[topicPartition]*[]hookCall // those that further ones of the partition join
	size    int                            // events; those of a partition's commits count as one
}

type topicPartition struct {
	topic     string
	partition int32
}

// hookCall is the call of a hook, the calls of Settled for some events in a row, or those for
// the latest commits of a partition.
type hookCall struct {
	name  string // "Hooks.Assigned"
	event any
	call  func(event any)
	done  chan struct{} // closed when the hook has returned; nil if nobody waits for it

	settled int  // the number of Settled events; 0 for another hook
	placed  bool // they have places of settledRoom

	of      topicPartition // for a commit
	commits *[]hookCall    // instead of all that
}

func (q *hookQueue) add(c hookCall, settled *SettledEvent) {
	if c.of.topic != "" {
		q.addCommit(c)
		return
	}
	q.size++
	clear(q.commits) // later ones come behind this event
	if settled != nil {
		q.settled = append(q.settled, *settled)
		if n := len(q.calls); n > 0 && q.calls[n-1].settled > 0 && q.calls[n-1].placed == c.placed {
			q.calls[n-1].settled++
			return
		}
	}
	q.calls = append(q.calls, c)
}

// addCommit keeps the latest events of a partition's commits: the last offset includes the earlier
// ones.
func (q *hookQueue) addCommit(c hookCall) {
	waiting := q.commits[c.of]
	if waiting == nil {
		if q.commits == nil {
			q.commits = map[topicPartition]*[]hookCall{}
		}
		waiting = &[]hookCall{}
		q.commits[c.of] = waiting
		q.calls = append(q.calls, hookCall{commits: waiting})
		q.size++
	}
	if len(*waiting) >= commitRoom {
		same := slices.IndexFunc(*waiting, func(o hookCall) bool { return o.name == c.name })
		*waiting = slices.Delete(*waiting, max(0, same), max(0, same)+1)
	}
	*waiting = append(*waiting, c)
}

// emptied returns the queue without its events, and without the memory that only a hook that
// did not return has made it take.
func (q *hookQueue) emptied() hookQueue {
	if cap(q.settled) > 2*settledRoom {
		return hookQueue{}
	}
	clear(q.calls)
	clear(q.settled)
	return hookQueue{calls: q.calls[:0], settled: q.settled[:0]}
}
