package lifecycle_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	stored "github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// nackFor nacks one record for a time, each time, and acks the others.
func nackFor(offset int64, d time.Duration) testkit.Handle {
	return func(_ *message.Message, delivery *ackpolicy.Delivery) error {
		if delivery.Offset() == offset {
			return ackpolicy.NackAfter(d)
		}
		return nil
	}
}

// What is settled behind a record that waits does not come again: not after one restart, nor after
// several, and not where another record was settled in between.
func TestSettledBehindANackDoesNotComeAgain(t *testing.T) {
	t.Parallel()
	const records = 1000
	for by, order := range map[string]testkit.Option{
		"by key": testkit.Ordering(ackpolicy.OrderByKey, 16), "unordered": testkit.Ordering(ackpolicy.Unordered, 16),
	} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.OwnKeys(0, records)...)
			assigned := make(chan struct{}, 10)
			cfg := testkit.Config(group, order)
			cfg.Hooks.Assigned = func(ackpolicy.AssignedEvent) { assigned <- struct{}{} }
			run := func() *testkit.Service {
				s := testkit.Consume(t, cfg, topic, nackFor(3, time.Hour), ackpolicy.NackOnError.Middleware)
				testkit.Await(t, "the assignment", assigned)
				return s
			}
			s := run()
			testkit.SettledAll(t, s, records)
			began := time.Now()
			s.Stop()
			t.Logf("stopped in %v", time.Since(began))
			testkit.WantCommitted(t, group, topic, 0, 3)
			for round := range 3 {
				s = run()
				if round == 1 { // in the others it stops before much is read
					testkit.Produce(t, topic, 0, testkit.OwnKeys(records, 10)...)
					testkit.SettledAll(t, s, 10)
				}
				s.Stop()
				for _, d := range s.All() {
					if d.Offset() < records {
						t.Errorf("round %d: %s came again", round, testkit.Name(d))
					}
				}
				testkit.WantCommitted(t, group, topic, 0, 3)
			}
		})
	}
}

// Under Manual whatever was settled in whatever order is not delivered again.
func TestSettledInAnyOrderDoesNotComeAgain(t *testing.T) {
	t.Parallel()
	const records = 300
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	s := testkit.Consume(t, testkit.Config(group), topic, testkit.Succeed, ackpolicy.Manual.Middleware)
	s.Wait(t, records)
	var open []string
	for _, d := range slices.Backward(s.All()) {
		if d.Offset()%7 == 0 {
			open = append(open, fmt.Sprintf("%d#2", d.Offset()))
		} else if !d.Ack() {
			t.Errorf("%s is %s", testkit.Name(d), d.Status())
		}
	}
	slices.Reverse(open)
	s.Stop()
	s = testkit.Consume(t, testkit.Config(group), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, records)
	s.Stop()
	s.Want(t, open...)
}

// Who waits for a commit waits for no older record.
func TestWaitsForNoOlderRecord(t *testing.T) {
	t.Parallel()
	const handlers = 64
	for wait, confirm := range map[string]bool{"AckSync": false, "ConfirmFirst": true} {
		t.Run(wait, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.OwnKeys(0, 3*handlers)...)
			cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, handlers))
			cfg.CommitInterval = time.Hour // only who waits has something stored
			mw := ackpolicy.Manual.Middleware
			var refuse atomic.Bool
			if confirm {
				cfg.Kafka.Unmarshaler = testkit.Refusing{While: refuse.Load}
				cfg.Backoff = func(int, error) time.Duration { return time.Hour }
				refuse.Store(true)
				mw = testkit.ConfirmFirst
			}
			var returned atomic.Int32
			cfg.Hooks.Undecodable = func(ackpolicy.UndecodableEvent) { refuse.Store(false) }
			s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if !confirm && d.Offset() == 0 {
					return ackpolicy.NackAfter(time.Hour)
				}
				if err := d.AckSync(msg.Context()); err != nil {
					return err
				}
				returned.Add(1)
				return nil
			}, mw)
			testkit.Eventually(t, "all handlers have returned", func() bool { return returned.Load() >= 3*handlers-1 })
			position := testkit.StoredPosition(t, group, topic)
			l, err := stored.Decode(stored.Place{Topic: topic, Offset: position.Offset}, position.Metadata)
			testkit.Check(t, err)
			for _, d := range s.All() {
				if _, marked := stored.Marked(l.Blocks, d.Offset()); !marked && d.Offset() >= position.Offset && d.Status() == ackpolicy.Acked {
					t.Errorf("%s waited for its commit, and is not in it: %d, %+v", testkit.Name(d), position.Offset, l.Blocks)
				}
			}
			s.Stop()
		})
	}
}

// A mark that no longer fits the log is not trusted: its records are delivered again, and the log says so.
func TestMarksOfAnotherLog(t *testing.T) {
	t.Parallel()
	const records = 100
	for log, c := range map[string]struct {
		change   func(l *stored.Ledger)
		again    int // of the marked ones
		reported string
	}{
		"as it was": {func(*stored.Ledger) {}, 0, ""},
		"another record": {func(l *stored.Ledger) {
			for i := range l.Blocks {
				l.Blocks[i].Sum++
			}
		}, records - 1, "delivered again"},
		"an earlier topic": {func(l *stored.Ledger) { l.TopicID[0]++ }, records - 1, "The topic was deleted and created again"},
		"another cluster": {func(l *stored.Ledger) {
			l.TopicID[0]++
			l.Cluster++
		}, records - 1, "another topic of this name"},
		"a shorter log": {func(l *stored.Ledger) {
			l.Blocks = l.Blocks[:1]
			l.Blocks[0].Runs[0].To = 2 * records
		}, records - 1, "delivered again"},
		"beyond its end":    {func(l *stored.Ledger) { *l = beyond(*l, 2*records) }, 0, ""},
		"of the redrive":    {func(l *stored.Ledger) { l.Kind = stored.Redrive }, records - 1, "not used"},
		"no topic id given": {func(l *stored.Ledger) { l.TopicID = [16]byte{} }, 0, ""},
	} {
		t.Run(log, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.OwnKeys(0, records)...)
			order := testkit.Ordering(ackpolicy.OrderByKey, 4)
			s := testkit.Consume(t, testkit.Config(group, order), topic, nackFor(0, time.Hour), ackpolicy.NackOnError.Middleware)
			testkit.SettledAll(t, s, records)
			s.Stop()
			position := testkit.StoredPosition(t, group, topic)
			place := stored.Place{Topic: topic, Offset: position.Offset}
			l, err := stored.Decode(place, position.Metadata)
			testkit.Check(t, err)
			if len(l.Blocks) == 0 {
				t.Fatalf("stored: %+v", l)
			}
			c.change(l)
			position.Metadata, _ = stored.Encode(place, l, stored.DefaultRoom)
			testkit.StorePosition(t, group, topic, position)

			s = testkit.Consume(t, testkit.Config(group, order), topic, nackFor(0, time.Hour), ackpolicy.NackOnError.Middleware)
			testkit.Produce(t, topic, 0, testkit.OwnKeys(records, 1)...)
			testkit.Eventually(t, "the record that was not there before", func() bool { return s.Find(records, 1) != nil })
			s.Stop()
			again := 0
			for _, d := range s.All() {
				if d.Offset() > 0 && d.Offset() < records {
					again++
				}
			}
			if again != c.again {
				t.Errorf("%d records came again, want %d", again, c.again)
			}
			if reported := testkit.Containing(s.Log.At("info", "error"), c.reported); c.reported != "" && len(reported) != 1 {
				t.Errorf("logged %q, want it once: %q", reported, c.reported)
			}
		})
	}
}

// beyond adds a block that lies behind the log's end.
func beyond(l stored.Ledger, offset int64) stored.Ledger {
	l.Blocks = append(l.Blocks, stored.Block{Runs: []stored.Run{{From: offset, To: offset + 10}}, Sum: 1})
	return l
}

// limitMetadata is a broker's offset.metadata.max.bytes, which kfake does not have.
func limitMetadata(broker *brokertest.Broker, topic string, limit int) {
	broker.Kfake().ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Kfake().KeepControl()
		commit := request.(*kmsg.OffsetCommitRequest)
		if text := commit.Topics[0].Partitions[0].Metadata; text == nil || len(*text) <= limit {
			return nil, nil, false
		}
		response := commit.ResponseKind().(*kmsg.OffsetCommitResponse)
		t := kmsg.NewOffsetCommitResponseTopic()
		t.Topic = topic
		p := kmsg.NewOffsetCommitResponseTopicPartition()
		p.ErrorCode = kerr.OffsetMetadataTooLarge.Code
		t.Partitions = append(t.Partitions, p)
		response.Topics = append(response.Topics, t)
		return response, nil, true
	})
}

// Where the broker has no room for marks, handlers that wait for their commits wait for older records; those are handled
// meanwhile, though the waiting ones have all slots.
func TestWaitsWithoutRoom(t *testing.T) {
	t.Parallel()
	for wait, mw := range map[string]message.HandlerMiddleware{"AckSync": ackpolicy.Manual.Middleware, "ConfirmFirst": testkit.ConfirmFirst} {
		t.Run(wait, func(t *testing.T) {
			t.Parallel()
			const records = 8
			broker := brokertest.NewFake(t)
			topic, at := testkit.FakeTopic(t, broker, testkit.OwnKeys(0, records)...)
			limitMetadata(broker, topic, 10)
			cfg := testkit.Config(brokertest.Group(t), at, testkit.Ordering(ackpolicy.OrderByKey, 2))
			var tries atomic.Int32
			cfg.Kafka.Unmarshaler = testkit.Refusing{While: func() bool { return tries.Add(1) == 1 }} // record 0, once
			cfg.Backoff = func(int, error) time.Duration { return time.Second }
			s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error { return d.AckSync(msg.Context()) }, mw)
			testkit.SettledAll(t, s, records)
			s.Stop()
			stored, err := brokertest.Committed(broker.Addrs(), cfg.Kafka.ConsumerGroup, topic, 0)
			testkit.Check(t, err)
			if stored != records {
				t.Errorf("stored %d, want %d", stored, records)
			}
		})
	}
}

// What does not fit into the broker's limit comes again, exactly that, and is counted.
func TestMarksWithoutRoom(t *testing.T) {
	t.Parallel()
	const records, limit = 600, 200
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.OwnKeys(0, records)...)
	limitMetadata(broker, topic, limit)
	group := brokertest.Group(t)
	handler := func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset()%2 == 0 && d.Offset() < records/2 {
			return ackpolicy.NackAfter(time.Hour)
		}
		return nil
	}
	cfg := testkit.Config(group, at, testkit.Ordering(ackpolicy.OrderByKey, 16))
	var released ackpolicy.RevokedEvent
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released = e }
	s := testkit.Consume(t, cfg, topic, handler, ackpolicy.NackOnError.Middleware)
	testkit.SettledAll(t, s, records)
	s.Stop()
	if released.Unmarked == 0 || released.Err != nil {
		t.Errorf("released as %+v", released)
	}
	if reported := testkit.Containing(s.Log.At("info"), fmt.Sprint(released.Unmarked, " settled, but the commit had no room to say so")); len(reported) != 1 {
		t.Errorf("logged %q", s.Log.At("info"))
	}
	cfg.Hooks.Revoked = nil
	s = testkit.Consume(t, cfg, topic, handler, ackpolicy.NackOnError.Middleware)
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.OwnKeys(records, 1)...)
	testkit.Check(t, err)
	testkit.Eventually(t, "the last record", func() bool {
		d := s.Find(records, 1)
		return d != nil && d.Status() == ackpolicy.Acked
	})
	s.Stop()
	again := 0
	for _, d := range s.All() {
		if d.Offset() < records && d.Status() == ackpolicy.Acked {
			again++
		}
	}
	if again != released.Unmarked {
		t.Errorf("%d settled records came again, %d were reported", again, released.Unmarked)
	}
}

// Records that were deleted meanwhile are not waited for.
func TestMarksOfDeletedRecords(t *testing.T) {
	t.Parallel()
	const records = 200
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.OwnKeys(0, records)...)
	order := testkit.Ordering(ackpolicy.OrderByKey, 4)
	s := testkit.Consume(t, testkit.Config(group, order), topic, nackFor(10, time.Hour), ackpolicy.NackOnError.Middleware)
	testkit.SettledAll(t, s, records)
	s.Stop()
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.DeleteRecords(topic, map[int32]int64{0: 100}) })
	s = testkit.Consume(t, testkit.Config(group, order), topic, nackFor(10, time.Hour), ackpolicy.NackOnError.Middleware)
	testkit.Produce(t, topic, 0, testkit.OwnKeys(records, 1)...)
	testkit.WaitCommitted(t, group, topic, 0, records+1)
	s.Stop()
	for _, d := range s.All() {
		if d.Offset() < 100 {
			t.Errorf("%s was deleted", testkit.Name(d))
		}
	}
}

// What is settled behind an open record, and stored as that, does not count in MaxUncommitted: one that waits for a day
// delays nothing.
func TestMarksDoNotCountAsUncommitted(t *testing.T) {
	t.Parallel()
	const bound, records = 20, 500
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.OwnKeys(0, records)...)
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4))
	cfg.MaxUncommitted = bound
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { t.Errorf("stuck: %+v", e) }
	s := testkit.Consume(t, cfg, topic, nackFor(0, 24*time.Hour), ackpolicy.NackOnError.Middleware)
	testkit.SettledAll(t, s, records)
	s.Stop()
	testkit.WantCommitted(t, group, topic, 0, 0)
}
