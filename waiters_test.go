package ackpolicy_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// waiting is how many handlers wait for a commit that record 0 holds back: as many as run at once by default.
const waiting = 64

// Handlers that wait for a commit hold every slot; the record that the commit waits for is due again, and needs one.
func TestNobodyWaitsForEver(t *testing.T) {
	t.Parallel()
	acksync := func(msg *message.Message, d *ackpolicy.Delivery) error { return d.AckSync(msg.Context()) }
	nothing := func(*message.Message, *ackpolicy.Delivery) error { return nil }
	for _, c := range []struct {
		name        string
		handle      handle
		policy      message.HandlerMiddleware
		undecodable bool
	}{
		{"AckSync behind a nacked record", acksync, ackpolicy.Manual.Middleware, false},
		{"AckSync behind an undecodable record", acksync, ackpolicy.Manual.Middleware, true},
		{"ConfirmFirst behind a nacked record", nothing, confirmFirst, false},
		{"ConfirmFirst behind an undecodable record", nothing, confirmFirst, true},
	} {
		for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByKey, ackpolicy.Unordered} {
			t.Run(fmt.Sprintf("%s/%v", c.name, o), func(t *testing.T) {
				t.Parallel()
				const records = 1 + 2*waiting
				var keys []string
				for i := range records {
					keys = append(keys, fmt.Sprint("key ", i))
				}
				group, topic := brokertest.Group(t), newTopic(t, 1, keyed(keys...)...)
				var began atomic.Int32
				held := func() bool { return began.Load() < waiting } // record 0 comes to nothing
				cfg := config(group, noInterval, ordering(o, 0))
				if c.undecodable {
					cfg.Kafka.Unmarshaler = refusing{held}
				}
				// Outside of the policy: what fails here is nacked, as Watermill has it, and is not acked first either.
				gate := func(h message.HandlerFunc) message.HandlerFunc {
					return func(msg *message.Message) ([]*message.Message, error) {
						if string(msg.Payload) != "0" {
							began.Add(1)
						} else if held() {
							return nil, errBoom
						}
						return h(msg)
					}
				}
				s := consume(t, cfg, topic, c.handle, gate, c.policy)
				waitCommitted(t, group, topic, 0, records)
				s.stop()
				handled := map[int64]int{}
				for _, d := range s.journal.all() {
					handled[d.Offset()]++
				}
				for offset := range int64(records) {
					if handled[offset] != 1 {
						t.Errorf("record %d was handled %d times", offset, handled[offset])
					}
				}
			})
		}
	}
}

// A record that is nacked from outside, while a handler behind it in its lane waits for its commit, is delivered again.
func TestNobodyWaitsForEverInALane(t *testing.T) {
	t.Parallel()
	for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a", "a", "a")...)
			s := consume(t, config(group, ordering(o, 1)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				switch {
				case d.Offset() == 0 && d.Attempt() == 1:
					return nil // pending
				case d.Offset() == 0:
					return ackpolicy.ErrAck
				default:
					return d.AckSync(msg.Context())
				}
			}, ackpolicy.Manual.Middleware)
			second, first := s.journal.wait(t, 2), s.journal.all()[0]
			eventually(t, "the ack of the second", func() bool { return second.Status() == ackpolicy.Acked })
			if !first.Nack() {
				t.Error("Nack of the first: false")
			}
			waitCommitted(t, group, topic, 0, 3)
			s.stop()
			wantOnce(t, s, "0#1", "0#2", "1#1", "2#1")
		})
	}
}

// refusing cannot decode the value "0" while it holds.
type refusing struct{ holds func() bool }

func (r refusing) Unmarshal(record *sarama.ConsumerMessage) (*message.Message, error) {
	if string(record.Value) == "0" && r.holds() {
		return nil, errors.New("no such schema")
	}
	return kafka.DefaultMarshaler{}.Unmarshal(record)
}

// An undecodable record is not lost and not committed past; it is tried again, and the log names it.
func TestUndecodable(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(3)...)
	var tried atomic.Int32
	var fixed atomic.Bool
	var told atomic.Pointer[ackpolicy.UndecodableEvent]
	cfg := config(group, ordering(ackpolicy.Unordered, 4))
	cfg.Kafka.Unmarshaler = refusing{func() bool { tried.Add(1); return !fixed.Load() }}
	cfg.Hooks.Undecodable = func(e ackpolicy.UndecodableEvent) { told.Store(&e) }
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.Ack.Middleware)
	eventually(t, "a second try", func() bool { return tried.Load() >= 2 })
	s.journal.wait(t, 2)
	wantCommitted(t, group, topic, 0, 0)
	if e := told.Load(); e == nil || e.Topic != topic || e.Partition != 0 || e.Offset != 0 || e.Err == nil {
		t.Errorf("the hook was told %+v", e)
	}
	if len(with(s.log.at("error"), topic, "partition=0", "offset=0", "no such schema")) == 0 {
		t.Errorf("not in the log: %v", s.log.at("error"))
	}
	fixed.Store(true)
	waitCommitted(t, group, topic, 0, 3)
	s.stop()
}

// However short the pause between attempts, an undecodable record makes few lines, and one when it is decoded at last.
func TestUndecodableInTheLog(t *testing.T) {
	t.Parallel()
	const attempts = 200
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(3)...)
	var tried atomic.Int32
	cfg := config(group, ordering(ackpolicy.Unordered, 4))
	cfg.Kafka.Unmarshaler = refusing{func() bool { return tried.Add(1) <= attempts }}
	cfg.Backoff = func(int, error) time.Duration { return time.Millisecond }
	began := time.Now()
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.Ack.Middleware)
	waitCommitted(t, group, topic, 0, 3)
	lines, most := with(s.log.at("error"), "cannot be decoded"), 1+int(time.Since(began)/(10*time.Second))
	if n := len(lines); n == 0 || n > most {
		t.Errorf("%d error lines of %d attempts, want 1 to %d", n, attempts, most)
	} else if len(with(lines[:1], "kafka_partition=0", "kafka_partition_offset=0", "attempt=1 ", "failing_for=0s", "retry_in=1ms")) == 0 {
		t.Errorf("the first line: %s", lines[0])
	}
	if len(with(s.log.at("info"), "Record decoded at last", "kafka_partition=0", "kafka_partition_offset=0", "failing_for=")) != 1 {
		t.Error("no line, or several, that it is over")
	}
	s.stop()
}

// Without a group nothing is ever committed: MaxUncommitted must not count what is settled.
func TestGrouplessRunsPastMaxUncommitted(t *testing.T) {
	t.Parallel()
	const bound, records = 50, 500
	for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey, ackpolicy.Unordered} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			t.Parallel()
			topic := newTopic(t, 1, numbered(records)...)
			cfg := config("", ordering(o, 0))
			cfg.MaxUncommitted = bound
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil },
				ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, records)
			s.stop()
		})
	}
}

// MaxUncommitted bounds what a crash replays: the records delivered past the one that holds the commit.
func TestMaxUncommitted(t *testing.T) {
	t.Parallel()
	const bound, records = 20, 100
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(records)...)
	var release atomic.Bool
	var stuck atomic.Pointer[ackpolicy.BlockedEvent]
	cfg := config(group, ordering(ackpolicy.Unordered, 4))
	cfg.MaxUncommitted = bound
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { stuck.Store(&e) }
	s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if release.Load() {
			d.Ack()
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.journal.wait(t, bound)
	eventually(t, "the hook", func() bool { return stuck.Load() != nil })
	if e := stuck.Load(); e.Offset != 0 {
		t.Errorf("the hook was told %+v", e)
	}
	for _, d := range s.journal.all() {
		if d.Offset() >= bound {
			t.Errorf("%s was delivered while %d records are not settled", name(d), bound)
		}
	}
	release.Store(true)
	for _, d := range s.journal.all() {
		d.Ack()
	}
	waitCommitted(t, group, topic, 0, records)
	eventually(t, "a line that it goes on", func() bool {
		return len(with(s.log.at("info"), "Partition goes on", topic, "kafka_partition=0", "failing_for=")) == 1
	})
	s.stop()
}

// What is settled behind an open record, and stored as that, does not count in MaxUncommitted: one that waits for a day
// holds nothing up.
func TestMarksDoNotCountAsUncommitted(t *testing.T) {
	t.Parallel()
	const bound, records = 20, 500
	group, topic := brokertest.Group(t), newTopic(t, 1, ownKeys(0, records)...)
	cfg := config(group, ordering(ackpolicy.OrderByKey, 4))
	cfg.MaxUncommitted = bound
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { t.Errorf("stuck: %+v", e) }
	s := consume(t, cfg, topic, nackFor(0, 24*time.Hour), ackpolicy.NackOnError.Middleware)
	settledAll(t, s, records)
	s.stop()
	wantCommitted(t, group, topic, 0, 0)
}

// A stored offset outside of the log: told, reset as configured, and commits go on from there, even downwards.
func TestStoredOffsetOutsideTheLog(t *testing.T) {
	t.Parallel()
	const records, beyond = 5, 1000
	for name, c := range map[string]struct {
		initial, start int64
		trim           int64 // the log's start
		stored         int64
	}{
		"beyond the end, oldest":   {sarama.OffsetOldest, 0, 0, beyond},
		"beyond the end, newest":   {sarama.OffsetNewest, records, 0, beyond},
		"before the start, oldest": {sarama.OffsetOldest, 3, 3, 1},
		"before the start, newest": {sarama.OffsetNewest, records, 3, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(records)...)
			if c.trim > 0 {
				check(t, brokertest.DeleteRecords(shared.Addrs(), topic, 0, c.trim))
			}
			check(t, brokertest.ResetOffset(shared.Addrs(), group, topic, 0, c.stored))
			told := make(chan ackpolicy.PositionResetEvent, 1)
			cfg := config(group, initial(c.initial))
			cfg.Hooks.PositionReset = func(e ackpolicy.PositionResetEvent) { told <- e }
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil },
				ackpolicy.NackOnError.Middleware)
			if e := await(t, "the hook", told); e.Stored != c.stored || e.Start != c.start || e.Topic != topic {
				t.Errorf("the hook was told %+v", e)
			}
			if len(with(s.log.at("error", "info"), topic, fmt.Sprint(c.stored), fmt.Sprint(c.start))) == 0 {
				t.Errorf("not in the log: %v", s.log.at("error", "info"))
			}
			produce(t, topic, 0, numbered(2)...)
			s.journal.wait(t, records+2-int(c.start))
			eventually(t, "the commit", func() bool {
				stored, err := brokertest.Committed(shared.Addrs(), group, topic, 0)
				return err == nil && stored == records+2
			})
			s.stop()
			if first := s.journal.all()[0].Offset(); first != c.start {
				t.Errorf("began at %d, want %d", first, c.start)
			}
		})
	}
}
